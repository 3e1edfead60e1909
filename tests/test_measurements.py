"""Areas and centroids against figures whose ones are known."""

import numpy as np
import pytest

from skipnet_jax.prediction.cells import measurements

Y, X = np.mgrid[:200, :300]


def disc(y, x, radius):
  return (Y - y) ** 2 + (X - x) ** 2 < radius**2


def page(**cells):
  labels = np.zeros(Y.shape, np.int32)
  for name, where in cells.items():
    labels[where] = int(name[1:])
  return labels


def test_discs_and_a_rectangle_in_each_slice():
  measured = measurements.Measurements(pixel_size=(4.0, 5.0))
  box = np.zeros(Y.shape, bool)
  box[10:20, 30:37] = True
  measured.add(page(_7=disc(60, 150.5, 40), _2=box))
  measured.add(np.zeros(Y.shape, np.int32))
  measured.add(page(_1=disc(100, 100, 30)))
  rectangle, large, small = (
    dict(zip(measured.columns, row, strict=True)) for row in measured.rows()
  )
  assert rectangle == {
    'slice': 0,
    'cell': 2,
    'area_pixels': 70,
    'area_nm2': 1400.0,
    'centroid_y': 14.5,
    'centroid_x': 33.0,
  }
  assert (large['cell'], small['slice'], small['cell']) == (7, 2, 1)
  for row, radius, y, x in ((large, 40, 60, 150.5), (small, 30, 100, 100)):
    assert row['area_pixels'] == pytest.approx(np.pi * radius**2, rel=0.01)
    assert row['area_nm2'] == 20 * row['area_pixels']
    assert (row['centroid_y'], row['centroid_x']) == (y, x)


def test_linked_cells_over_their_slices():
  measured = measurements.Measurements(linked=True)
  measured.add(page(_9=disc(50, 60, 20)))
  measured.add(page(_9=disc(50, 80, 20), _70000=disc(150, 200, 30)))
  measured.add(page(_70000=disc(150, 200, 30)))
  first, second = (
    dict(zip(measured.columns, row, strict=True)) for row in measured.rows()
  )
  area = first.pop('area_pixels')
  assert area == pytest.approx(2 * np.pi * 400, rel=0.01)
  assert first == {
    'cell': 9,
    'slices': 2,
    'first_slice': 0,
    'last_slice': 1,
    'area_nm2': '',
    'centroid_slice': 0.5,
    'centroid_y': 50.0,
    'centroid_x': 70.0,
  }
  assert [second[k] for k in ('cell', 'first_slice', 'last_slice')] == [
    *(70000, 1, 2)
  ]


@pytest.mark.parametrize('linked', [False, True])
def test_no_cell_is_a_table_without_rows(linked):
  measured = measurements.Measurements(linked)
  assert measured.rows() == []
  measured.add(np.zeros((4, 5), np.int32))
  assert measured.rows() == []
