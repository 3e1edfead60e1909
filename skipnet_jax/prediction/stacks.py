"""Predicts a stack slice by slice, from file to file."""

from collections.abc import Callable
import contextlib
import functools
import math
import os
import pathlib

import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import data_set
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import volume
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import disk_space
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import progress as progress_lib

Calibration = Callable[[np.ndarray], np.ndarray]


def predict_stack(
  predictor: inference.Predictor,
  source: volume.StackReader,
  output: str | os.PathLike,
  *,
  std_output: str | os.PathLike | None = None,
  cells: cell_files.CellFiles | None = None,
  grid: pixel_grid.Grid | None = None,
  calibration: Calibration | None = None,
  tile: int = 0,
  overlap: int | None = None,
  overwrite: bool = False,
  log: Callable[[str], None] = lambda _: None,
) -> None:
  """Predicts a stack of any size.

  Memory does not grow with its slices, except for a table of its cells. The
  files appear when all slices are done. They keep the axes, the pixel size and
  its unit.

  Args:
    predictor: predicts and averages.
    source: an open stack.
    output: TIFF of probabilities, float32, 1 inside a cell, 0 on membranes.
    std_output: TIFF of their standard deviations, float32.
    cells: finds the cells and writes files of them; None: does not.
    grid: on which the network predicts; None: the input's.
    calibration: maps the probabilities `[y, x]` of each slice, not their
      standard deviations; None: not mapped.
    tile: see `Predictor.tiling`.
    overlap: see `Predictor.tiling`.
    overwrite: whether existing files may be replaced.
    log: called with a message on tiles that overlap by less than the receptive
      field.

  Raises:
    InputError: files that cannot be read or written, an output that is the
      input or lies in its folder, an invalid tile, pixels that are not finite
      or cannot be normalised, fewer slices than the network needs at a time;
      all before anything is compiled.
  """
  if len(source) < predictor.slices:
    raise errors.InputError(
      f'{source.path} has {len(source)} slice(s), but the network needs '
      f'{predictor.slices} at a time: give a larger stack.'
    )
  normalisation.check(predictor.normalise, source.dtype, str(source.path))
  grid = grid or pixel_grid.Grid(source.shape[1:], source.shape[1:])
  paths = [p for p in (output, std_output) if p]
  paths += cells.paths if cells else []
  files.check_outputs(paths, overwrite=overwrite, inputs=[source.path])
  ome_zarr.check_outside(paths, source.path)
  pixels = math.prod(source.shape)
  sizes = {pathlib.Path(p): 4 * pixels for p in (output, std_output) if p}
  disk_space.check_files(sizes | (cells.sizes(pixels) if cells else {}))
  with contextlib.ExitStack() as stack:

    def writer(path):
      return stack.enter_context(
        volume.StackWriter(
          path, source.shape, 'float32', source.metadata, overwrite
        )
      )

    mean_out = writer(output)
    std_out = writer(std_output) if std_output else None
    if cells:
      cells.open(stack, source, overwrite)
    for z, page in enumerate(source):
      volume.check_finite(page, str(source.path), z)
    tiling = predictor.tiling(grid.network, tile, overlap, log)
    each = len(tiling.starts(grid.network)) * predictor.count
    advance = stack.enter_context(
      progress_lib.progress(len(source), len(source) * each)
    )
    # Neighbours are wanted again by the next slice.
    read = functools.lru_cache(predictor.slices)(
      lambda z: grid.to_network(source.read(z))
    )
    around = data_set.neighbours(
      np.arange(len(source)), len(source), predictor.slices
    )
    images = (np.stack([read(int(i)) for i in slices]) for slices in around)
    averages = predictor.predict_slices(images, grid.network, tiling, advance)
    for z, (probability, std) in enumerate(averages):
      inside = grid.from_network(probability)
      mean_out.write(calibration(inside) if calibration else inside)
      if std_out:
        std_out.write(grid.from_network(std))
      if cells:
        cells.add(probability, read(z), source.read(z), grid)
    if cells:
      cells.finish()
