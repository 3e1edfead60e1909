"""A volume larger than the memory: what is begun, resumed, shared, refused."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import chunk_store
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks as blocks_lib
from skipnet_jax.prediction import calibration as calibration_lib
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import cell_volumes
from skipnet_jax.prediction import disk_space
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction import slabs as slabs_lib
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.prediction.cells import measurements
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
    'input_modified': _modified(path),
    'series': choice.series,
    'channel': choice.channel,
    'level': choice.level,
    'time': choice.time,
    'networks': [fitted.network_of(run) for run in runs],
    'averaging': averaging.name,
    'calibration': calibration.for_json() if calibration else None,
  }


def _modified(path: chunk_store.Place) -> str:
  """A text that changes with the files of an input; '' of a URL."""
  if chunk_store.is_url(path):
    return ''
  path = pathlib.Path(path)
  if ome_zarr.is_one(path):
    # Its chunks are too many.
    found = ome_zarr.descriptions(path)
  else:
    found = sorted(path.iterdir()) if path.is_dir() else [path]
  stats = [(file.name, file.stat()) for file in found]
  states = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
  return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


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
    settings: from `settings_of`.
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
  outputs = _outputs(output, std_output, cells)
  _check_paths(outputs, source.path, cells.measure if cells else None)
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
  block = _begun(outputs, given)
  if cells and cells.measure and block is None:
    cell_volumes.check_table(cells.measure)
  if cells and block is not None:
    _check_whole(output, block, source.shape)
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
        _check_whole(output, block, source.shape)
    _check_same(each.path, found, wanted)
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


@dataclasses.dataclass(frozen=True)
class _Output:
  """A volume that is written.

  Attributes:
    kind: see `slabs.SlabPredictor`.
    path: of its folder.
    holds: what it has, for its attributes.
    dtype: of its values.
  """

  kind: str
  path: pathlib.Path
  holds: str
  dtype: np.dtype

  @property
  def bytes(self) -> int:
    """Of a pixel."""
    return 3 if self.kind == 'overlay' else 4


def _outputs(
  output: Path, std_output: Path | None, cells: cell_files.CellFiles | None
) -> list[_Output]:
  """All of them; `InputError` for a name that none can have."""
  how = ''
  if cells:
    how = cells.segmenter.identity + ', linked' * cells.link
    if (cells.link or cells.measure) and not cells.segmentation:
      raise errors.InputError(
        f'with --output=NAME{SUFFIX}, --link and --measure read the labels '
        f'that are written: name a --segmentation=CELLS{SUFFIX} too.'
      )
  found = []
  for kind, path, holds, dtype in (
    ('probabilities', output, 'probabilities', np.float32),
    ('std', std_output, 'standard deviations', np.float32),
    ('cells', cells and cells.segmentation, f'cells {how}', np.uint32),
    ('overlay', cells and cells.overlay, f'borders of cells {how}', np.uint8),
  ):
    if not path:
      continue
    if not is_one(path):
      raise errors.InputError(
        f'cannot write {path}: with --output=NAME{SUFFIX}, every output must '
        f'be a local or shared folder whose name ends in {SUFFIX}.'
      )
    found.append(_Output(kind, pathlib.Path(path), holds, np.dtype(dtype)))
  return found


def is_one(path: Path) -> bool:
  """Whether a name of an output is that of a volume."""
  name = pathlib.Path(path).name
  return name.lower().endswith(SUFFIX) and not chunk_store.is_url(path)


# What of the memory of segmenters is known.
_CELLS = {segmenters.ByThreshold: 'threshold', segmenters.ByEdges: 'multicut'}


def _check_paths(
  outputs: Sequence[_Output], source: chunk_store.Place, table: Path | None
) -> None:
  """Refuses outputs, and a table, that lie in each other or in the input."""
  paths = [output.path for output in outputs]
  if table:
    paths.append(pathlib.Path(table))
    if paths[-1].suffix.lower() != '.csv':
      raise errors.InputError(
        f'cannot write {table}: its name must end in .csv'
      )
    # One that exists may be this command's own.
    files.check_outputs([table], overwrite=True)
  for path in paths:
    if not os.path.isdir(path.absolute().parent):
      raise errors.InputError(
        f'cannot write {path}: the folder {path.parent} does not exist; make '
        'it.'
      )
  real = [pathlib.Path(os.path.realpath(path)) for path in paths]
  if not chunk_store.is_url(source):
    real.append(pathlib.Path(os.path.realpath(source)))
  for path in real:
    if sum(path.is_relative_to(other) for other in real) > 1:
      raise errors.InputError(
        f'{path} is named twice, or lies in another input or output: give '
        'every volume a name and a folder of its own.'
      )


def _begun(
  outputs: Sequence[_Output], given: Mapping[str, Any]
) -> list[int] | None:
  """The block of outputs that exist; None if none does.

  Raises:
    InputError: one of them has other settings.
  """
  block = None
  for output in outputs:
    found = ome_zarr_metadata.read_settings(output.path)
    if found is not None:
      block = found.get('block') if block is None else block
      wanted = {**given, 'holds': output.holds, 'block': block}
      _check_same(output.path, found, wanted)
  return block


def _check_whole(
  output: Path, block: Sequence[int], shape: tuple[int, int, int]
) -> None:
  """Refuses to find cells in parts of a slice."""
  if block[1] < shape[1] or block[2] < shape[2]:
    raise errors.InputError(
      f'{output} was begun in blocks of {block[1]} x {block[2]} pixels, but '
      f'cells are found in whole slices, {shape[1]} x {shape[2]}: choose '
      'another --output, or finish it without cells.'
    )


def _check_same(
  path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  changed = config_identity.differences(dict(found), dict(wanted))
  if changed:
    raise errors.InputError(
      f'{path} was begun with other settings, {", ".join(changed)}: repeat the '
      'command that began it, choose another name, or remove it.'
    )
