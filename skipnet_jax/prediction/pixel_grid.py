"""Resamples slices to the pixel size of a network's training, and back."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from skipnet_jax import config
from skipnet_jax import errors
from skipnet_jax.data import pixel_size as pixel_size_lib
from skipnet_jax.data import stack_reader
from skipnet_jax.runs import trained

# Sizes that differ by less count as equal: training varies them by more.
_TOLERANCE = 0.02
# A side is made at most so many times as long: in larger pixels than four of
# training's, a membrane cannot be seen.
_LARGEST_FACTOR = 4


@dataclasses.dataclass(frozen=True)
class Grid:
  """The pixels of an input, and those on which the network predicts.

  Attributes:
    sides: y and x of a slice of the input.
    network: y and x of the slice that the network sees.
  """

  sides: tuple[int, int]
  network: tuple[int, int]

  def to_network(self, page: np.ndarray) -> np.ndarray:
    """Resamples a slice, `[y, x]` of grey values; keeps its dtype."""
    if self.sides == self.network:
      return page
    found = _resize(page, self.network)
    if np.issubdtype(page.dtype, np.integer):
      found = np.rint(found)
    return found.astype(page.dtype, copy=False)

  def from_network(self, values: np.ndarray) -> np.ndarray:
    """Brings `[y, x]` float32 of the network's grid back by interpolation."""
    return values if self.sides == self.network else _resize(values, self.sides)

  def labels_from_network(self, labels: np.ndarray) -> np.ndarray:
    """Brings numbers of cells back: each pixel has that of the nearest one."""
    rows, columns = (
      ((np.arange(side) + 0.5) * other / side).astype(int)
      for side, other in zip(self.sides, self.network, strict=True)
    )
    return labels[rows[:, None], columns]


def _resize(page: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
  """Linear interpolation, after smoothing where pixels become larger."""
  # Imported late: a training need not wait for it.
  from skimage import transform

  return transform.resize(
    page.astype(np.float32),
    sides,
    order=1,
    mode='symmetric',
    anti_aliasing=True,
    preserve_range=True,
  )


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
    return same, (
      f'Nothing is resampled: {source.path} says no pixel size, so it is taken '
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
