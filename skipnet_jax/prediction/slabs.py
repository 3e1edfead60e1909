"""Predicts blocks of a volume and writes them, one after the other."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from skipnet_jax.data import data_set
from skipnet_jax.data import labels
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import progress as progress_lib
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.prediction.cells import overlay


class SlabPredictor:
  """Predicts slabs: blocks of slices, whole or in parts.

  Args:
    predictor: predicts and averages.
    source: the input.
    grid: on which the network predicts.
    tiling: of slices of that grid.
    writers: of 'probabilities', and of what else is wanted: 'std', 'cells',
      'overlay'.
    cells: finds them, if they or the overlay are wanted.
    calibration: see `stacks.predict_stack`.
  """

  def __init__(
    self,
    predictor: inference.Predictor,
    source: volume.StackReader,
    grid: pixel_grid.Grid,
    tiling: tiling_lib.Tiling,
    writers: Mapping[str, ome_zarr_writer.VolumeWriter],
    *,
    cells: cell_files.CellFiles | None,
    calibration: Callable[[np.ndarray], np.ndarray] | None,
  ):
    self._predictor, self._grid, self._tiling = predictor, grid, tiling
    # What the network sees, and the input.
    self._source = self._input = source
    if not grid.is_same:
      self._source = pixel_grid.Resampled(source, grid)
    self._writers, self._main = writers, writers['probabilities']
    self._cells, self._calibration = cells, calibration

  def run(self, slabs: Sequence[int], log: Callable[[str], None]) -> None:
    """Predicts slabs, but for those that another process is at."""
    main = self._main
    todo = {slab: self._missing(slab) for slab in slabs}
    parts = {
      slab: self._predictor.count
      * len(main.slices(slab))
      * sum(len(self._touching(block)[0]) for block in missing)
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
          for writer in self._writers.values():
            writer.write_coarser(slab)

  def _missing(self, slab: int) -> list[tiling_lib.Window]:
    return [
      block
      for block in self._main.blocks()
      if not all(w.is_written(slab, block) for w in self._writers.values())
    ]

  def _statistics(self, slab: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the slices that a slab needs.

    Returns:
      Numbers of the slices that each slice needs, `[z, slices]`; mean and
      standard deviation of all slices of the volume, `[z, 2]` float32, NaN of
      those that are not needed.
    """
    main, method = self._main, self._predictor.normalise
    own = main.slices(slab)
    around = data_set.neighbours(
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
    block: tiling_lib.Window,
    around: np.ndarray,
    statistics: np.ndarray,
    advance: Callable[[], object],
  ) -> None:
    """Predicts one block of a slab and writes it."""
    shape = (len(around), *(len(span) for span in block))
    found = {
      kind: np.empty((*shape, *(3,) * (kind == 'overlay')), writer.dtype)
      for kind, writer in self._writers.items()
    }
    first = int(around.min())
    slices = range(first, int(around.max()) + 1)
    pages, pixels = self._read(slices, block)
    images = (
      (pixels[n - first], {'mean': statistics[n, 0], 'std': statistics[n, 1]})
      for n in around
    )
    averages = self._predictor.predict_windows(
      images,
      self._tiling,
      self._grid.network,
      self._grid.network_window(block),
      advance,
    )
    for at, (probability, deviation) in enumerate(averages):
      inside = self._grid.from_network(probability, block)
      found['probabilities'][at] = (
        self._calibration(inside) if self._calibration else inside
      )
      if 'std' in found:
        found['std'][at] = self._grid.from_network(deviation, block)
      if self._cells:
        z = self._main.slices(slab)[at]
        page = pages[around[at, around.shape[1] // 2] - first]
        cells = self._cells.find(z, probability, page, self._grid)
        if 'cells' in found:
          found['cells'][at] = cells
        if 'overlay' in found:
          page = page if self._grid.is_same else self._input.read(z)
          found['overlay'][at] = overlay.draw(page, cells)
    del pages, pixels
    for kind, writer in self._writers.items():
      writer.write(slab, block, found[kind])

  def _touching(
    self, block: tiling_lib.Window
  ) -> tuple[list[tuple[int, int]], tiling_lib.Window]:
    """The tiles that a block needs, see `Tiling.touching`."""
    window = self._grid.network_window(block)
    return self._tiling.touching(self._grid.network, window)

  def _read(
    self, slices: range, block: tiling_lib.Window
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the tiles of a block lie on, each `[z, y, x]`, resampled.

    Returns:
      Grey values of whole slices if the block has these, else of a part; what
      `Predictor.predict_window` takes.
    """
    _, box = self._touching(block)
    size = self._grid.network
    padded = self._tiling.padded(size)
    reads, places = [], []
    for span, side, longer in zip(box, size, padded, strict=True):
      # The slice, continued by reflection.
      index = np.pad(np.arange(side), (0, longer - side), 'symmetric')
      index = index[span.start : span.stop]
      reads.append(range(int(index.min()), int(index.max()) + 1))
      places.append(index - index.min())
    found = self._source.read_part(slices, *reads)
    pixels: np.ndarray = found
    if self._predictor.normalise == 'local':
      places_of = slices.start, *(span.start for span in reads)
      volume.check_finite(found, str(self._input.path), *places_of)
      pages, _ = normalisation.prepare(found, 'local')
      pixels = np.asarray(pages)
    rows, columns = places
    if pixels.shape[1:] != (len(rows), len(columns)):
      pixels = pixels[:, rows[:, None], columns]
    return found, pixels
