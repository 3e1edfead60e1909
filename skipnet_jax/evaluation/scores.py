"""V_rand, V_info and pixel scores of a membrane segmentation.

The two scores of the ISBI 2012 challenge, as its own program computes them: the
maximal foreground-restricted Rand and information theoretic scores after border
thinning, Arganda-Carreras et al. 2015. Throughout, 1 and True are the inside
of cells, 0 and False the membrane.
"""

import concurrent.futures
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from skipnet_jax import errors
from skipnet_jax.evaluation import thinning

# The challenge adds up 0.1, so the last is 0.9999999999999999, which a
# prediction of exactly 1 exceeds.
THRESHOLDS = tuple(itertools.accumulate(10 * [0.1], initial=0.0))

_COLUMNS = (
  'v_rand',
  'v_info',
  'rand_merge',
  'rand_split',
  'info_merge',
  'info_split',
)
_RAND, _INFO = 0, 1


def score_stack(
  prediction: np.ndarray,
  inside: np.ndarray,
  thresholds: Sequence[float] = THRESHOLDS,
  workers: int | None = None,
) -> dict[str, Any]:
  """Scores a stack of predictions as the challenge does.

  A pixel is inside where prediction > threshold, strictly and in float64. The
  stack's score at a threshold is the mean over its slices, and `v_rand` and
  `v_info` are the maxima over the thresholds, each for itself, the first one of
  equals. A threshold at which a slice has no score is left out. The result does
  not depend on `workers`.

  Args:
    prediction: [z, y, x] or [y, x] float or bool, the probability 0..1 of the
      inside.
    inside: bool of the same shape, True inside.
    thresholds: numbers in 0..1.
    workers: number of threads; as many as there are cores by default.

  Returns:
    The content of a scores.json, None where a value is undefined:
    `v_rand`, `v_info`, `threshold_v_rand`, `threshold_v_info`: the maxima.
    `per_threshold`: dicts of `threshold` and the means of `v_rand`, `v_info`,
      `rand_merge`, `rand_split`, `info_merge`, `info_split`. Merge scores are
      precisions, split scores recalls, averaged over the slices that have them.
    `per_slice`: dicts of `slice`, the same six at the two best thresholds of
      the stack, and `v_rand_per_threshold`, `v_info_per_threshold`.
    `pixel`: see `pixel_scores`.
    `seconds`: what the scoring took.

  Raises:
    InputError: shapes differ, a dtype or a value is not as above, or there is
      no threshold or no worker.
  """
  started = time.perf_counter()
  prediction, inside = _checked_stacks(prediction, inside)
  limits = _checked_thresholds(thresholds)
  workers = _checked_workers(workers)

  # A stack of few slices is cut by thresholds as well, to feed every thread.
  cuts = min(-(-workers // len(prediction)), len(limits))
  bounds = np.linspace(0, len(limits), cuts + 1).astype(int)
  values = np.empty((len(prediction), len(limits), len(_COLUMNS)))

  def score_part(z: int, part: slice) -> None:
    values[z, part] = _score_slice(prediction[z], inside[z], limits[part])

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [
      pool.submit(score_part, z, slice(*part))
      for z in range(len(prediction))
      for part in itertools.pairwise(bounds)
    ]
    for future in futures:
      future.result()

  means = _means_over_slices(values)
  at_rand, v_rand, threshold_v_rand = _maximum(means[:, _RAND], limits)
  at_info, v_info, threshold_v_info = _maximum(means[:, _INFO], limits)
  is_rand = np.array(['rand' in name for name in _COLUMNS])
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
    'pixel': _pixel_scores(prediction, inside),
    'seconds': time.perf_counter() - started,
  }


def score_labels(
  segmentation: np.ndarray, truth_labels: np.ndarray
) -> dict[str, float | None]:
  """Scores the segments of one slice against its ground truth regions.

  Only pixels of ground truth regions count, and each of them without a segment
  is a segment of its own. Without any such pixel both scores are 0; V_info is
  also 0 where either side is a single region.

  Args:
    segmentation: [y, x] integers, segments from 1 up and 0 on the dams, as from
      `thinning.thin_borders`.
    truth_labels: [y, x] integers, regions from 1 up and 0 on the membrane, as
      from `thinning.label_regions`.

  Returns:
    `v_rand`, `v_info`, `rand_merge`, `rand_split`, `info_merge`, `info_split`;
    None where undefined.

  Raises:
    InputError: shapes differ, or labels are not integers from 0 up.
  """
  segments, regions = (
    # Consecutive labels, so that no buffer grows with the largest label.
    np.searchsorted(np.union1d(0, labels), labels).astype(np.int32)
    for labels in _checked_labels(segmentation, truth_labels)
  )
  return _named(_count(segments.ravel(), *_grouped(regions.ravel())))


def split_merge_errors(
  segmentation: np.ndarray, truth_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Marks the pixels of one slice that are wrongly split off or merged.

  Both only in ground truth regions. A split error lies outside the segment that
  overlaps its region most; a pixel on a dam is a segment of its own, as in the
  scores. A merge error lies in another region than the one that its segment
  overlaps most. Of equal overlaps, that with the lower label is the largest.

  Args:
    segmentation: [y, x] integers, segments from 1 up and 0 on the dams.
    truth_labels: [y, x] integers, regions from 1 up and 0 on the membrane.

  Returns:
    [y, x] bool each: the split errors and the merge errors.

  Raises:
    InputError: shapes differ, or labels are not integers from 0 up.
  """
  segments, regions = _checked_labels(segmentation, truth_labels)
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
    ~_largest_in_group(group, counts)[inverse] for group in pairs
  )
  return split, merge


def pixel_scores(
  prediction: np.ndarray, inside: np.ndarray
) -> dict[str, float | None]:
  """Scores a stack pixel by pixel; the positive class is the membrane.

  Args:
    prediction: [z, y, x] or [y, x] float or bool, the probability 0..1 of the
      inside.
    inside: bool of the same shape, True inside.

  Returns:
    At the threshold 0.5 (inside where prediction > 0.5) `accuracy` of both
    classes and `dice` and `iou` of the membrane, and without a threshold
    `average_precision` of the membrane: the sum of (R_n - R_n-1) P_n over all
    distinct values, not interpolated. None where undefined.

  Raises:
    InputError: as `score_stack`.
  """
  return _pixel_scores(*_checked_stacks(prediction, inside))


def looks_inverted(prediction: np.ndarray, inside: np.ndarray) -> str | None:
  """Says in one sentence if a prediction would score far better inverted.

  That is, if of all pairs of a pixel inside and one on the membrane at least 70
  percent have the higher value on the membrane. Unlike a score at 0.5 this also
  finds a prediction that never crosses 0.5. Large stacks are sampled.

  Args:
    prediction: [z, y, x] or [y, x] float or bool, 0..1.
    inside: bool of the same shape, True inside.

  Returns:
    The warning, or None if there is nothing to warn of.

  Raises:
    InputError: as `score_stack`.
  """
  prediction, inside = _checked_stacks(prediction, inside)
  step = prediction.size // 2**20 | 1  # Odd, so as to meet every column.
  sample = prediction.ravel()[::step], inside.ravel()[::step]
  _, ordered = _rank(_ranking_keys(*sample))
  if not ordered <= 0.3:
    return None
  return (
    f'the prediction looks inverted, as in {1 - ordered:.0%} of pixel pairs it '
    'is higher on the membrane than inside, but 1 must be the inside: give '
    '1 - prediction, or check which value of the labels is the membrane.'
  )


def _score_slice(
  prediction: np.ndarray, inside: np.ndarray, limits: np.ndarray
) -> np.ndarray:
  """The columns of one slice, [threshold, column] float64."""
  # In float32 the last threshold would round to 1, which nothing exceeds.
  prediction = prediction.astype(np.float64)
  truth = _grouped(thinning.label_regions(inside).ravel())
  rows = np.empty((len(limits), len(_COLUMNS)))
  previous = None
  for index, limit in enumerate(limits):
    proposal = prediction > limit
    if previous is not None and np.array_equal(proposal, previous):
      rows[index] = rows[index - 1]
    else:
      rows[index] = _count(thinning.thin_borders(proposal).ravel(), *truth)
    previous = proposal
  return rows


@numba.njit(nogil=True, cache=True)
def _grouped(regions):
  """The foreground's pixels in the order of their regions, each one's start."""
  starts = np.zeros(regions.max() + 2, np.int64)
  for region in regions:
    starts[region + 1] += 1
  starts[1] = 0
  starts = np.cumsum(starts)[1:]
  fill = starts.copy()
  pixels = np.empty(starts[-1], np.int32)
  for pixel, region in enumerate(regions):
    if region:
      pixels[fill[region - 1]] = pixel
      fill[region - 1] += 1
  return pixels, starts


@numba.njit(nogil=True, cache=True)
def _surprise(count, total):
  return -count / total * np.log(count / total)


@numba.njit(nogil=True, cache=True)
def _count(segments, pixels, starts):
  """The columns of one segmentation, NaN where undefined.

  Squares are summed as integers, so V_rand is exact up to its last division.
  Buffers are linear in the pixels, however many pairs of labels there are.
  """
  total = len(pixels)
  if total == 0:
    return 0.0, 0.0, np.nan, np.nan, np.nan, np.nan
  sizes = np.zeros(segments.max() + 1, np.int64)
  shared = np.zeros(len(sizes), np.int64)
  met = np.empty(len(sizes), np.int32)
  pair_squares = region_squares = segment_squares = 0
  pair_entropy = region_entropy = segment_entropy = 0.0
  for region in range(len(starts) - 1):
    size = starts[region + 1] - starts[region]
    region_squares += size * size
    region_entropy += _surprise(size, total)
    kinds = 0
    for pixel in pixels[starts[region] : starts[region + 1]]:
      segment = segments[pixel]
      if shared[segment] == 0:
        met[kinds] = segment
        kinds += 1
      shared[segment] += 1
    for segment in met[:kinds]:
      size = shared[segment]
      shared[segment] = 0
      sizes[segment] += size
      if segment:
        pair_squares += size * size
        pair_entropy += _surprise(size, total)
  for size in sizes[1:]:
    if size:
      segment_squares += size * size
      segment_entropy += _surprise(size, total)
  # Each pixel on a dam is a segment of its own.
  pair_squares += sizes[0]
  segment_squares += sizes[0]
  pair_entropy += sizes[0] / total * np.log(total)
  segment_entropy += sizes[0] / total * np.log(total)

  # Rounding can leave less than no information.
  information = max(segment_entropy + region_entropy - pair_entropy, 0.0)
  v_info = info_merge = info_split = np.nan
  if region_entropy > 0.0:
    info_merge = information / region_entropy
  if segment_entropy > 0.0:
    info_split = information / segment_entropy
  if region_entropy <= 0.0 or segment_entropy <= 0.0:
    v_info = 0.0
  elif information > 0.0:
    v_info = 2.0 * information / (segment_entropy + region_entropy)
  return (
    pair_squares / (0.5 * segment_squares + 0.5 * region_squares),
    v_info,
    pair_squares / segment_squares,
    pair_squares / region_squares,
    info_merge,
    info_split,
  )


def _ranking_keys(prediction: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Integers in the order of the predictions, the lowest bit True inside."""
  # The bits of floats from 0 up rise with them. The shift makes room for the
  # class and drops the sign, so that -0 is 0.
  keys = prediction.flatten().view(f'u{prediction.dtype.itemsize}')
  keys <<= 1
  keys |= inside.ravel()
  keys.sort()
  return keys


@numba.njit(nogil=True, cache=True)
def _rank(keys):
  """The membrane's average precision; how many mixed pairs are in order."""
  membrane = inside = pairs_twice = 0
  weighted = 0.0
  first = 0
  while first < len(keys):
    last = first
    hits = 0
    while last < len(keys) and keys[last] >> 1 == keys[first] >> 1:
      if keys[last] & 1 == 0:
        hits += 1
      last += 1
    misses = last - first - hits
    # Of a pair with equal values, half is in order.
    pairs_twice += misses * (2 * membrane + hits)
    membrane += hits
    inside += misses
    weighted += hits * (membrane / last)
    first = last
  return (
    weighted / membrane if membrane else np.nan,
    0.5 * pairs_twice / membrane / inside if membrane and inside else np.nan,
  )


def _pixel_scores(
  prediction: np.ndarray, inside: np.ndarray
) -> dict[str, float | None]:
  both = either = 0
  for values, truth in zip(prediction, inside, strict=True):
    proposal = values > 0.5
    both += int(np.count_nonzero(~(proposal | truth)))
    either += int(np.count_nonzero(~(proposal & truth)))
  precision, _ = _rank(_ranking_keys(prediction, inside))
  return {
    'accuracy': 1.0 - (either - both) / inside.size,
    'dice': 2 * both / (both + either) if either else None,
    'iou': both / either if either else None,
    'average_precision': _number(precision),
  }


def _means_over_slices(values: np.ndarray) -> np.ndarray:
  """Means [threshold, column] of [slice, threshold, column]."""
  means = values.mean(axis=0)
  # The two scores are undefined if any slice's is, their parts only if all are.
  for column in range(_INFO + 1, len(_COLUMNS)):
    defined = ~np.isnan(values[:, :, column])
    total = np.where(defined, values[:, :, column], 0.0).sum(axis=0)
    number = defined.sum(axis=0)
    means[:, column] = np.where(number, total / np.maximum(number, 1), np.nan)
  return means


def _maximum(
  scores: np.ndarray, limits: np.ndarray
) -> tuple[int, float | None, float | None]:
  """Where the first maximum is, the maximum and its threshold."""
  index = int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))
  if np.isnan(scores[index]):
    return index, None, None
  return index, float(scores[index]), float(limits[index])


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _named(row: np.ndarray) -> dict[str, float | None]:
  return dict(zip(_COLUMNS, map(_number, row), strict=True))


def _largest_in_group(group: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Marks the first largest count of each group."""
  order = np.lexsort((np.arange(len(group)), -counts, group))
  largest = np.zeros(len(group), bool)
  largest[order[np.unique(group[order], return_index=True)[1]]] = True
  return largest


def _checked_stacks(
  prediction: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Both as [z, y, x], the prediction as native float32 or float64."""
  prediction, inside = np.asarray(prediction), np.asarray(inside)
  if prediction.shape != inside.shape:
    raise errors.InputError(
      f'the prediction has shape {prediction.shape} and the labels have shape '
      f'{inside.shape}, but they must be equal: crop or pad one of them.'
    )
  if prediction.ndim not in (2, 3) or prediction.size == 0:
    raise errors.InputError(
      f'the prediction has shape {prediction.shape}, but must be [z, y, x] or '
      '[y, x] with at least one pixel: drop the channels, for one.'
    )
  if inside.dtype != np.bool_:
    raise errors.InputError(
      f'the labels have dtype {inside.dtype}, but must be bool with True '
      'inside: compare them first, as in labels > 0.'
    )
  if prediction.dtype.kind not in 'bf':
    raise errors.InputError(
      f'the prediction has dtype {prediction.dtype}, but must be float in '
      '0..1: divide 8-bit values by 255, or convert to float32.'
    )
  small = prediction.dtype.itemsize <= 4
  prediction = prediction.astype(
    np.float32 if small else np.float64, copy=False
  )
  low, high = prediction.min(), prediction.max()
  # Written so that NaN, which min and max pass on, fails as well.
  if not (low >= 0 and high <= 1):
    raise errors.InputError(
      f'the prediction has values from {low:g} to {high:g}, but must stay '
      'in 0..1: divide 8-bit values by 255, apply a sigmoid to logits, or '
      'replace what is not finite.'
    )
  if prediction.ndim == 2:
    return prediction[np.newaxis], inside[np.newaxis]
  return prediction, inside


def _checked_labels(*labels: np.ndarray) -> list[np.ndarray]:
  segments, regions = (np.asarray(each) for each in labels)
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
  return [segments.astype(np.int64), regions.astype(np.int64)]


def _checked_thresholds(thresholds: Sequence[float]) -> np.ndarray:
  limits = np.asarray(thresholds, np.float64)
  if (
    limits.ndim != 1
    or not limits.size
    or not np.all((limits >= 0) & (limits <= 1))
  ):
    raise errors.InputError(
      f'thresholds are {thresholds}, but must be one or more numbers in 0..1: '
      'leave them out for the eleven of the challenge.'
    )
  return limits


def _checked_workers(workers: int | None) -> int:
  if workers is None:
    # Containers often grant fewer cores than the machine has.
    if hasattr(os, 'sched_getaffinity'):
      return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
  if workers < 1:
    raise errors.InputError(
      f'workers is {workers}, but must be at least 1: leave it out for one '
      'thread per core.'
    )
  return workers
