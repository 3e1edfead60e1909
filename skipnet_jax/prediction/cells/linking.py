"""Gives a cell the same number in all slices that it passes."""

import numpy as np

from skipnet_jax.scores import scores

# Pixels that are compared at once.
_BAND = 2**20


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
    found = np.zeros(len(numbers), bool)
    codes, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    # In bands: sorting needs many times the memory of a slice.
    band = max(1, _BAND // labels.shape[1])
    for top in range(0, len(labels), band):
      here = labels[top : top + band].astype(np.int64)
      found[here] = True
      if self._previous is not None:
        before = self._previous[top : top + band]
        both = (here > 0) & (before > 0)
        pairs = before[both].astype(np.int64) * len(numbers) + here[both]
        code, count = np.unique(pairs, return_counts=True)
        codes.append(code)
        counts.append(count)
    code, place = np.unique(np.concatenate(codes), return_inverse=True)
    shared = np.zeros(len(code), np.int64)
    np.add.at(shared, place, np.concatenate(counts))
    before, here = np.divmod(code, len(numbers))
    mutual = scores.largest_in_group(before, shared)
    mutual &= scores.largest_in_group(here, shared)
    numbers[here[mutual]] = before[mutual]
    new = np.flatnonzero(found[1:] & (numbers[1:] == 0)) + 1
    numbers[new] = self._count + 1 + np.arange(len(new))
    self._count += len(new)
    self._previous = numbers[labels]
    return self._previous

  def skip(self, linked: np.ndarray) -> None:
    """Takes the next slice as it is: it was linked before."""
    self._count = max(self._count, int(linked.max()))
    self._previous = linked
