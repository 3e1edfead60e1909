"""A volume larger than the memory: what is begun, resumed, shared, refused."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.data import chunk_store
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks as blocks_lib
from skipnet_jax.prediction import calibration as calibration_lib
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction import slabs as slabs_lib
from skipnet_jax.runs import trained

Path = str | os.PathLike[str]
SUFFIX = '.zarr'


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


def settings_of(
  source: volume.StackReader,
  choice: volume.Choice,
  runs: Sequence[trained.TrainedRun],
  averaging: fitted.Averaging,
  calibration: calibration_lib.Calibration | None,
) -> dict[str, Any]:
  """What a prediction depends on, for the attributes of its volume."""
  path = source.path
  return {
    'input': path if chunk_store.is_url(path) else os.path.realpath(path),
    'series': choice.series,
    'channel': choice.channel,
    'level': choice.level,
    'time': choice.time,
    'networks': [fitted.network_of(run) for run in runs],
    'averaging': averaging.name,
    'calibration': calibration.for_json() if calibration else None,
  }


def predict_volume(
  predictor: inference.Predictor,
  source: volume.StackReader,
  output: Path,
  settings: Mapping[str, Any],
  *,
  std_output: Path | None = None,
  segmentation: Path | None = None,
  segmenter: segmenters.Segmenter = segmenters.ByThreshold(0.5),  # noqa: B008
  grid: pixel_grid.Grid | None = None,
  calibration: Callable[[np.ndarray], np.ndarray] | None = None,
  tile: int = 0,
  overlap: int | None = None,
  version: str = ome_zarr_writer.VERSIONS[0],
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
    settings: from `settings_of`.
    std_output: folder of their standard deviations.
    segmentation: folder of labels: in every slice, the cells have numbers from
      1, and their borders 0; uint32.
    segmenter: finds the cells, in whole slices.
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
      settings, too little memory, more shards than slabs; and as
      `stacks.predict_stack`.
  """
  if len(source) < predictor.slices:
    raise errors.InputError(
      f'{source.path} has {len(source)} slice(s), but the network needs '
      f'{predictor.slices} at a time: give a larger volume.'
    )
  normalisation.check(predictor.normalise, source.dtype, str(source.path))
  grid = grid or pixel_grid.Grid(source.shape[1:], source.shape[1:])
  for name in (output, std_output, segmentation):
    if name and (
      not str(name).lower().endswith(SUFFIX) or chunk_store.is_url(name)
    ):
      raise errors.InputError(
        f'cannot write {name}: with --output=NAME{SUFFIX}, every output must '
        f'be a local or shared folder whose name ends in {SUFFIX}.'
      )
  holds = {pathlib.Path(output): 'probabilities'}
  if std_output:
    holds[pathlib.Path(std_output)] = 'standard deviations'
  if segmentation:
    holds[pathlib.Path(segmentation)] = f'cells {segmenter.how}'
  count = 1 + bool(std_output) + bool(segmentation)
  _check_paths([*holds], count, source.path)
  given = dict(settings) | {
    'shape': source.shape,
    'dtype': source.dtype.name,
    'network_sides': grid.network,
    'tile': tile,
    'overlap': overlap,
    'ome_zarr': version,
  }
  given = json.loads(json.dumps(given))
  block = _begun(holds, given)
  slabs = len(source) if block is None else -(-len(source) // block[0])
  if shards.count > slabs:
    raise errors.InputError(
      f'--num_shards is {shards.count}, but {output} has {slabs} blocks of '
      f'slices: give at most {slabs}.'
    )

  @functools.cache
  def planned() -> tuple[inference.Tiling, blocks_lib.Demand, int]:
    tiling = predictor.tiling(grid.network, tile, overlap, log)
    kind = type(segmenter) if segmentation else None
    demand = blocks_lib.Demand(
      source.shape,
      source.dtype.itemsize,
      predictor.slices,
      tiling,
      grid,
      outputs=4 * count,
      cells='' if kind is None else _CELLS.get(kind, 'multicut'),
      local=predictor.normalise == 'local',
    )
    predictor.compile(tiling)
    return tiling, demand, blocks_lib.peak_memory()

  limit = shards.memory_gb * blocks_lib.GB
  if block is None:
    _, demand, used = planned()
    block = blocks_lib.choose(demand, limit, used, shards.count)
  writers: list[ome_zarr_writer.VolumeWriter] = []
  for path, held in holds.items():
    wanted = given | {'holds': held, 'block': block}
    found = ome_zarr_writer.begin(path, wanted, source.metadata, version)
    if not writers:
      # That of another process, where it began first.
      block = wanted['block'] = found['block']
    _check_same(path, found, wanted)
    writers.append(
      ome_zarr_writer.VolumeWriter(
        path,
        np.uint32 if held.startswith('cells') else np.float32,
        statistics=not writers and predictor.normalise == 'slice',
      )
    )
  main = writers[0]
  mine = range(shards.number, main.slabs, shards.count)
  pending = [
    slab for slab in mine if not all(w.is_finished(slab) for w in writers)
  ]
  if pending:
    tiling, demand, used = planned()
    blocks_lib.check(demand, main.block, limit, used)
    work = slabs_lib.SlabPredictor(
      predictor,
      source,
      grid,
      tiling,
      writers,
      has_std=bool(std_output),
      segmenter=segmenter if segmentation else None,
      calibration=calibration,
    )
    work.run(pending, log)
  done = sum(
    all(w.is_finished(slab) for w in writers) for slab in range(main.slabs)
  )
  return (
    f'{output}: {done} of {main.slabs} blocks of {main.block[0]} slices are '
    'finished'
  )


# What of the memory of segmenters is known.
_CELLS = {segmenters.ByThreshold: 'threshold', segmenters.ByEdges: 'multicut'}


def _check_paths(
  paths: Sequence[pathlib.Path], count: int, source: chunk_store.Place
) -> None:
  """Refuses outputs that lie in each other or in the input."""
  for path in paths:
    if not os.path.isdir(path.absolute().parent):
      raise errors.InputError(
        f'cannot write {path}: the folder {path.parent} does not exist; make '
        'it.'
      )
  real = [pathlib.Path(os.path.realpath(path)) for path in paths]
  if not chunk_store.is_url(source):
    real.append(pathlib.Path(os.path.realpath(source)))
    count += 1
  for path in real:
    inside = [other for other in real if path.is_relative_to(other)]
    if len(inside) > 1 or len(real) < count:
      raise errors.InputError(
        f'{path} is named twice, or lies in another input or output: give '
        'every volume a name and a folder of its own.'
      )


def _begun(
  holds: Mapping[pathlib.Path, str], given: Mapping[str, Any]
) -> list[int] | None:
  """The block of outputs that exist; None if none does.

  Raises:
    InputError: one of them has other settings.
  """
  block = None
  for path, held in holds.items():
    found = ome_zarr_writer.read_settings(path)
    if found is not None:
      block = found.get('block') if block is None else block
      _check_same(path, found, {**given, 'holds': held, 'block': block})
  return block


def _check_same(
  path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  changed = config_identity.differences(dict(found), dict(wanted))
  if changed:
    raise errors.InputError(
      f'{path} was begun with other settings, {", ".join(changed)}: repeat the '
      'command that began it, choose another name, or remove it.'
    )
