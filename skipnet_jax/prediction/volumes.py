"""Predicts a volume block by block, in one process or in several."""

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
from skipnet_jax.data import labels
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks as blocks_lib
from skipnet_jax.prediction import calibration as calibration_lib
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import progress as progress_lib
from skipnet_jax.prediction import segmenters
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
    grid: on which the network predicts; it must be the input's.
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
      settings, an input to be resampled, too little memory, more shards than
      slabs; and as `stacks.predict_stack`.
  """
  if len(source) < predictor.slices:
    raise errors.InputError(
      f'{source.path} has {len(source)} slice(s), but the network needs '
      f'{predictor.slices} at a time: give a larger volume.'
    )
  normalisation.check(predictor.normalise, source.dtype, str(source.path))
  if grid and grid.network != grid.sides:
    raise errors.InputError(
      f'{source.path} would be resampled to {grid.network[0]} x '
      f'{grid.network[1]} pixels, which is not done in blocks: give a --level '
      'of the pixel size of training, or that size as --pixel_size to resample '
      'nothing.'
    )
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
    tiling = predictor.tiling(source.shape[1:], tile, overlap, log)
    kind = type(segmenter) if segmentation else None
    demand = blocks_lib.Demand(
      source.shape,
      source.dtype.itemsize,
      predictor.slices,
      tiling,
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
    work = _Work(
      predictor,
      source,
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


class _Work:
  """Predicts slabs of a volume.

  Args:
    predictor: predicts and averages.
    source: the input.
    tiling: of its slices.
    writers: of the probabilities; of the standard deviations, if `has_std`; of
      the cells, if there is a segmenter.
    has_std: see there.
    segmenter: see there.
    calibration: see `predict_volume`.
  """

  def __init__(
    self,
    predictor: inference.Predictor,
    source: volume.StackReader,
    tiling: inference.Tiling,
    writers: Sequence[ome_zarr_writer.VolumeWriter],
    *,
    has_std: bool,
    segmenter: segmenters.Segmenter | None,
    calibration: Callable[[np.ndarray], np.ndarray] | None,
  ):
    self._predictor, self._source, self._tiling = predictor, source, tiling
    self._writers, self._has_std = writers, has_std
    self._segmenter, self._calibration = segmenter, calibration
    self._size = source.shape[1], source.shape[2]

  def run(self, slabs: Sequence[int], log: Callable[[str], None]) -> None:
    """Predicts slabs, but for those that another process is at."""
    main = self._writers[0]
    todo = {slab: self._missing(slab) for slab in slabs}
    parts = {
      slab: self._predictor.count
      * len(main.slices(slab))
      * sum(
        len(self._tiling.touching(self._size, block)[0]) for block in missing
      )
      for slab, missing in todo.items()
    }
    count = sum(len(main.slices(slab)) for slab in slabs)
    total = max(1, sum(parts.values()))
    with progress_lib.progress(count, total) as advance:
      for slab in slabs:
        with main.claim(slab) as mine:
          if not mine:
            log(
              f'Slices {labels.ranges(main.slices(slab))} (counted from 0) are '
              'left to another process, which predicts them just now.'
            )
            continue
          # Another process may have written some since.
          missing = self._missing(slab)
          if missing:
            around, statistics = self._statistics(slab)
            for block in missing:
              self._predict(slab, block, around, statistics, advance)
          for writer in self._writers:
            writer.write_coarser(slab)

  def _missing(self, slab: int) -> list[inference.Window]:
    return [
      block
      for block in self._writers[0].blocks()
      if not all(w.is_written(slab, block) for w in self._writers)
    ]

  def _statistics(self, slab: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the slices that a slab needs.

    Returns:
      Numbers of the slices that each slice needs, `[z, slices]`; mean and
      standard deviation of all slices of the volume, `[z, 2]` float32, NaN of
      those that are not needed.
    """
    main, method = self._writers[0], self._predictor.normalise
    own = main.slices(slab)
    around = sources.neighbours(
      np.arange(own.start, own.stop), len(self._source), self._predictor.slices
    )
    needed = range(int(around.min()), int(around.max()) + 1)
    found = np.full((len(self._source), 2), np.nan, np.float32)
    if method != 'slice':
      like = np.zeros((1, 1, 1), self._source.dtype)
      _, same = normalisation.prepare(like, method)
      found[:] = [same['mean'][0], same['std'][0]]
      return around, found
    found[needed.start : needed.stop] = main.read_statistics(needed)
    if np.isnan(found[own.start : own.stop]).any():
      values = normalisation.read_statistics(self._source, own)
      found[own.start : own.stop] = values
      main.write_statistics(slab, values)
    for z in needed:
      if np.isnan(found[z]).any():
        one = range(z, z + 1)
        found[z] = normalisation.read_statistics(self._source, one)[0]
    return around, found

  def _predict(
    self,
    slab: int,
    block: inference.Window,
    around: np.ndarray,
    statistics: np.ndarray,
    advance: Callable[[], object],
  ) -> None:
    """Predicts one block of a slab and writes it."""
    shape = (len(around), *(len(span) for span in block))
    probabilities = np.empty(shape, np.float32)
    stds = np.empty(shape, np.float32) if self._has_std else None
    cells = np.empty(shape, np.uint32) if self._segmenter else None
    first = int(around.min())
    slices = range(first, int(around.max()) + 1)
    pages, pixels = self._read(slices, block)
    for at, numbers in enumerate(around):
      mean, std = statistics[numbers].T
      probability, deviation = self._predictor.predict_window(
        pixels[numbers - first],
        {'mean': mean, 'std': std},
        self._tiling,
        self._size,
        block,
        advance,
      )
      probabilities[at] = (
        self._calibration(probability) if self._calibration else probability
      )
      if stds is not None:
        stds[at] = deviation
      if cells is not None and self._segmenter is not None:
        page = pages[numbers[len(numbers) // 2] - first]
        grid = pixel_grid.Grid(self._size, self._size)
        cells[at] = self._segmenter(probability, page, grid)
    del pages, pixels
    arrays = [a for a in (probabilities, stds, cells) if a is not None]
    for writer, array in zip(self._writers, arrays, strict=True):
      writer.write(slab, block, array)

  def _read(
    self, slices: range, block: inference.Window
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the tiles of a block lie on, each `[z, y, x]`.

    Returns:
      Grey values of whole slices if the block has these, else of a part; what
      `Predictor.predict_window` takes.
    """
    _, box = self._tiling.touching(self._size, block)
    padded = self._tiling.padded(self._size)
    reads, places = [], []
    for span, side, longer in zip(box, self._size, padded, strict=True):
      # The slice, continued by reflection.
      index = np.pad(np.arange(side), (0, longer - side), 'symmetric')
      index = index[span.start : span.stop]
      reads.append(range(int(index.min()), int(index.max()) + 1))
      places.append(index - index.min())
    found = self._source.read_part(slices, *reads)
    pixels: np.ndarray = found
    if self._predictor.normalise == 'local':
      pages, _ = normalisation.prepare(found, 'local')
      pixels = np.asarray(pages)
    rows, columns = places
    if pixels.shape[1:] != (len(rows), len(columns)):
      pixels = pixels[:, rows[:, None], columns]
    return found, pixels
