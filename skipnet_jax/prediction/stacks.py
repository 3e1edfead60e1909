"""Predicts a stack slice by slice, from file to file."""

from collections.abc import Callable
import contextlib
import functools
import os
import sys

import numpy as np
import tqdm

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import labels as labels_lib
from skipnet_jax.data import normalisation
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction.cells import linking

Calibration = Callable[[np.ndarray], np.ndarray]


def progress(total: int, unit: str) -> tqdm.tqdm:
  """Shows a bar on standard error if that is a terminal."""
  return tqdm.tqdm(
    total=total, unit=unit, dynamic_ncols=True, disable=not sys.stderr.isatty()
  )


def predict_stack(
  predictor: inference.Predictor,
  source: volume.StackReader,
  output: str | os.PathLike,
  *,
  std_output: str | os.PathLike | None = None,
  segmentation: str | os.PathLike | None = None,
  segmenter: segmenters.Segmenter = segmenters.ByThreshold(0.5),  # noqa: B008
  link: bool = False,
  calibration: Calibration | None = None,
  tile: int = 0,
  overlap: int | None = None,
  overwrite: bool = False,
  log: Callable[[str], None] = lambda _: None,
) -> str:
  """Predicts a stack of any size; memory does not grow with its slices.

  The files appear when all slices are done. They keep the axes, the pixel size
  and its unit.

  Args:
    predictor: predicts and averages.
    source: an open stack.
    output: TIFF of probabilities, float32, 1 inside a cell, 0 on membranes.
    std_output: TIFF of their standard deviations, float32.
    segmentation: TIFF of labels: in every slice, the cells have numbers from 1,
      and their borders 0. The type is uint16, or uint32 if a slice has more
      than 65535 cells, or they have more numbers in all if `link`.
    segmenter: finds the cells.
    link: whether a cell has one number in all slices that it passes, see
      `linking.Linker`.
    calibration: maps the probabilities `[y, x]` of each slice, not their
      standard deviations; None: not mapped.
    tile: see `Predictor.tiling`.
    overlap: see `Predictor.tiling`.
    overwrite: whether existing files may be replaced.
    log: called with a message on tiles that overlap by less than the receptive
      field, and on slices of a single cell.

  Returns:
    Type of the labels; '' without `segmentation`.

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
  paths = [p for p in (output, std_output, segmentation) if p]
  files.check_outputs(paths, overwrite=overwrite, inputs=[source.path])
  with contextlib.ExitStack() as stack:

    def writer(path, dtype):
      return stack.enter_context(
        volume.StackWriter(
          path, source.shape, dtype, source.metadata, overwrite
        )
      )

    mean_out = writer(output, 'float32')
    std_out = writer(std_output, 'float32') if std_output else None
    labels_out = writer(segmentation, 'uint16') if segmentation else None
    for z, page in enumerate(source):
      volume.check_finite(page, str(source.path), z)
    size = source.shape[1:]
    tiling = predictor.tiling(size, tile, overlap, log)
    each = len(tiling.starts(size)) * predictor.count
    bar = stack.enter_context(progress(len(source) * each, 'prediction'))
    # Neighbours are wanted again by the next slice.
    read = functools.lru_cache(predictor.slices)(source.read)
    single = []
    linker = linking.Linker() if link else None
    for z in range(len(source)):
      around = sources.neighbours(np.asarray(z), len(source), predictor.slices)
      pages = np.stack([read(int(i)) for i in around])
      probability, std = predictor(pages, tiling, bar.update)
      mean = calibration(probability) if calibration else probability
      mean_out.write(mean)
      if std_out:
        std_out.write(std)
      if labels_out:
        regions = segmenter(probability, read(z))
        if regions.max() < 2:
          single.append(z)
        if linker:
          regions = linker(regions)
        if regions.max() > np.iinfo(np.uint16).max:
          labels_out.widen()
        labels_out.write(regions.astype(labels_out.dtype))
  if single:
    log(
      f'{segmentation} has only one region in slices '
      f'{labels_lib.ranges(single)} (counted from 0) {segmenter.remedy}.'
    )
  return labels_out.dtype.name if labels_out else ''
