"""Resamples slices to the pixel size of a network's training, and back."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
from scipy import ndimage

from skipnet_jax import config
from skipnet_jax import errors
from skipnet_jax.data import pixel_size as pixel_size_lib
from skipnet_jax.data import stack_reader
from skipnet_jax.data import volume
from skipnet_jax.runs import trained

# Sizes that differ by less count as equal: training varies them by more.
_TOLERANCE = 0.02
# A side is made at most so many times as long: in larger pixels than four of
# training's, a membrane cannot be seen.
_LARGEST_FACTOR = 4
# A Gaussian ends after so many standard deviations.
_TRUNCATE = 4.0
# Pixels that are interpolated at once.
_BAND = 2**20

Sides = tuple[int, int]
Window = tuple[range, range]  # Rows and columns of a slice.


@dataclasses.dataclass(frozen=True)
class Grid:
  """The pixels of an input, and those on which the network predicts.

  Attributes:
    sides: y and x of a slice of the input.
    network: y and x of the slice that the network sees.
  """

  sides: Sides
  network: Sides

  @property
  def is_same(self) -> bool:
    """Whether nothing is resampled."""
    return self.sides == self.network

  def input_window(self, window: Window) -> Window:
    """The input's pixels that a window of the network's grid depends on."""
    if self.is_same:
      return window
    return _support(window, self.network, self.sides)

  def network_window(self, window: Window) -> Window:
    """The network's pixels that a window of the input's grid depends on."""
    if self.is_same:
      return window
    return _support(window, self.sides, self.network)

  def to_network(
    self, page: np.ndarray, window: Window | None = None
  ) -> np.ndarray:
    """Resamples a slice or a part of it; equal bits.

    Args:
      page: `[y, x]` of grey values, of the `input_window` of `window`.
      window: rows and columns of the network's grid; None: all.

    Returns:
      `[y, x]` of the window, of the same dtype.
    """
    if self.is_same:
      return page
    found = _resize(page, self.sides, self.network, window)
    if np.issubdtype(page.dtype, np.integer):
      found = np.rint(found)
    return found.astype(page.dtype, copy=False)

  def from_network(
    self, values: np.ndarray, window: Window | None = None
  ) -> np.ndarray:
    """Brings `[y, x]` float32 of the network's grid back by interpolation.

    Args:
      values: those of the `network_window` of `window`.
      window: rows and columns of the input's grid; None: all.
    """
    if self.is_same:
      return values
    return _resize(values, self.network, self.sides, window)

  def labels_from_network(self, labels: np.ndarray) -> np.ndarray:
    """Brings numbers of cells back: each pixel has that of the nearest one."""
    rows, columns = (
      ((np.arange(side) + 0.5) * other / side).astype(int)
      for side, other in zip(self.sides, self.network, strict=True)
    )
    return labels[rows[:, None], columns]


class Resampled(stack_reader.StackReader):
  """A stack on the network's grid, of which only parts are in memory."""

  def __init__(self, source: stack_reader.StackReader, grid: Grid):
    self._source, self._grid = source, grid
    self.path, self.dtype = source.path, source.dtype
    self.metadata = source.metadata
    self.shape = (len(source), *grid.network)

  def _read(self, z: int) -> np.ndarray:
    page = self._source.read(z)
    volume.check_finite(page, str(self.path), z)
    return self._grid.to_network(page)

  def read_part(self, slices: range, rows: range, columns: range) -> np.ndarray:
    """See `StackReader`."""
    window = rows, columns
    rows, columns = self._grid.input_window(window)
    pages = self._source.read_part(slices, rows, columns)
    places = slices.start, rows.start, columns.start
    volume.check_finite(pages, str(self.path), *places)
    return np.stack([self._grid.to_network(page, window) for page in pages])


def _sigmas(old: Sides, new: Sides) -> list[float]:
  """Of the smoothing along y and x where pixels become larger."""
  return [max(0.0, (o / n - 1) / 2) for o, n in zip(old, new, strict=True)]


def _support(window: Window, new: Sides, old: Sides) -> Window:
  """The pixels of sides `old` that a window of sides `new` depends on."""
  found = []
  for span, n, o, sigma in zip(
    window, new, old, _sigmas(old, new), strict=True
  ):
    radius = int(_TRUNCATE * sigma + 0.5) + 1
    first = int(np.floor((span.start + 0.5) * (o / n) - 0.5)) - radius
    last = int(np.floor((span.stop - 0.5) * (o / n) - 0.5)) + radius
    found.append(range(max(0, first), min(o, last + 1)))
  rows, columns = found
  return rows, columns


def _resize(
  page: np.ndarray, old: Sides, new: Sides, window: Window | None
) -> np.ndarray:
  """Linear interpolation, after smoothing where pixels become larger.

  Of a window and its `_support`, with the bits of the whole slice, which are
  those of `skimage.transform.resize`.
  """
  window = window or (range(new[0]), range(new[1]))
  smooth = ndimage.gaussian_filter(
    page.astype(np.float32), _sigmas(old, new), truncate=_TRUNCATE
  )
  places = []
  for span, n, o, have in zip(
    window, new, old, _support(window, new, old), strict=True
  ):
    place = (np.asarray(span) + 0.5) * (o / n) - 0.5
    # Reflected, as the smoothing has it.
    place = np.where(place < 0, -place - 1, place)
    low = np.floor(place).astype(int)
    share = 1 - (place - low)
    places.append(
      [
        (np.clip(at, 0, o - 1) - have.start, weight)
        for at, weight in ((low, share), (low + 1, 1 - share))
      ]
    )
  rows, columns = places
  found = np.empty([len(span) for span in window], np.float32)
  # In bands: the sum is in float64.
  band = max(1, _BAND // len(window[1]))
  for top in range(0, len(found), band):
    part = slice(top, top + band)
    found[part] = sum(
      smooth[y[part, None], x] * of_y[part, None] * of_x
      for y, of_y in rows
      for x, of_x in columns
    )
  return found


def input_pixel_size(
  source: stack_reader.StackReader, given: float | None
) -> tuple[float, float] | None:
  """Sides y and x of the input's pixels in nanometres; None: unknown.

  Args:
    source: the input.
    given: --pixel_size; None: what the file says counts.

  Raises:
    InputError: a given size that no pixel has.
  """
  if given is None:
    return pixel_size_lib.of_metadata(source.metadata)
  if not pixel_size_lib.is_plausible(given):
    raise errors.InputError(
      f'--pixel_size is {given:g}; it must be in nanometres, from '
      f'{config.SMALLEST_PIXEL} to {config.LARGEST_PIXEL:.0f}.'
    )
  return given, given


def choose(
  source: stack_reader.StackReader,
  runs: Sequence[trained.TrainedRun],
  given: float | None,
  multiple: int,
) -> tuple[Grid, str]:
  """The grid on which runs predict a stack, and a sentence that says so.

  Args:
    source: the input.
    runs: of the prediction.
    given: --pixel_size; None: what the file says counts.
    multiple: the least side of a slice that the network takes.

  Raises:
    InputError: a pixel size that cannot be, or with which the image would be
      too small or too large for the network; runs of several pixel sizes.
  """
  sides = source.shape[1:]
  same = Grid(sides, sides)
  size = input_pixel_size(source, given)
  first, *others = runs
  wanted = first.pixel_size
  for run in others:
    if not math.isclose(run.pixel_size, wanted, rel_tol=_TOLERANCE):
      raise errors.InputError(
        f'{first.path} and {run.path} were trained at pixels of '
        f'{_name(wanted)} and {_name(run.pixel_size)}: give runs of one pixel '
        'size.'
      )
  if not wanted:
    return same, (
      f'Nothing is resampled: the pixel size that {first.path} was trained at '
      'is not known (data.pixel_size).'
    )
  if size is None:
    why = pixel_size_lib.why_unknown(source.metadata)
    says = f'no pixel size that can be used ({why})' if why else 'no pixel size'
    return same, (
      f'Nothing is resampled: {source.path} says {says}, so it is taken '
      f'to be the {_name(wanted)} of training. If it is another, give '
      '--pixel_size in nanometres.'
    )
  origin = 'its file' if given is None else '--pixel_size'
  found = f'{source.path} has pixels of {_name(*size)} ({origin})'
  if all(math.isclose(s, wanted, rel_tol=_TOLERANCE) for s in size):
    return same, (
      f'Nothing is resampled: {found}, and {first.path} was trained at '
      f'{_name(wanted)}.'
    )
  factors = [s / wanted for s in size]
  y, x = (max(1, round(s * f)) for s, f in zip(sides, factors, strict=True))
  resampled = f'{found}: at the {_name(wanted)} of training, a slice has'
  remedy = (
    f'give the right --pixel_size, or --pixel_size={wanted:g} to resample '
    'nothing'
  )
  if max(factors) > _LARGEST_FACTOR:
    raise errors.InputError(
      f'{resampled} {y} x {x} pixels, and a side grows at most '
      f'{_LARGEST_FACTOR}-fold: {remedy}.'
    )
  if min(y, x) < multiple and min(factors) < 1:
    raise errors.InputError(
      f'{resampled} {y} x {x} pixels, and the network needs at least '
      f'{multiple} x {multiple}: {remedy}.'
    )
  return Grid(sides, (y, x)), (
    f'{resampled} {y} x {x} pixels instead of {sides[0]} x {sides[1]}. The '
    'results are brought back.'
  )


def _name(y: float, x: float | None = None) -> str:
  """A pixel size for a message."""
  if x is None or math.isclose(x, y, rel_tol=1e-3):
    return f'{y:.4g} nm' if y else 'an unknown size'
  return f'{y:.4g} x {x:.4g} nm'
