"""V_rand and V_info of a membrane segmentation.

The two scores of the ISBI 2012 challenge, equal to those of its own program:
the maximal foreground-restricted Rand and information theoretic scores after
border thinning, Arganda-Carreras et al. 2015. 1 and True are the inside of
cells, 0 and False the membrane.
"""

from collections.abc import Sequence
import concurrent.futures
import itertools
import time
from typing import Any

import numpy as np

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.scores import counting
from skipnet_jax.scores import pixels
from skipnet_jax.scores import thinning

# The challenge adds up 0.1, so the last threshold is 0.9999999999999999, and a
# prediction of exactly 1 exceeds it.
THRESHOLDS = tuple(itertools.accumulate(10 * [0.1], initial=0.0))

# Indices in counting.COLUMNS.
_RAND, _INFO = 0, 1


def score_stack(
  prediction: np.ndarray,
  inside: np.ndarray,
  thresholds: Sequence[float] = THRESHOLDS,
  workers: int | None = None,
) -> dict[str, Any]:
  """Scores a stack of predictions as the challenge does: `skipnet_jax.score`.

  A pixel is inside where prediction > threshold, in float64. The stack's score
  at a threshold is the mean over its slices. `v_rand` and `v_info` are the
  maxima over the thresholds, found separately; of equal scores, the threshold
  nearest to 0.5 counts. A threshold is ignored if the score of any slice is
  undefined there. The result does not depend on `workers`.

  Args:
    prediction: [z, y, x] or [y, x] float or bool, the probability 0..1 of the
      inside.
    inside: bool of the same shape, True inside.
    thresholds: numbers in 0..1.
    workers: number of threads; by default one per core.

  Returns:
    The content of a scores.json, None where a value is undefined:

    - `v_rand`, `v_info`, `threshold_v_rand`, `threshold_v_info`: the maxima.
    - `per_threshold`: dicts of `threshold` and the means of `v_rand`, `v_info`,
      `rand_merge`, `rand_split`, `info_merge`, `info_split`. Merge scores are
      precisions and split scores recalls, each averaged over the slices where
      it is defined.
    - `per_slice`: dicts of `slice`, the same six scores at the stack's two best
      thresholds, and `v_rand_per_threshold`, `v_info_per_threshold`.
    - `pixel`: see `pixels.pixel_scores`.
    - `seconds`: the duration of the scoring.

  Raises:
    InputError: shapes differ, a dtype or a value is not as above, or there is
      no threshold or no worker.

  Example:
    >>> import numpy as np
    >>> import skipnet_jax
    >>> label = np.ones((1, 32, 32), bool)
    >>> label[:, 15:17] = False  # A membrane between two cells.
    >>> result = skipnet_jax.score(0.9 * label.astype(np.float32), label)
    >>> result['v_rand'], result['threshold_v_rand']
    (1.0, 0.5)
  """
  started = time.perf_counter()
  prediction, inside = pixels.checked_stacks(prediction, inside)
  limits = np.asarray(thresholds, np.float64)
  valid = (limits >= 0) & (limits <= 1)
  if limits.ndim != 1 or not limits.size or not valid.all():
    raise errors.InputError(
      f'thresholds are {thresholds}, but must be one or more numbers in 0..1: '
      'omit them for the eleven of the challenge.'
    )
  # Containers often grant fewer cores than the machine has.
  workers = environment.usable_cores() if workers is None else workers
  if workers < 1:
    raise errors.InputError(
      f'workers is {workers}, but must be at least 1: omit it for one thread '
      'per core.'
    )

  # If there are more threads than slices, they also share the thresholds.
  cuts = min(-(-workers // len(prediction)), len(limits))
  bounds = np.linspace(0, len(limits), cuts + 1).astype(int)
  values = np.empty((len(prediction), len(limits), len(counting.COLUMNS)))

  def score_part(z: int, bounds: tuple[int, int]) -> None:
    part = slice(*bounds)
    values[z, part] = _score_slice(prediction[z], inside[z], limits[part])

  work = itertools.product(range(len(prediction)), itertools.pairwise(bounds))
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    list(pool.map(score_part, *zip(*work, strict=True)))

  means = values.mean(axis=0)
  # A stack's V_rand and V_info are undefined if one slice's is, their parts
  # only if those of all slices are.
  parts = np.ma.masked_invalid(values[..., _INFO + 1 :])
  means[:, _INFO + 1 :] = parts.mean(axis=0).filled(np.nan)
  at_rand, v_rand, threshold_v_rand = _maximum(means[:, _RAND], limits)
  at_info, v_info, threshold_v_info = _maximum(means[:, _INFO], limits)
  is_rand = np.array(['rand' in name for name in counting.COLUMNS])
  return {
    'v_rand': v_rand,
    'v_info': v_info,
    'threshold_v_rand': threshold_v_rand,
    'threshold_v_info': threshold_v_info,
    'per_threshold': [
      {'threshold': float(limit), **_named(row)}
      for limit, row in zip(limits, means, strict=True)
    ],
    'per_slice': [
      {
        'slice': z,
        **_named(np.where(is_rand, rows[at_rand], rows[at_info])),
        'v_rand_per_threshold': [_number(v) for v in rows[:, _RAND]],
        'v_info_per_threshold': [_number(v) for v in rows[:, _INFO]],
      }
      for z, rows in enumerate(values)
    ],
    'pixel': pixels.pixel_scores(prediction, inside),
    'seconds': time.perf_counter() - started,
  }


def for_json(result: dict[str, Any]) -> dict[str, Any]:
  """A result of `score_stack` with rounded thresholds.

  That is, 0.9 for 0.8999999999999999, to which the challenge adds up 0.1.
  """

  def rounded(entries: dict[str, Any]) -> dict[str, Any]:
    return {
      name: round(value, 9) if name.startswith('threshold') and value else value
      for name, value in entries.items()
    }

  rows = [rounded(row) for row in result['per_threshold']]
  return rounded(result) | {'per_threshold': rows}


def from_json(threshold: float) -> float:
  """The threshold of THRESHOLDS that `for_json` rounded, if it is one."""
  nearest = min(THRESHOLDS, key=lambda known: abs(known - threshold))
  return nearest if abs(nearest - threshold) < 1e-9 else threshold


def split_merge_errors(
  segmentation: np.ndarray, truth_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Marks the pixels of one slice with a split or a merge error.

  Only pixels of ground truth regions count. A pixel has a split error if it is
  outside the segment that overlaps its region most; a pixel on a border is a
  segment of its own, as in the scores. A pixel has a merge error if its segment
  overlaps another region most. Of equal overlaps, the lower label wins.

  Args:
    segmentation: [y, x] integers, segments from 1 up and 0 on the borders.
    truth_labels: [y, x] integers, regions from 1 up and 0 on the membrane.

  Returns:
    [y, x] bool each: the split errors and the merge errors.

  Raises:
    InputError: shapes differ, or labels are not integers from 0 up.
  """
  segments, regions = np.asarray(segmentation), np.asarray(truth_labels)
  if segments.shape != regions.shape or segments.ndim != 2 or not segments.size:
    raise errors.InputError(
      f'the segments have shape {segments.shape} and the regions have shape '
      f'{regions.shape}, but both must be the same [y, x]: give one slice.'
    )
  for each in (segments, regions):
    if each.dtype.kind not in 'iu' or each.min() < 0:
      raise errors.InputError(
        f'labels have dtype {each.dtype} and start at {each.min()}, but must '
        'be integers from 0 up: number the regions first.'
      )
  split = regions > 0
  merge = np.zeros_like(split)
  overlap = split & (segments > 0)
  pairs, inverse, counts = np.unique(
    np.stack([regions[overlap], segments[overlap]]),
    axis=1,
    return_inverse=True,
    return_counts=True,
  )
  split[overlap], merge[overlap] = (
    ~largest_in_group(group, counts)[inverse] for group in pairs
  )
  return split, merge


def largest_in_group(group: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Marks the first largest count of each group, `[n]` bool.

  Args:
    group: `[n]`, of each count.
    counts: `[n]`.
  """
  order = np.lexsort((-counts, group))
  largest = np.zeros(len(group), bool)
  largest[order[np.unique(group[order], return_index=True)[1]]] = True
  return largest


def _score_slice(
  prediction: np.ndarray, inside: np.ndarray, limits: np.ndarray
) -> np.ndarray:
  """The columns of one slice, [threshold, column] float64."""
  # In float32 the last threshold would round to 1, which nothing exceeds.
  prediction = prediction.astype(np.float64)
  truth = counting.group_pixels(thinning.label_regions(inside).ravel())
  rows = np.empty((len(limits), len(counting.COLUMNS)))
  previous = None
  for index, limit in enumerate(limits):
    proposal = prediction > limit
    if previous is not None and np.array_equal(proposal, previous):
      rows[index] = rows[index - 1]
    else:
      segments = thinning.thin_borders(proposal).ravel()
      rows[index] = counting.score_columns(segments, *truth)
    previous = proposal
  return rows


def _maximum(
  scores: np.ndarray, limits: np.ndarray
) -> tuple[int, float | None, float | None]:
  """The index of the maximum nearest to 0.5, the maximum and its threshold."""
  if np.isnan(scores).all():
    return 0, None, None
  equal = np.flatnonzero(scores == np.nanmax(scores))
  index = int(equal[np.argmin(np.abs(limits[equal] - 0.5))])
  return index, float(scores[index]), float(limits[index])


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _named(row: np.ndarray) -> dict[str, float | None]:
  return dict(zip(counting.COLUMNS, map(_number, row), strict=True))
