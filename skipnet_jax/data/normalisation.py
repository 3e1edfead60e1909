"""How the grey values of a slice become the input of a network.

`slice`: each slice gets zero mean and unit variance. `range`: the range of the
integer type becomes -1..1, grey / 127.5 - 1 for uint8, whatever values a slice
has (Guo et al. 2019). Floats have no such range. `local`: each pixel gets the
mean and variance of its neighbourhood, so that it does not depend on the field
of view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from skipnet_jax import errors
from skipnet_jax.data import stack_reader
from skipnet_jax.data import volume

# What a network's input is, by the method, for those who have no code of ours.
DESCRIPTIONS = {
  'slice': '(grey - mean) / std, mean and std of all pixels of each slice; std '
  'is 1 if all are equal',
  'range': 'grey / half - 1, half the largest value of the integer type: 127.5 '
  'of uint8, 32767.5 of uint16',
  'local': '(grey - mean) / std of the pixels around each one, mean and std by '
  'two box filters of 129 pixels in turn, borders reflected (symmetric); std '
  "is at least a quarter of the slice's; docs/export.md has the code",
}
# Side of the window of `local`, in pixels. It is applied twice, so that pixels
# count the less, the farther away, up to 128 pixels.
_WINDOW = 129
# The least standard deviation of a neighbourhood, as a share of the slice's:
# the noise of an empty region stays small.
LEAST_SHARE = 0.25
# Pixels of a slice that are summed up at once: 32 MiB in float64.
_BAND = 2**22
# Pixels that are read at once, of one or several slices.
_READ = 2**25


def check(method: str, dtype: Any, name: str, trained: str = '') -> None:
  """Checks that a stack can be normalised in this way.

  Args:
    method: one of `config.NORMALISATIONS`, the field `data.normalise`.
    dtype: of the stack.
    name: of the stack, for the message.
    trained: dtype of the stack that the network was trained on; '': unknown.

  Raises:
    InputError: `range` of a stack of floats, or of another type than that of
      the training.
  """
  if method == 'range' and np.dtype(dtype).kind != 'u':
    raise errors.InputError(
      f'data.normalise is range, but {name} has dtype {np.dtype(dtype)}, whose '
      'grey values have no fixed range: convert it to uint8 or uint16, or '
      'train with data.normalise=slice.'
    )
  if method == 'range' and trained and np.dtype(dtype) != np.dtype(trained):
    raise errors.InputError(
      f'{name} has dtype {np.dtype(dtype)}, but the network was trained on '
      f'{trained} with data.normalise=range, for which the range of the type '
      f'counts: convert it to {trained}.'
    )


def prepare(
  image: volume.Stack, method: str = 'slice'
) -> tuple[volume.Stack, dict[str, np.ndarray]]:
  """A stack, and the `statistics` by which it is still to be normalised.

  Only `local` changes the stack, into float32 in memory; by its statistics,
  nothing is left to do.

  Raises:
    InputError: as `statistics`.
  """
  if method != 'local':
    return image, statistics(image, method)
  pages = np.empty(image.shape, np.float32)
  for z, page in enumerate(image):
    volume.check_finite(page, 'the image stack', z)
    pages[z] = _local(page)
  zeros = np.zeros(len(pages), np.float32)
  return pages, {'mean': zeros, 'std': zeros + 1}


def _local(page: np.ndarray) -> np.ndarray:
  """`[y, x]`, normalised around each pixel; beyond borders reflected."""

  def average(values: np.ndarray) -> np.ndarray:
    once = scipy.ndimage.uniform_filter(values, _WINDOW)
    return scipy.ndimage.uniform_filter(once, _WINDOW)

  # Around the mean, or squares would cancel.
  centred = page - page.mean(dtype=np.float64)
  mean = average(centred)
  # A constant slice becomes zeros.
  least = LEAST_SHARE * centred.std() or 1.0
  variance = average(np.square(centred)) - np.square(mean)
  return (centred - mean) / np.sqrt(np.maximum(variance, least**2))


def window_matrix(side: int) -> np.ndarray:
  """The filter of `local` along an axis of this length, as `[side, side]`."""
  once = scipy.ndimage.uniform_filter1d(np.eye(side), _WINDOW, axis=0)
  twice = scipy.ndimage.uniform_filter1d(once, _WINDOW, axis=0)
  return twice.astype(np.float32)


def statistics(
  image: volume.Stack, method: str = 'slice'
) -> dict[str, np.ndarray]:
  """What is subtracted from each slice, and then divides it.

  `local` has none, see `prepare`.

  With `slice`, uint8, uint16 and float32 stacks give equal inputs up to
  rounding. `range` reads no pixels.

  Returns:
    `mean` and `std`, each `[z]` float32: those of the slice's pixels, or, with
    `range`, both half the largest value of the integer type.

  Raises:
    InputError: NaN or infinite pixels; `range` of a stack of floats.
  """
  check(method, image.dtype, 'the image stack')
  if method == 'range':
    half = np.full(len(image), np.iinfo(image.dtype).max / 2, np.float32)
    return {'mean': half, 'std': half}
  if isinstance(image, stack_reader.SlicesOnDisk):
    table = read_statistics(image, range(len(image)))
  else:
    table = _statistics(image)
  return {'mean': table[:, 0], 'std': table[:, 1]}


def _statistics(image: np.ndarray) -> np.ndarray:
  rows = _band_rows(image.shape[1:])
  table = []
  for z, page in enumerate(image):
    volume.check_finite(page, 'the image stack', z)
    moments = _Moments()
    for y in range(0, len(page), rows):
      moments.add(page[y : y + rows])
    table.append(moments.values())
  return np.asarray(table, np.float32).reshape(-1, 2)


def read_statistics(
  reader: volume.StackReader | stack_reader.SlicesOnDisk, slices: range
) -> np.ndarray:
  """What `statistics` gives for slices, of which only bands are in memory.

  Returns:
    `[slices, 2]` float32: mean and standard deviation.

  Raises:
    InputError: NaN or infinite pixels, or pixels that cannot be read.
  """
  y, x = reader.shape[1:]
  rows = _band_rows((y, x))
  # Neighbours in the same chunks are read at once, and parts that are as tall
  # as the memory allows: no chunk is read twice, if it is not very large.
  depth = 1
  if isinstance(reader, stack_reader.SlicesOnDisk):
    depth = reader.depth
  each = max(depth, _READ // (y * x) // depth * depth)
  tall = max(rows, _READ // (each * x) // rows * rows)
  table = []
  for first in range(slices.start, slices.stop, each):
    group = range(first, min(first + each, slices.stop))
    moments = [_Moments() for _ in group]
    for top in range(0, y, tall):
      part = reader.read_part(group, range(top, min(top + tall, y)), range(x))
      volume.check_finite(part, str(reader.path), first, top)
      for one, page in zip(moments, part, strict=True):
        for start in range(0, len(page), rows):
          one.add(page[start : start + rows])
    table += [one.values() for one in moments]
  return np.asarray(table, np.float32).reshape(-1, 2)


def _band_rows(sides: Sequence[int]) -> int:
  """Rows of a slice that are summed up at once: all of a small one."""
  y, x = sides
  return y if y * x <= _BAND else 1 << max(0, (_BAND // x).bit_length() - 1)


class _Moments:
  """Mean and standard deviation of a slice, from its bands in their order."""

  def __init__(self):
    self._count, self._mean, self._variance = 0, 0.0, 0.0

  def add(self, band: np.ndarray) -> None:
    """Adds `[y, x]` by the formula of Chan, Golub and LeVeque."""
    self._count += band.size
    share = band.size / self._count
    delta = band.mean(dtype=np.float64) - self._mean
    variance = band.var(dtype=np.float64)
    self._mean += share * delta
    self._variance += share * (variance - self._variance)
    self._variance += share * (1 - share) * delta**2

  def values(self) -> tuple[float, float]:
    """Mean and standard deviation; 1 of a constant slice, whose input is 0."""
    return self._mean, float(np.sqrt(self._variance)) or 1.0
