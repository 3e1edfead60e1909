"""Gives a cell the same number in all slices that it passes."""

import numpy as np

from skipnet_jax.scores import scores


class Linker:
  """Renumbers slices, one after the other.

  A cell continues as the one of the next slice that overlaps it most, if it is
  also the one that overlaps that most; of equal overlaps, the lower number
  wins. All other cells end, or begin with a new number.
  """

  def __init__(self) -> None:
    self._previous: np.ndarray | None = None
    self._count = 0

  def __call__(self, labels: np.ndarray) -> np.ndarray:
    """The next slice, `[y, x]` int64, from labels of integers, 0 on borders."""
    numbers = np.zeros(int(labels.max()) + 1, np.int64)
    if self._previous is not None:
      both = (labels > 0) & (self._previous > 0)
      pairs, shared = np.unique(
        np.stack([self._previous[both], labels[both]]),
        axis=1,
        return_counts=True,
      )
      before, here = pairs
      mutual = scores.largest_in_group(before, shared)
      mutual &= scores.largest_in_group(here, shared)
      numbers[here[mutual]] = before[mutual]
    found = np.zeros(len(numbers), bool)
    found[np.unique(labels)] = True
    new = np.flatnonzero(found[1:] & (numbers[1:] == 0)) + 1
    numbers[new] = self._count + 1 + np.arange(len(new))
    self._count += len(new)
    self._previous = numbers[labels]
    return self._previous
