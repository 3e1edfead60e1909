import os
import pathlib

import numpy as np
import pytest
from scipy import ndimage

from skipnet_jax import errors
from skipnet_jax.data import synthetic


@pytest.fixture(scope='module')
def stack():
  return synthetic.generate(0, 12, 512)


def _agreement(label, step):
  """Mean intersection over union of the membranes of slices `step` apart."""
  membrane = label == 0
  pairs = list(zip(membrane[:-step], membrane[step:], strict=True))
  return np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])


def test_equal_arguments_give_equal_bits():
  first = synthetic.generate(3, 4, 96)
  np.random.seed(1)  # noqa: NPY002  The global generator has no say.
  np.random.rand(5)  # noqa: NPY002
  second = synthetic.generate(3, 4, 96)
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)


def test_seeds_give_different_cells():
  first, second = synthetic.generate(0, 2, 96), synthetic.generate(1, 2, 96)
  assert np.mean(first[0] != second[0]) > 0.9
  assert np.mean(first[1] != second[1]) > 0.1


@pytest.mark.parametrize(
  ('slices', 'size', 'shape'),
  [
    (8, 64, (8, 64, 64)),
    (1, 32, (1, 32, 32)),
    (2, (48, 200), (2, 48, 200)),
    (np.int64(3), np.int64(65), (3, 65, 65)),
  ],
)
def test_shape_dtype_and_values(slices, size, shape):
  image, label = synthetic.generate(0, slices, size)
  assert image.shape == label.shape == shape
  assert image.dtype == label.dtype == np.uint8
  assert np.unique(label).tolist() == [0, 255]


@pytest.mark.parametrize('seed', range(10))
def test_small_slices_show_several_cells(seed):
  _, label = synthetic.generate(seed, 4, 64)
  counts = [ndimage.label(plane)[1] for plane in label]
  assert min(counts) >= 3
  assert 0.15 < np.mean(label == 0) < 0.6


def test_statistics_are_those_of_the_challenge(stack):
  image, label = stack
  membrane = label == 0
  assert 110 < image.mean() < 142  # The challenge's stack: 126.
  assert 38 < image.std() < 50  # 44.
  counts = [ndimage.label(plane)[1] for plane in label]
  assert all(80 <= count <= 170 for count in counts)  # 88 to 137.
  # 0.17 to 0.27.
  assert all(0.15 < fraction < 0.29 for fraction in membrane.mean((1, 2)))
  assert 65 < image[membrane].mean() < 95  # 85.
  assert 125 < image[~membrane].mean() < 150  # 138.


def test_every_slice_is_darker_on_membranes(stack):
  for image, label in zip(*stack, strict=True):
    assert image[label == 0].mean() < image[label == 255].mean() - 35


def test_labels_lie_on_the_membranes_of_the_image(stack):
  # Labels moved by one pixel fit worse, by a membrane's width far worse.
  image, label = stack
  here = image[label == 0].mean()
  for axis in (1, 2):
    for shift, loss in ((-6, 15), (-1, 0.5), (1, 0.5), (6, 15)):
      moved = np.roll(label, shift, axis)
      assert image[moved == 0].mean() > here + loss


def test_cell_sizes_have_a_heavy_tail(stack):
  areas = np.concatenate(
    [np.bincount(ndimage.label(plane)[0].ravel())[1:] for plane in stack[1]]
  )
  assert areas.min() >= 25  # Specks are membrane.
  assert 300 < np.median(areas) < 900  # 569.
  assert np.percentile(areas, 95) > 8 * np.median(areas)


def test_membranes_persist_between_slices(stack):
  label = stack[1]
  assert _agreement(label, 1) > 1.5 * _agreement(label, 8)
  assert _agreement(label, 1) > _agreement(label, 2) > _agreement(label, 4)


def test_slices_differ_in_brightness(stack):
  assert stack[0].mean((1, 2)).std() > 3


def test_cache_gives_the_same_stacks_without_making_them(tmp_path, monkeypatch):
  made = synthetic.load(2, 3, 64, tmp_path)
  assert [path.suffix for path in tmp_path.iterdir()] == ['.npz']
  monkeypatch.setattr(synthetic, 'generate', None)
  kept = synthetic.load(2, 3, 64, tmp_path)
  monkeypatch.undo()
  fresh = synthetic.generate(2, 3, 64)
  for a, b, c in zip(made, kept, fresh, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
  monkeypatch.setenv('SKIPNET_CACHE_DIR', str(tmp_path / 'new' / 'folder'))
  synthetic.load(0, 1, 32)
  assert len(list((tmp_path / 'new' / 'folder').iterdir())) == 1


def test_cache_keeps_arguments_apart(tmp_path):
  for arguments in ((0, 1, 32), (1, 1, 32), (0, 2, 32), (0, 1, (32, 33))):
    image, _ = synthetic.load(*arguments, cache_dir=tmp_path)
    np.testing.assert_array_equal(image, synthetic.generate(*arguments)[0])
  assert len(list(tmp_path.iterdir())) == 4


def _truncate(path: pathlib.Path):
  path.write_bytes(path.read_bytes()[:200])


def _flip(path: pathlib.Path):
  content = bytearray(path.read_bytes())
  content[len(content) // 4] ^= 255
  path.write_bytes(content)


def _other_shape(path: pathlib.Path):
  wrong = np.zeros((1, 2, 2), np.uint8)
  np.savez(path, image=wrong, label=wrong)


def _plain_array(path: pathlib.Path):
  with path.open('wb') as file:
    np.save(file, np.zeros(3))


def _missing_member(path: pathlib.Path):
  np.savez(path, image=np.zeros((2, 48, 48), np.uint8))


@pytest.mark.parametrize(
  'damage',
  [
    _truncate,
    _flip,
    _other_shape,
    _plain_array,
    _missing_member,
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(b'not an archive'),
  ],
)
def test_damaged_cache_is_made_anew(tmp_path, damage):
  image, label = synthetic.load(0, 2, 48, tmp_path)
  (path,) = tmp_path.iterdir()
  whole = path.stat().st_size
  damage(path)
  again = synthetic.load(0, 2, 48, tmp_path)
  np.testing.assert_array_equal(again[0], image)
  np.testing.assert_array_equal(again[1], label)
  assert path.stat().st_size == whole
  assert list(tmp_path.iterdir()) == [path]


def test_cache_that_cannot_be_written_is_passed_over(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('not a folder')
  image, _ = synthetic.load(0, 1, 32, blocked)
  np.testing.assert_array_equal(image, synthetic.generate(0, 1, 32)[0])
  assert blocked.read_text() == 'not a folder'


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', fail)
  synthetic.load(0, 1, 32, tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'size': 31}, 'size is 31'),
    ({'size': (64, 8)}, r'size is \(64, 8\)'),
    ({'size': (64, 64, 64)}, 'size is'),
    ({'size': 64.5}, 'size is 64.5'),
    ({'size': 99999}, 'at most 268435456'),
    ({'slices': 10**6}, 'at most 268435456'),
    ({'slices': 0}, 'slices is 0'),
    ({'slices': -2}, 'slices is -2'),
    ({'seed': -1}, 'seed is -1'),
    ({'seed': 0.5}, 'seed is 0.5'),
  ],
)
@pytest.mark.parametrize('function', [synthetic.generate, synthetic.load])
def test_bad_input_is_named(function, arguments, words):
  with pytest.raises(errors.InputError, match=words):
    function(**arguments)
