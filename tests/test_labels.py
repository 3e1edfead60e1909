"""What the values of labels mean, and what is said of labels that look odd."""

import re

import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.data import label_warnings
from skipnet_jax.data import labels

INSTANCES = labels.Meaning('instances')
TURNED = labels.Meaning(inverted=True)
# One slice of two cells beside each other, and one below, past a membrane.
CELLS = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [3, 3, 3, 3]])
INSIDE = np.array([[1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])


def find(label, meaning=labels.BINARY, shape=None):
  return labels.find_inside(label, shape or label.shape, 'l.tif', meaning)


def refuse(label, *words, meaning=labels.BINARY, shape=None):
  with pytest.raises(errors.InputError) as caught:
    find(label, meaning, shape)
  message = str(caught.value)
  assert '\n' not in message
  assert 'l.tif' in message
  for word in words:
    assert word in message


@pytest.mark.parametrize('dtype', labels.DTYPES)
def test_any_pixel_type(dtype):
  cells = CELLS[None] != 0
  np.testing.assert_array_equal(find(cells.astype(dtype)), cells)
  np.testing.assert_array_equal(find(cells.astype(dtype), TURNED), ~cells)
  if dtype != 'bool':
    found = find(CELLS[None].astype(dtype), INSTANCES)
    np.testing.assert_array_equal(found, INSIDE[None])


@pytest.mark.parametrize(
  ('low', 'high', 'dtype'),
  [
    *((0, 2, 'u1'), (1, 2, 'u1'), (0, 2**16 - 1, 'u2'), (-3, -2, 'f4')),
    *((-1, 0, 'i2'), (-1, 7, 'i8'), (0, 2**63, 'u8')),
  ],
)
def test_the_larger_of_any_two_values_is_inside(low, high, dtype):
  inside = CELLS[None] == 2
  label = np.where(inside, np.array(high, dtype), np.array(low, dtype))
  np.testing.assert_array_equal(find(label), inside)


def test_binary_labels_of_other_values_are_refused():
  label = np.zeros((3, 8, 9), np.uint8)
  refuse(label, 'only one value (0) in the whole')
  label[1, 2:5] = 255
  refuse(label, '(3, 8, 9)', '(3, 8, 8)', shape=(3, 8, 8))
  # A stray pixel, and the soft edges of a resized picture.
  label[2, 0, 0] = 7
  refuse(label, '3 values (0, 7, 255)', '1 of its 216 pixels', 'instances')
  label[2, 0] = range(9)
  refuse(label, '(0, 1, 2, 3, 4, ...)', '8 of its 216 pixels')
  soft = label / np.float32(255)
  with pytest.raises(errors.InputError) as caught:
    find(soft)
  assert 'instances' not in str(caught.value)
  soft[0, 0, 0] = np.nan
  refuse(soft, 'slice 1', 'nan')


def test_membranes_of_instances_are_where_two_touch_or_0_is():
  apart = np.where(INSIDE, CELLS, 0)[None]
  np.testing.assert_array_equal(find(apart, INSTANCES), INSIDE[None])
  # Of another slice a cell is no neighbour, and it may have a number again.
  stack = np.stack([CELLS, CELLS[::-1], 5 * CELLS])
  found = find(stack, INSTANCES)
  np.testing.assert_array_equal(found, [INSIDE, INSIDE[::-1], INSIDE])
  large = np.where(CELLS, CELLS + 2**33, 0)[None]
  np.testing.assert_array_equal(find(large, INSTANCES), INSIDE[None])
  # A single pixel of another number takes its neighbours with it.
  stray = np.ones((1, 5, 5), np.uint8)
  stray[0, 2, 2] = 9
  assert np.count_nonzero(~find(stray, INSTANCES)) == 5


def test_instances_of_other_values_are_refused():
  refuse(CELLS[None] - 1, '-1 to 2', 'adding 1', meaning=INSTANCES)
  refuse(CELLS[None] / 2, '0.0 to 1.5', 'whole numbers', meaning=INSTANCES)
  refuse(CELLS[None] * 0, '0 to 0', meaning=INSTANCES)
  refuse((CELLS[None] - 1).astype('u4'), 'is -1 stored', meaning=INSTANCES)
  for dtype in ('u1', 'u2'):
    label = np.where(CELLS, CELLS, -1)[None].astype(dtype)
    refuse(label, 'is -1 stored', meaning=INSTANCES)
  refuse(np.ones((1, 4, 4), int), 'has no membrane', meaning=INSTANCES)
  checks = np.indices((4, 4)).sum(0)[None] % 2 + 1
  refuse(checks, 'every pixel is 0 or touches', meaning=INSTANCES)


def test_a_meaning_is_checked():
  with pytest.raises(errors.InputError, match=r"label_kind is 'cells'.*binary"):
    labels.Meaning('cells')
  with pytest.raises(errors.InputError, match='label_inverted is True'):
    labels.Meaning('instances', True)


def test_a_segmentation_is_drawn_by_right_and_lower_neighbours():
  full = np.array([[1, 1, 2], [3, 3, 2], [3, 3, 3]], np.uint32)
  drawn = labels.draw_instances(full[None], 's.tif', INSTANCES)
  expected = [[0, 0, 1], [1, 0, 0], [1, 1, 1]]
  np.testing.assert_array_equal(drawn, [expected])
  # Borders that are there already stay as they are.
  drawn = labels.draw_instances(
    np.where(INSIDE, CELLS, 0)[None], 's', INSTANCES
  )
  np.testing.assert_array_equal(drawn, INSIDE[None])
  ramp = np.arange(1, 65, dtype=np.uint16).reshape(1, 8, 8)
  with pytest.raises(errors.InputError, match='differ between most'):
    labels.draw_instances(ramp, 's.tif', INSTANCES)


def cells_apart(slices=4, size=64):
  """`[z, y, x]` bool: squares of 14 pixels, 2 pixels apart."""
  side = np.arange(size) % 16 < 14
  return np.repeat((side[:, None] & side)[None], slices, 0)


def test_slices_of_one_value_are_named():
  inside = cells_apart(12)
  inside[:4], inside[6], inside[9] = True, True, False
  groups = {'training slices': range(8), 'validation slices': range(8, 12)}
  sentence = label_warnings.undrawn_sentence(inside, groups, 'l.tif')
  assert sentence.startswith(
    'l.tif has no membrane in training slices 0-3,6 and no cell in validation '
    'slices 9 (counted from 0)'
  )
  rest = {'slices': [4, 5, 7, 8]}
  assert label_warnings.undrawn_sentence(inside, rest, 'l.tif') == ''


def test_inverted_labels_are_warned_of():
  inside = cells_apart()
  slices = range(4)

  def warn(label, meaning=labels.BINARY):
    return label_warnings.inverted_sentence(label, slices, 'l.tif', meaning)

  assert warn(inside) == ''
  sentence = warn(~inside)
  assert re.search(r'only 23% .* larger .* data.label_inverted=True$', sentence)
  assert 'smaller' in warn(~inside, TURNED)
  assert warn(~inside, TURNED).endswith('=False')
  assert warn(~inside, INSTANCES) == ''
  inside[2] = ~inside[2]
  assert 'in slices 2 (counted from 0), unlike' in warn(inside)
  # Cells on a background are no lines, nor is a slice that is not drawn.
  nuclei = np.zeros_like(inside)
  nuclei[:, 3::12, 3::12] = nuclei[:, 4::12, 3::12] = True
  assert warn(nuclei) == ''
  assert warn(np.zeros_like(inside)) == ''
  # Thin lines that go over corners.
  diagonal = np.indices((64, 64))
  lines = (diagonal[0] + diagonal[1]) % 16 == 0
  lines |= (diagonal[0] - diagonal[1]) % 16 == 0
  assert 'looks inverted' in warn(np.repeat(lines[None], 4, 0))


@pytest.mark.parametrize(
  ('slices', 'text'),
  [([], ''), ([4], '4'), ([3, 1, 0], '0-1,3'), (range(8), '0-7')],
)
def test_ranges(slices, text):
  assert labels.ranges(slices) == text


def test_numbers_that_a_type_cannot_tell_apart_are_refused():
  numbers = np.zeros((1, 4, 6), np.float32)
  numbers[0, :, 3:] = 2**24 - 1
  meaning = labels.Meaning('instances')
  assert labels.find_inside(numbers, numbers.shape, 'a.tif', meaning).any()
  numbers[0, 0, 5] = 2**24
  with pytest.raises(errors.InputError, match='float32 values up to 16777216'):
    labels.find_inside(numbers, numbers.shape, 'a.tif', meaning)
  wide = numbers.astype(np.float64)
  assert labels.find_inside(wide, wide.shape, 'a.tif', meaning).any()


def test_slices_of_a_single_cell_are_named():
  inside = np.ones((3, 8, 8), bool)
  inside[:2, :, 4] = False
  inside[1, 4, 4] = inside[2, 0] = True
  inside[2, 7] = False
  sentence = label_warnings.single_sentence(inside, range(3), 'a.tif')
  assert 'single cell in slices 1-2 ' in sentence
  assert not label_warnings.single_sentence(inside, [0], 'a.tif')
