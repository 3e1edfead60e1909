"""What is written of the cells of a stack: labels, a picture, a table.

Of a volume, `slabs` and `cell_volumes` write them block by block.
"""

import contextlib
import os
import pathlib
from typing import BinaryIO

import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import labels as labels_lib
from skipnet_jax.data import stack_reader
from skipnet_jax.data import volume
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction.cells import linking
from skipnet_jax.prediction.cells import measurements
from skipnet_jax.prediction.cells import overlay as overlay_lib

Path = str | os.PathLike[str]


class CellFiles:
  """Finds the cells of slices, one after the other, and writes files of them.

  Args:
    segmentation: TIFF of labels: in every slice, the cells have numbers from 1,
      and their borders 0. The type is uint16, or uint32 if a slice has more
      than 65535 cells, or they have more numbers in all if `link`. None, as for
      the other two: not written.
    overlay: PNG for one slice, or TIFF: the image with the borders of its
      cells.
    measure: CSV of areas and centroids, see `measurements.Measurements`.
    segmenter: finds the cells.
    link: whether a cell has one number in all slices that it passes, see
      `linking.Linker`.
    pixel_size: sides y and x of the input's pixels in nanometres; None:
      unknown.

  Attributes:
    segmentation: the argument, as the five below.
    overlay: see there.
    measure: see there.
    segmenter: see there.
    link: see there.
    pixel_size: see there.
  """

  def __init__(
    self,
    segmentation: Path | None = None,
    overlay: Path | None = None,
    measure: Path | None = None,
    *,
    segmenter: segmenters.Segmenter = segmenters.ByThreshold(0.5),  # noqa: B008
    link: bool = False,
    pixel_size: tuple[float, float] | None = None,
  ):
    self.segmentation, self.overlay = segmentation, overlay
    self.measure = measure
    self.segmenter, self.link, self.pixel_size = segmenter, link, pixel_size
    self._linker = linking.Linker() if link else None
    self._measured = measurements.Measurements(link, pixel_size)
    self._single: list[int] = []
    self._labels: volume.StackWriter | None = None
    self._overlay: volume.StackWriter | volume.PngWriter | None = None
    self._table: BinaryIO | None = None
    self._slices = 0

  @property
  def paths(self) -> list[Path]:
    """The files that are written."""
    paths = self.segmentation, self.overlay, self.measure
    return [path for path in paths if path]

  def sizes(self, pixels: int) -> dict[pathlib.Path, int]:
    """Bytes of the TIFFs of a stack of so many pixels, but for their heads."""
    files = (self.segmentation, 2), (self.overlay, 3)
    return {
      pathlib.Path(path): each * pixels
      for path, each in files
      if path and pathlib.Path(path).suffix.lower() != '.png'
    }

  def open(
    self,
    stack: contextlib.ExitStack,
    source: stack_reader.StackReader,
    overwrite: bool,
  ) -> None:
    """Opens the files, which appear at the end of `stack`.

    Raises:
      InputError: one cannot be written.
    """
    segmentation, overlay = self.segmentation, self.overlay
    if overlay:
      suffix = pathlib.Path(overlay).suffix.lower()
      if suffix not in ('.png', '.tif', '.tiff'):
        raise errors.InputError(
          f'cannot write {overlay}: its name must end in .png (one slice), '
          '.tif or .tiff'
        )
      if suffix == '.png' and len(source) > 1:
        raise errors.InputError(
          f'cannot write {overlay}: a PNG has one slice, but {source.path} has '
          f'{len(source)}; choose a name that ends in .tif'
        )
      if suffix == '.png':
        writer = volume.PngWriter(overlay, overwrite)
        self._overlay = stack.enter_context(writer)
      else:
        self._overlay = stack.enter_context(
          volume.StackWriter(
            overlay, (*source.shape, 3), 'uint8', source.metadata, overwrite
          )
        )
    if segmentation:
      self._labels = stack.enter_context(
        volume.StackWriter(
          segmentation, source.shape, 'uint16', source.metadata, overwrite
        )
      )
    if self.measure:
      self._table = stack.enter_context(
        volume.replacing(pathlib.Path(self.measure), ('.csv',), overwrite)
      )

  def add(
    self,
    probability: np.ndarray,
    image: np.ndarray,
    page: np.ndarray,
    grid: pixel_grid.Grid,
  ) -> None:
    """Adds the next slice.

    Args:
      probability: `[y, x]` float32, not calibrated, on the network's grid.
      image: `[y, x]` on the network's grid.
      page: `[y, x]` as in the input.
      grid: both grids.
    """
    regions = self.find(self._slices, probability, image, grid)
    self._slices += 1
    if self._linker:
      regions = self._linker(regions)
    if self._labels:
      if regions.max() > np.iinfo(np.uint16).max:
        self._labels.widen()
      self._labels.write(regions.astype(self._labels.dtype))
    if self._overlay:
      self._overlay.write(overlay_lib.draw(page, regions))
    if self._table:
      self._measured.add(regions)

  def find(
    self,
    z: int,
    probability: np.ndarray,
    image: np.ndarray,
    grid: pixel_grid.Grid,
  ) -> np.ndarray:
    """Numbers the cells of slice z, not linked; for the rest, see `add`."""
    regions = self.segmenter(probability, image, grid)
    if regions.max() < 2:
      self._single.append(z)
    return regions

  def finish(self) -> None:
    """Writes the table; call it after the last slice."""
    if self._table:
      text = files.to_csv(self._measured.columns, self._measured.rows())
      self._table.write(text.encode())

  def describe(self) -> list[str]:
    """Lines about the written files."""
    what = 'cells through the slices' if self.link else 'each slice'
    how = self.segmenter.how
    lines = []
    if self.segmentation:
      dtype = self._labels.dtype.name if self._labels else 'uint32'
      lines.append(
        f'{self.segmentation}: {dtype} labels of {what}, 0 on borders, {how}'
      )
    if self.overlay:
      lines.append(
        f'{self.overlay}: the image with the borders of its cells, {how}'
      )
    if self.measure:
      lines.append(f'{self.measure}: areas and centroids of {what}, {how}')
    if self._single:
      lines.append(
        f'{self.paths[0]} has only one region in slices '
        f'{labels_lib.ranges(self._single)} (counted from 0) '
        f'{self.segmenter.remedy}.'
      )
    return lines
