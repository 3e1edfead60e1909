"""Slices that train and slices that validate."""

import pytest

from skipnet_jax import errors
from skipnet_jax.data import slice_split


@pytest.mark.parametrize(
  ('train', 'valid', 'expected'),
  [
    ('rest', '25-29', (tuple(range(25)), (25, 26, 27, 28, 29))),
    ('0-2,5', '3, 4', ((0, 1, 2, 5), (3, 4))),
    ('rest', 'fold:0/6', (tuple(range(5, 30)), (0, 1, 2, 3, 4))),
    ('rest', 'fold:5/6', (tuple(range(25)), (25, 26, 27, 28, 29))),
    ('1,1,2', '0,0', ((1, 2), (0,))),
  ],
)
def test_splits(train, valid, expected):
  assert slice_split.split(train, valid, 30, 0) == expected


def test_folds_partition_the_stack():
  held = [slice_split.split('rest', f'fold:{k}/4', 30, 0)[1] for k in range(4)]
  assert sorted(sum(held, ())) == list(range(30))


def test_a_random_split_is_of_the_seed():
  first, again, other = (
    slice_split.split('rest', 'random:5', 30, seed) for seed in (1, 1, 2)
  )
  assert first == again
  assert first[1] != other[1]
  assert len(first[1]) == 5
  assert sorted(first[0] + first[1]) == list(range(30))


@pytest.mark.parametrize(
  ('train', 'valid', 'words'),
  [
    ('rest', '', 'data.valid selects no slice'),
    ('', '1', 'data.train selects no slice'),
    ('rest', '0-29', 'data.train selects no slice'),
    ('0-5', '5-6', r'Slices \[5\] are in data.train and in data.valid'),
    ('rest', '28-30', 'has 30 slices, 0 to 29'),
    ('rest', '7-3', 'write the smaller number first, 3-7'),
    ('rest', '9' * 5000, 'give slices such as'),
    ('rest', 'last', "data.valid has 'last'"),
    ('some', '1', "data.train has 'some'"),
    ('rest', 'random:30', 'leave some for training'),
    ('rest', 'fold:6/6', 'K below N'),
    ('rest', 'fold:0/1', 'N from 2 to 30'),
  ],
)
def test_bad_splits_are_refused(train, valid, words):
  with pytest.raises(errors.InputError, match=words):
    slice_split.split(train, valid, 30, 0)


def test_spaces_around_a_split_do_not_matter():
  assert slice_split.split(' rest', ' fold:0/3 ', 6, 0) == (
    (2, 3, 4, 5),
    (0, 1),
  )
