"""Pixel scores of a membrane segmentation, and whether it looks inverted.

A `prediction` is [z, y, x] or [y, x] float or bool, the probability 0..1 of the
inside of cells. The labels `inside` are bool of the same shape, True inside,
False on the membrane. All functions raise InputError for other arrays.
"""

import numba
import numpy as np

from skipnet_jax import errors


def pixel_scores(
  prediction: np.ndarray, inside: np.ndarray
) -> dict[str, float | None]:
  """Scores a stack pixel by pixel; the positive class is the membrane.

  Returns:
    At the threshold 0.5 (inside where prediction > 0.5) `accuracy` of both
    classes and `dice` and `iou` of the membrane, and without a threshold
    `average_precision` of the membrane: the sum of (R_n - R_n-1) P_n over all
    distinct values, not interpolated. None where undefined.
  """
  prediction, inside = checked_stacks(prediction, inside)
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
    'average_precision': None if np.isnan(precision) else float(precision),
  }


def looks_inverted(prediction: np.ndarray, inside: np.ndarray) -> str | None:
  """A warning if a prediction would score far better inverted, else None.

  It warns if, of all pairs of a pixel inside and one on the membrane, at least
  70 percent have the higher value on the membrane. Unlike a score at 0.5, this
  also works for a prediction that never crosses 0.5. Large stacks are sampled.
  """
  prediction, inside = checked_stacks(prediction, inside)
  step = prediction.size // 2**20 | 1  # Odd, so that it reaches every column.
  sample = prediction.ravel()[::step], inside.ravel()[::step]
  _, ordered = _rank(_ranking_keys(*sample))
  if not ordered <= 0.3:
    return None
  return (
    f'the prediction looks inverted: in {1 - ordered:.0%} of pixel pairs it is '
    'higher on the membrane than inside, but 1 must be the inside; give '
    '1 - prediction, or check which value of the labels is the membrane.'
  )


def checked_stacks(
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
      '[y, x] with at least one pixel: remove channels, if there are any.'
    )
  if inside.dtype != np.bool_:
    raise errors.InputError(
      f'the labels have dtype {inside.dtype}, but must be bool with True '
      'inside: compare them first, as in labels > 0.'
    )
  if prediction.dtype.kind not in 'bf':
    raise errors.InputError(
      f'the prediction has dtype {prediction.dtype}, but must be float in '
      '0..1: divide 8-bit values by 255, 16-bit values by 65535.'
    )
  dtype = np.float32 if prediction.dtype.itemsize <= 4 else np.float64
  prediction = prediction.astype(dtype, copy=False)
  low, high = prediction.min(), prediction.max()
  # This form also refuses NaN, which min and max return.
  if not (low >= 0 and high <= 1):
    raise errors.InputError(
      f'the prediction has values from {low} to {high}, but must stay in '
      '0..1: divide 8-bit values by 255, apply a sigmoid to logits, or '
      'replace values that are not finite.'
    )
  if prediction.ndim == 2:
    return prediction[np.newaxis], inside[np.newaxis]
  return prediction, inside


def _ranking_keys(prediction: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Integers sorted like the predictions; the lowest bit is True inside."""
  # The bits of nonnegative floats are ordered like the floats. The shift makes
  # room for the class and drops the sign, so that -0 equals 0.
  keys = prediction.flatten().view(f'u{prediction.dtype.itemsize}')
  keys <<= 1
  keys |= inside.ravel()
  keys.sort()
  return keys


@numba.njit(nogil=True, cache=True)
def _rank(keys):
  """The membrane's average precision, and the share of ordered mixed pairs."""
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
    # A pair with equal values counts as half ordered.
    pairs_twice += misses * (2 * membrane + hits)
    membrane += hits
    inside += misses
    weighted += hits * (membrane / last)
    first = last
  return (
    weighted / membrane if membrane else np.nan,
    0.5 * pairs_twice / membrane / inside if membrane and inside else np.nan,
  )
