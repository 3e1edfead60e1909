"""How slices are cut into tiles that a network predicts one by one."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools

import numpy as np

from skipnet_jax import errors

# Longest side of a slice, in pixels, that is predicted whole by default.
MAX_WHOLE = 1536
_DEFAULT_TILE = 1024
Window = tuple[range, range]  # Rows and columns of a slice.


def round_up(size: int, multiple: int) -> int:
  """The least multiple that is not below `size`."""
  return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a slice is cut into tiles, and how their predictions are weighted.

  Attributes:
    tile: sides y and x of a tile, in pixels, multiples of `multiple`.
    overlap: the least number of pixels that neighbouring tiles share.
    margin: pixels at an inner border of a tile with weight 0, because the
      border cuts their receptive field; less than half the overlap.
    multiple: the network's downsampling. Tiles start at multiples of it, so
      that pooling combines the same pixels as in a whole slice.
  """

  tile: tuple[int, int]
  overlap: int = 0
  margin: int = 0
  multiple: int = 32

  def padded(self, size: Sequence[int]) -> tuple[int, int]:
    """The sides to which a slice with the sides `size` is padded."""
    y, x = (
      max(tile, round_up(side, self.multiple))
      for side, tile in zip(size, self.tile, strict=True)
    )
    return y, x

  def starts(self, size: Sequence[int]) -> list[tuple[int, int]]:
    """Corners of the tiles that cover a slice with the sides `size`."""
    axes, m = [], self.multiple
    for side, tile in zip(self.padded(size), self.tile, strict=True):
      # A tile without a neighbour may be shorter than the overlap.
      step = max(m, (tile - self.overlap) // m * m)
      axes.append([*range(0, side - tile, step), side - tile])
    return list(itertools.product(*axes))

  def touching(
    self, size: Sequence[int], window: Window
  ) -> tuple[list[tuple[int, int]], Window]:
    """Corners of the tiles that some pixels of a window lie in.

    Args:
      size: sides of the slice.
      window: rows and columns of it.

    Returns:
      The corners, in the order of `starts`, and the rows and columns of all
      these tiles; some may lie beyond the slice, see `padded`.
    """
    found = [
      start
      for start in self.starts(size)
      if all(
        first < span.stop and span.start < first + tile
        for first, tile, span in zip(start, self.tile, window, strict=True)
      )
    ]
    (top, left), (bottom, right) = np.min(found, 0), np.max(found, 0)
    rows = range(int(top), int(bottom) + self.tile[0])
    return found, (rows, range(int(left), int(right) + self.tile[1]))

  def weight(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Weights of a tile's pixels, `[y, x]` float32: ramps at inner borders."""
    ramp = max(1, self.overlap - 2 * self.margin)
    axes = []
    for first, side, tile in zip(
      start, self.padded(size), self.tile, strict=True
    ):
      rising = np.clip((np.arange(tile) + 0.5 - self.margin) / ramp, 0, 1)
      axis = np.ones(tile)
      if first > 0:
        axis = axis * rising
      if first + tile < side:
        axis = axis * rising[::-1]
      axes.append(axis)
    return np.outer(*axes).astype(np.float32)


def choose(
  size: tuple[int, int],
  multiple: int,
  receptive_field: Callable[[], int | None],
  tile: int,
  overlap: int | None,
  log: Callable[[str], None],
) -> Tiling:
  """Chooses tile and overlap for slices with the sides `size`.

  Args:
    size: sides y and x, in pixels.
    multiple: both sides of a tile are multiples of it.
    receptive_field: finds how far it reaches, in pixels; None: over the whole
      slice. Only called where a slice has several tiles.
    tile: side of a tile; 0: whole slices up to MAX_WHOLE pixels, else 1024.
    overlap: pixels; None: from the receptive field, at most half a tile.
    log: called with a warning if tiles change the prediction.

  Raises:
    InputError: a tile or an overlap that does not fit.
  """
  m, longest = multiple, max(size)
  if tile % m or tile < 0:
    raise errors.InputError(
      f'--tile is {tile}, but it must be a multiple of {m}: give '
      f'{max(m, round(tile / m) * m)}, the nearest.'
    )
  side = tile or round_up(_DEFAULT_TILE if longest > MAX_WHOLE else longest, m)
  if overlap is not None and not 0 <= overlap <= side - m:
    raise errors.InputError(
      f'--overlap is {overlap}, but with tiles of {side} pixels it must be '
      f'from 0 to {side - m}.'
    )
  sides = (
    min(side, round_up(size[0], m)),
    min(side, round_up(size[1], m)),
  )
  if longest <= side:
    return Tiling(sides, multiple=m)
  reach, whole = receptive_field(), round_up(longest, m)
  if reach is None:
    overlap = min(side // 2, side - m) if overlap is None else overlap
    log(
      f'The receptive field is the whole slice: tiles of {side} pixels and '
      f'whole slices give different predictions. Pass --tile={whole} for '
      'whole slices.'
    )
    return Tiling(sides, overlap, overlap * 3 // 8, m)
  # The weights rise smoothly between margins of `reach` on both sides.
  exact = 2 * reach + m
  if overlap is None:
    overlap = min(exact, side // 2, side - m)
  if overlap >= exact:
    return Tiling(sides, overlap, reach, m)
  enough = max(side, round_up(exact + m, m))
  options = f'--tile={enough} --overlap={exact}'
  log(
    f'Tiles of {side} pixels overlap by {overlap}, but the receptive field '
    f'reaches {reach} pixels: predictions near tile borders may differ from '
    'those of whole slices. For equal predictions pass '
    f'{options if enough < whole else f"--tile={whole}"}.'
  )
  return Tiling(sides, overlap, min(reach, overlap * 3 // 8), m)
