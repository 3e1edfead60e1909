"""What the values of a label stack mean: which pixels are inside cells."""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import stack_reader
from skipnet_jax.data import volume

KINDS = ('binary', 'instances')
# Pixel types of a stack of labels. What the values mean does not depend on it.
DTYPES = (
  *('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32'),
  *('uint64', 'int64', 'float64', 'float32', 'bool'),
)


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What the values of a label stack mean, and how the user says so.

  Attributes:
    kind: 'binary': two values, the larger inside cells. 'instances': a number
      from 1 up for each cell, 0 on membranes.
    inverted: whether the smaller of two values is inside cells.
    kind_option: name of the config field or flag that sets `kind`.
    inverted_option: the same of `inverted`.

  Raises:
    InputError: an unknown kind, or inverted instances.
  """

  kind: str = 'binary'
  inverted: bool = False
  kind_option: str = 'data.label_kind'
  inverted_option: str = 'data.label_inverted'

  def __post_init__(self):
    if self.kind not in KINDS:
      raise errors.InputError(
        f'{self.kind_option} is {self.kind!r}; it must be {" or ".join(KINDS)}.'
      )
    if self.inverted and self.kind == 'instances':
      raise errors.InputError(
        f'{self.inverted_option} is True, but {self.kind_option} is '
        "'instances', of which 0 is the membrane: leave one of them out."
      )


BINARY = Meaning()


class _Inside(stack_reader.SlicesOnDisk):
  """What `find_inside_on_disk` gives.

  Args:
    label: as stored.
    value: the value inside cells; None: instances.
  """

  def __init__(self, label: stack_reader.SlicesOnDisk, value: Any):
    super().__init__(label.path, label.shape, np.dtype(bool), label.depth)
    self._label, self._value, self.filled = label, value, label.filled

  def _read(self, slices: range, rows: range, columns: range) -> np.ndarray:
    if self._value is not None:
      return self._label.read_part(slices, rows, columns) == self._value
    # A pixel on a border may touch a cell beyond it.
    wide, inner = [], []
    for part, side in zip((rows, columns), self._label.shape[1:], strict=True):
      first = max(0, part.start - 1)
      wide.append(range(first, min(part.stop + 1, side)))
      inner.append(slice(part.start - first, part.stop - first))
    found = outside_borders(self._label.read_part(slices, *wide), both=True)
    return found[:, *inner]


def find_inside(
  label: np.ndarray,
  image_shape: tuple[int, ...],
  name: str,
  meaning: Meaning = BINARY,
) -> np.ndarray:
  """Labels as `[z, y, x]` bool, True inside a cell.

  Of instances, the membrane is where the number is 0 and, in a slice, where
  pixels with two different numbers touch by a side: both of these pixels.

  Args:
    label: `[z, y, x]`, any type of DTYPES.
    image_shape: the shape that `label` must have.
    name: what the messages call it.
    meaning: of the values.

  Raises:
    InputError: another shape, values that do not fit the meaning, or not both
      inside and membrane in the whole stack.
  """
  _check_shape(label.shape, image_shape, name)
  volume.check_finite(label, name)
  if meaning.kind == 'instances':
    return _inside_instances(label, name, meaning)
  low, high = label.min(), label.max()
  _check_two_values(low, high, name)
  inside = np.empty(label.shape, bool)
  for z, page in enumerate(label):
    np.equal(page, high, out=inside[z])
    if not np.all(inside[z] | (page == low)):
      values = np.unique(label, return_counts=True)
      raise errors.InputError(_too_many_values(*values, name, meaning))
  return ~inside if meaning.inverted else inside


def find_inside_on_disk(
  label: stack_reader.SlicesOnDisk,
  image_shape: tuple[int, ...],
  name: str,
  meaning: Meaning = BINARY,
) -> stack_reader.SlicesOnDisk:
  """`find_inside` of labels that stay on the disk.

  They are read once to check them; instances twice.
  """
  _check_shape(label.shape, image_shape, name)
  if meaning.kind == 'instances':
    _check_numbers(label, name, meaning)
    inside = _Inside(label, None)
    _check_both(((page.any(), page.all()) for page in inside), name)
    return inside
  counts: collections.Counter[Any] = collections.Counter()
  for z, page in enumerate(label):
    volume.check_finite(page, name, z)
    own = {
      v: int(np.count_nonzero(page == v)) for v in (page.min(), page.max())
    }
    if sum(own.values()) < page.size:
      found = np.unique(page, return_counts=True)
      where = f'slice {z} of {name}'
      raise errors.InputError(_too_many_values(*found, where, meaning))
    counts.update(own)
    if len(counts) > 2:
      found = np.array([*counts]), np.array([*counts.values()])
      where = f'{name}, slices 0 to {z},'
      raise errors.InputError(_too_many_values(*found, where, meaning))
  _check_two_values(min(counts), max(counts), name)
  return _Inside(label, (min if meaning.inverted else max)(counts))


def _check_shape(
  shape: tuple[int, ...], image_shape: tuple[int, ...], name: str
) -> None:
  if shape != tuple(image_shape):
    raise errors.InputError(
      f'{name} has shape {shape} but its image has {tuple(image_shape)}; give '
      'the labels of that very stack'
    )


def _check_two_values(low: Any, high: Any, name: str) -> None:
  if low == high:
    raise errors.InputError(
      f'{name} has only one value ({low}) in the whole stack; two are needed, '
      'the larger inside a cell, the smaller on membranes'
    )


def _too_many_values(
  found: np.ndarray, counts: np.ndarray, name: str, meaning: Meaning
) -> str:
  order = np.argsort(found)
  found, counts = found[order], counts[order]
  shown = ', '.join(str(value) for value in found[:5])
  others = counts[1:-1].sum()
  sentence = (
    f'{name} has {len(found)} values ({shown}'
    f'{", ..." if len(found) > 5 else ""}) where two are needed, the larger '
    f'inside a cell; {others} of its {counts.sum()} pixels have neither '
    f'{found[0]} nor {found[-1]}: threshold it (ImageJ: Process > Binary)'
  )
  if found[0] >= 0 and np.all(found == np.round(found)):
    sentence += (
      f', or set {meaning.kind_option}=instances if every value is a cell of '
      'its own'
    )
  return sentence


def _check_numbers(label: volume.Stack, name: str, meaning: Meaning) -> None:
  """Refuses what cannot be numbers of cells, with 0 on membranes."""
  whole, extremes = True, []
  for z, page in enumerate(label):
    volume.check_finite(page, name, z)
    extremes.append((page.min(), page.max()))
    if label.dtype.kind == 'f':
      whole = whole and np.array_equal(page, np.round(page))
  low, high = min(extremes)[0], max(most for _, most in extremes)
  if not whole or low < 0 or high == 0:
    raise errors.InputError(
      f'{name} has {label.dtype} values from {low} to {high}, but instances '
      'are whole numbers from 1 up, with 0 on membranes: renumber the cells '
      '(by adding 1, where -1 is the membrane), or set '
      f'{meaning.kind_option} back.'
    )
  if label.dtype.kind == 'f' and high >= 2 ** (np.finfo(label.dtype).nmant + 1):
    raise errors.InputError(
      f'{name} has {label.dtype} values up to {high:.0f}, of which that type '
      'cannot tell neighbours apart: renumber the cells, or save them as '
      'uint32.'
    )
  # Of 8 or 16 bits the largest number may be that of a cell, beside some 0.
  unlikely = low > 0 or label.dtype.itemsize > 2
  if label.dtype.kind == 'u' and unlikely and high == np.iinfo(label.dtype).max:
    raise errors.InputError(
      f'{name} has the value {high}, which is -1 stored as {label.dtype}, but '
      'instances are whole numbers from 1 up, with 0 on membranes: renumber '
      'the cells, and set these pixels to 0.'
    )


def _inside_instances(
  label: np.ndarray, name: str, meaning: Meaning
) -> np.ndarray:
  _check_numbers(label, name, meaning)
  inside = outside_borders(label, both=True)
  _check_both([(inside.any(), inside.all())], name)
  return inside


def _check_both(pages: Iterable[tuple[np.bool, np.bool]], name: str) -> None:
  """Refuses instances without a cell or a membrane.

  Args:
    pages: whether some pixel, and whether all pixels of a part are inside.
    name: of the labels.
  """
  some, every = zip(*pages, strict=True)
  for ok, what in (
    (any(some), 'cell of which a pixel is left: every pixel is 0 or'),
    (not all(every), 'membrane: no pixel is 0, and no pixel'),
  ):
    if not ok:
      raise errors.InputError(
        f'{name} has no {what} touches another cell; give one number to each '
        'cell, and 0 to membranes'
      )


def draw_instances(
  label: np.ndarray, name: str, meaning: Meaning
) -> np.ndarray:
  """A segmentation as a prediction, `[z, y, x]` bool, True inside.

  The membrane is where the number is 0, and where the neighbour to the right or
  below has another one: one pixel wide between two cells that touch.

  Args:
    label: `[z, y, x]`, the number of the cell of each pixel.
    name: what the messages call it.
    meaning: names the option that says that these are numbers.

  Raises:
    InputError: other values than whole numbers from 0 up, or numbers that
      change from pixel to pixel, as probabilities do.
  """
  volume.check_finite(label, name)
  _check_numbers(label, name, meaning)
  inside = outside_borders(label, both=False)
  if 2 * np.count_nonzero(inside) < np.count_nonzero(label):
    raise errors.InputError(
      f'{name} has {label.dtype} values that differ between most neighbours, '
      'so they are no numbers of cells; of probabilities, give float32 in '
      '0..1.'
    )
  return inside


def outside_borders(label: np.ndarray, *, both: bool) -> np.ndarray:
  """`[z, y, x]` bool: False where 0 is, and where two cells touch.

  Of two pixels that touch, both are False, or only the left or upper one.
  """
  inside = label != 0
  pairs = (np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])
  for numbers, page in zip(label, inside, strict=True):
    some = page.copy()
    for first, second in pairs:
      touch = numbers[first] != numbers[second]
      touch &= some[first] & some[second]
      page[first] &= ~touch
      if both:
        page[second] &= ~touch
  return inside


def is_drawn(inside: np.ndarray) -> bool:
  """Whether the labels of one slice, bool, have both cells and membranes."""
  return bool(inside.any()) and not inside.all()


def ranges(slices: Sequence[int]) -> str:
  """Slices in the form that data.train takes: '0-7,9'."""
  runs: list[list[int]] = []
  for z in sorted(slices):
    if runs and z == runs[-1][1] + 1:
      runs[-1][1] = z
    else:
      runs.append([z, z])
  return ','.join(f'{a}-{b}' if a < b else str(a) for a, b in runs)
