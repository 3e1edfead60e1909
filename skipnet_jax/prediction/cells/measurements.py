"""Areas and centroids of cells, as a table."""

from typing import Any

import numpy as np

PER_SLICE = (
  *('slice', 'cell', 'area_pixels', 'area_nm2'),
  *('centroid_y', 'centroid_x'),
)
PER_CELL = (
  *('cell', 'slices', 'first_slice', 'last_slice', 'area_pixels', 'area_nm2'),
  *('centroid_slice', 'centroid_y', 'centroid_x'),
)


class Measurements:
  """Measures the cells of slices, one slice after the other.

  A row is a cell in a slice or, if `linked`, a cell in all of its slices: its
  area is then that of all slices together, and its centroid that of all its
  pixels. Slices, rows and columns of pixels count from 0; a centroid is in
  pixels of the image.

  Args:
    linked: whether a number is the same cell in all slices.
    pixel_size: sides y and x of a pixel in nanometres; None: not known, and
      areas in square nanometres are left empty.
  """

  def __init__(
    self, linked: bool = False, pixel_size: tuple[float, float] | None = None
  ):
    self._linked, self._pixel_size = linked, pixel_size
    # Of each slice: its number, and cell, area and centroid of its cells.
    self._slices: list[np.ndarray] = []

  @property
  def columns(self) -> tuple[str, ...]:
    """Names of the columns of `rows`."""
    return PER_CELL if self._linked else PER_SLICE

  def add(self, labels: np.ndarray) -> None:
    """Measures the next slice, `[y, x]` integers, 0 on borders."""
    # Imported late: a training need not wait for it.
    from skimage import measure

    found = measure.regionprops_table(
      labels, properties=('label', 'area', 'centroid')
    )
    columns = ('label', 'area', 'centroid-0', 'centroid-1')
    place = np.full(len(found['label']), len(self._slices))
    self._slices.append(
      np.stack([place, *(found[name] for name in columns)]).astype(np.float64)
    )

  def rows(self) -> list[list[Any]]:
    """A row for each cell, see `columns`; floats have three decimals."""
    z, cell, area, y, x = np.concatenate(
      [np.empty((5, 0)), *self._slices], axis=1
    )
    if not self._linked:
      return [
        [int(z[i]), int(cell[i]), *self._areas(area[i]), *_round(y[i], x[i])]
        for i in range(len(cell))
      ]
    numbers, index = np.unique(cell, return_inverse=True)
    count = np.bincount(index)
    total = np.bincount(index, area)
    middle = [np.bincount(index, area * axis) / total for axis in (z, y, x)]
    first, last = np.full((2, len(numbers)), len(self._slices))
    np.minimum.at(first, index, z.astype(int))
    last[:] = -1
    np.maximum.at(last, index, z.astype(int))
    return [
      [
        *(int(numbers[i]), int(count[i]), int(first[i]), int(last[i])),
        *self._areas(total[i]),
        *_round(*(axis[i] for axis in middle)),
      ]
      for i in range(len(numbers))
    ]

  def _areas(self, pixels: float) -> tuple[int, float | str]:
    """An area in pixels, and in square nanometres where that is known."""
    if self._pixel_size is None:
      return int(pixels), ''
    y, x = self._pixel_size
    return int(pixels), round(float(pixels * y * x), 3)


def _round(*values: float) -> list[float]:
  return [round(float(value), 3) for value in values]
