"""Predicts a volume larger than the memory: begins, resumes, shares, ends."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import math
import os
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks as blocks_lib
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import cell_volumes
from skipnet_jax.prediction import disk_space
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction import slabs as slabs_lib
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.prediction import volume_outputs
from skipnet_jax.prediction.cells import measurements

Path = str | os.PathLike[str]

# What of the memory of segmenters is known.
_CELLS = {segmenters.ByThreshold: 'threshold', segmenters.ByEdges: 'multicut'}


@dataclasses.dataclass(frozen=True)
class Shards:
  """Which part of a volume this process predicts.

  Attributes:
    number: of the part, from 0.
    count: of all parts.
    memory_gb: that may be used, in 10**9 bytes.
  """

  number: int = 0
  count: int = 1
  memory_gb: float = 4.0

  def __post_init__(self):
    if self.count < 1 or not 0 <= self.number < self.count:
      raise errors.InputError(
        f'--shard_id is {self.number} and --num_shards is {self.count}: give '
        'at least 1 shard, and an id from 0 to one less than their number.'
      )
    if not 0 < self.memory_gb < float('inf'):
      raise errors.InputError(
        f'--memory_gb is {self.memory_gb:g}, but it must be above 0.'
      )


def predict_volume(
  predictor: inference.Predictor,
  source: volume.StackReader,
  output: Path,
  settings: Mapping[str, Any],
  *,
  std_output: Path | None = None,
  cells: cell_files.CellFiles | None = None,
  grid: pixel_grid.Grid | None = None,
  calibration: Callable[[np.ndarray], np.ndarray] | None = None,
  tile: int = 0,
  overlap: int | None = None,
  version: str = ome_zarr_metadata.VERSIONS[0],
  shards: Shards = Shards(),
  log: Callable[[str], None] = lambda _: None,
) -> str:
  """Predicts a volume of any size into OME-Zarr.

  The probabilities have the bits of `stacks.predict_stack`. Blocks that are on
  the disk are not predicted again, so that the same command resumes.

  Args:
    predictor: predicts and averages.
    source: an open stack.
    output: folder of probabilities, see `stacks.predict_stack`.
    settings: from `volume_outputs.settings_of`.
    std_output: folder of their standard deviations.
    cells: finds the cells, in whole slices. Its labels, uint32, and its
      overlay are folders; its table is written, and the cells are linked, when
      all slabs are finished. Both need the labels.
    grid: on which the network predicts; None: the input's.
    calibration: see `stacks.predict_stack`.
    tile: see `Predictor.tiling`.
    overlap: see `Predictor.tiling`.
    version: of OME-Zarr.
    shards: which part is predicted, and within which memory.
    log: see `stacks.predict_stack`.

  Returns:
    A sentence on what is finished.

  Raises:
    InputError: files that cannot be read or written, an output with other
      settings, too little memory or space on the disk, more shards than slabs;
      and as `stacks.predict_stack`, of pixels that are not finite when they are
      read.
  """
  if len(source) < predictor.slices:
    raise errors.InputError(
      f'{source.path} has {len(source)} slice(s), but the network needs '
      f'{predictor.slices} at a time: give a larger volume.'
    )
  normalisation.check(predictor.normalise, source.dtype, str(source.path))
  grid = grid or pixel_grid.Grid(source.shape[1:], source.shape[1:])
  outputs = volume_outputs.outputs(output, std_output, cells)
  table = cells.measure if cells else None
  volume_outputs.check_paths(outputs, source.path, table)
  given = dict(settings) | {
    'shape': source.shape,
    'axes': source.metadata.get('axes', 'ZYX'),
    'dtype': source.dtype.name,
    'network_sides': grid.network,
    'tile': tile,
    'overlap': overlap,
    'ome_zarr': version,
  }
  given = json.loads(json.dumps(given))
  block = volume_outputs.begun(outputs, given)
  if cells and cells.measure and block is None:
    cell_volumes.check_table(cells.measure)
  if cells and block is not None:
    volume_outputs.check_whole(output, block, source.shape)
  slabs = len(source) if block is None else -(-len(source) // block[0])
  if shards.count > slabs:
    raise errors.InputError(
      f'--num_shards is {shards.count}, but {output} has {slabs} blocks of '
      f'slices: give at most {slabs}.'
    )

  @functools.cache
  def planned() -> tuple[tiling_lib.Tiling, blocks_lib.Demand, int]:
    tiling = predictor.tiling(grid.network, tile, overlap, log)
    kind = type(cells.segmenter) if cells else None
    demand = blocks_lib.Demand(
      source.shape,
      source.dtype.itemsize,
      predictor.slices,
      tiling,
      grid,
      outputs=sum(output.bytes for output in outputs),
      cells='' if kind is None else _CELLS.get(kind, 'multicut'),
      local=predictor.normalise == 'local',
    )
    predictor.compile(tiling)
    return tiling, demand, blocks_lib.peak_memory()

  limit = shards.memory_gb * blocks_lib.GB
  was_begun = block is not None
  if block is None:
    # The coarser levels have a third of the pixels of the finest one.
    pixels = math.prod(source.shape) * 4 // 3
    disk_space.check({o.path: pixels * o.bytes for o in outputs}, log)
    _, demand, used = planned()
    block = blocks_lib.choose(demand, limit, used, shards.count)
  writers: dict[str, ome_zarr_writer.VolumeWriter] = {}
  linked = None
  for each in outputs:
    wanted = given | {'holds': each.holds, 'block': block}
    colours = each.dtype == np.uint8
    found = ome_zarr_metadata.begin(
      each.path, wanted, source.metadata, version, colours
    )
    if not writers:
      # That of another process, where it began first.
      block = wanted['block'] = found['block']
      if cells:
        volume_outputs.check_whole(output, block, source.shape)
    volume_outputs.check_same(each.path, found, wanted)
    statistics = not writers and predictor.normalise == 'slice'
    writer = ome_zarr_writer.VolumeWriter(
      each.path, each.dtype, statistics=statistics
    )
    if each.kind == 'cells' and cells and cells.link:
      linked = writer
      if _finished([writer]) < writer.slabs:
        writer = ome_zarr_writer.VolumeWriter(each.path, each.dtype, draft=True)
    writers[each.kind] = writer
  main = writers['probabilities']
  mine = range(shards.number, main.slabs, shards.count)
  pending = [
    slab
    for slab in mine
    if not all(w.is_finished(slab) for w in writers.values())
  ]
  if pending:
    if cells and cells.measure:
      cell_volumes.check_table(cells.measure)
    if was_begun:
      left = {w.path: w.missing_bytes() for w in writers.values()}
      disk_space.check(left, log)
    tiling, demand, used = planned()
    blocks_lib.check(demand, main.block, limit, used)
    work = slabs_lib.SlabPredictor(
      predictor,
      source,
      grid,
      tiling,
      writers,
      cells=cells,
      calibration=calibration,
    )
    work.run(pending, log)
  done = _finished([*writers.values()])
  line = (
    f'{output}: {done} of {main.slabs} blocks of {main.block[0]} slices are '
    'finished'
  )
  if not cells or not (cells.link or cells.measure):
    return line
  if done < main.slabs:
    return f'{line}; cells are linked and measured when all are'
  with main.claim(None) as is_mine:
    if not is_mine:
      return f'{line}; another process links and measures their cells just now'
    if linked:
      cell_volumes.link(writers['cells'], linked)
    if cells.measure:
      cell_volumes.measure(
        linked or writers['cells'],
        cells.measure,
        measurements.Measurements(cells.link, cells.pixel_size),
      )
  return line


def _finished(writers: Sequence[ome_zarr_writer.VolumeWriter]) -> int:
  """How many slabs are finished in all of them."""
  return sum(
    all(writer.is_finished(slab) for writer in writers)
    for slab in range(writers[0].slabs)
  )
