"""Chooses the blocks in which a volume is predicted, from the memory."""

from collections.abc import Sequence
import dataclasses
import math
import resource
import sys

from skipnet_jax import errors
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import tiling as tiling_lib

Block = Sequence[int]  # Its sides z, y and x.

GB = 10**9
# A process has at least so many blocks of slices, if there are as many: a block
# is lost with a process that dies.
_LEAST = 8
# A block has at most so many slices, and its file so many bytes of pixels.
_DEEPEST = 16
_LARGEST = 2**28
# Bytes for each pixel of a slice while it is predicted, and while its cells
# are found: by a threshold, by multicut.
_PREDICTING = 20
_CELLS = {'': 0, 'threshold': 16, 'multicut': 60}
# The same of the float32 slices that are resampled, and of those brought back.
_RESAMPLING = 16
# The same while a slice is normalised around each pixel.
_LOCAL = 64
# Copies of what is read, and of an output while its file is written.
_COPIES = 2
# Bytes that the statistics of slices need, for each of a pixel and in all; and
# what libraries keep.
_STATISTICS = 2**26, 2**27
_KEPT = 2**27


@dataclasses.dataclass(frozen=True)
class Demand:
  """What the memory of a block depends on.

  Attributes:
    shape: (z, y, x) of the volume.
    itemsize: bytes of a pixel of the input.
    slices: of the network's input.
    tiling: of a slice on the network's grid.
    grid: on which the network predicts.
    outputs: bytes that are written for each pixel.
    cells: how cells are found: '', 'threshold' or 'multicut'.
    local: whether slices are normalised around each pixel.
  """

  shape: tuple[int, int, int]
  itemsize: int
  slices: int
  tiling: tiling_lib.Tiling
  grid: pixel_grid.Grid
  outputs: int = 4
  cells: str = ''
  local: bool = False

  @property
  def whole(self) -> bool:
    """Whether a block must have whole slices."""
    return bool(self.cells) or self.local

  def bytes_of(self, block: Block) -> int:
    """Memory that a block needs beside the program and its network."""
    z, y, x = (min(a, b) for a, b in zip(block, self.shape, strict=True))
    grid = self.grid
    window = grid.network_window((range(y), range(x)))
    padded = self.tiling.padded(grid.network)
    seen = math.prod(len(span) for span in window)
    read = math.prod(
      min(len(span) + 2 * tile, most)
      for span, tile, most in zip(window, self.tiling.tile, padded, strict=True)
    )
    itemsize = self.itemsize + 4 * self.local
    read *= _COPIES * (z + self.slices - 1) * itemsize
    each = max(_PREDICTING + _CELLS[self.cells], _LOCAL * self.local)
    found = each * seen + z * self.outputs * _COPIES * y * x
    statistics = _STATISTICS[0] * self.itemsize + _STATISTICS[1]
    if not grid.is_same:
      # The input, and a slice of it in float32 before and after smoothing.
      share = math.prod(grid.sides) / math.prod(grid.network)
      read += int(read * share)
      found += int((_RESAMPLING + 8 * share) * max(seen, y * x))
      statistics += int(statistics * share)
    return _KEPT + max(statistics, read + found)


def choose(demand: Demand, limit: float, used: int, shards: int) -> list[int]:
  """The largest block that fits the memory; whole slices, if they do.

  Args:
    demand: of the volume.
    limit: bytes of memory that may be used.
    used: bytes of it that the program and its network take.
    shards: number of processes that share the volume.

  Raises:
    InputError: not even the smallest one does.
  """
  z, y, x = demand.shape
  deepest = min(_DEEPEST, max(1, z // (_LEAST * shards)))
  parts = 1
  while True:
    sides = [
      -(-side // (parts * ome_zarr_writer.CHUNK)) * ome_zarr_writer.CHUNK
      for side in (y, x)
    ]
    depth = deepest
    while depth:
      block = [depth, *sides]
      small = depth == 1 or 4 * math.prod(block) <= _LARGEST
      if small and used + demand.bytes_of(block) <= limit:
        return block
      depth //= 2
    if demand.whole or max(sides) == ome_zarr_writer.CHUNK:
      check(demand, [1, *sides], limit, used)
    parts *= 2


def check(demand: Demand, block: Block, limit: float, used: int) -> None:
  """Refuses a block that does not fit the memory."""
  needed = used + demand.bytes_of(block)
  if needed > limit:
    remedy = f'give --memory_gb={math.ceil(needed / GB * 10) / 10:g}'
    if demand.cells:
      remedy += ', or leave out --segmentation, which needs whole slices'
    elif demand.local:
      remedy += ', as data.normalise=local needs whole slices'
    else:
      remedy += ' or a smaller --tile'
    what = ' x '.join(map(str, block))
    raise errors.InputError(
      f'--memory_gb is {limit / GB:g}, but a block of {what} pixels needs '
      f'{needed / GB:.2f} GB, of which the program and its network take '
      f'{used / GB:.2f}: {remedy}.'
    )


def peak_memory() -> int:
  """The most bytes of memory that this process has had so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else 1024 * peak
