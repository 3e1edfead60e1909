"""One number for a cell through the slices."""

import numpy as np

from skipnet_jax.prediction.cells import linking


def link(*slices):
  linker = linking.Linker()
  return [linker(np.array(each)).tolist() for each in slices]


def test_cells_continue_end_and_begin():
  found = link(
    [[3, 3, 3, 0, 1, 1]],
    # The numbers differ; a cell is new, and a border has moved.
    [[1, 1, 0, 5, 2, 2]],
    [[7, 7, 7, 0, 7, 7]],
  )
  assert found == [
    [[2, 2, 2, 0, 1, 1]],
    [[2, 2, 0, 3, 1, 1]],
    # Both overlap by two pixels: the lower number goes on.
    [[1, 1, 1, 0, 1, 1]],
  ]


def test_only_the_best_match_both_ways_counts():
  found = link(
    [[1, 1, 1, 1, 2, 2]],
    # 1 splits: its larger part goes on. 8 overlaps 2 most, but 9 does so more.
    [[5, 5, 5, 8, 9, 9]],
  )
  assert found == [[[1, 1, 1, 1, 2, 2]], [[1, 1, 1, 3, 2, 2]]]


def test_an_empty_slice_ends_all():
  found = link([[1, 2]], [[0, 0]], [[1, 2]])
  assert found == [[[1, 2]], [[0, 0]], [[3, 4]]]
