"""Counts the overlaps of segments and regions, for V_rand and V_info."""

import numba
import numpy as np

# The scores that `score_columns` returns, in order.
COLUMNS = (
  'v_rand',
  'v_info',
  'rand_merge',
  'rand_split',
  'info_merge',
  'info_split',
)


@numba.njit(nogil=True, cache=True)
def group_pixels(regions):
  """Foreground pixels sorted by region, and the start of each region."""
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
def _entropy_term(count, total):
  return -count / total * np.log(count / total)


@numba.njit(nogil=True, cache=True)
def score_columns(segments, pixels, starts):
  """The COLUMNS of one segmentation, NaN where undefined.

  `pixels` and `starts` are those of the ground truth, from `group_pixels`.
  Sums of squares are integers, so V_rand is exact up to its last division.
  Memory is linear in the pixels, not in the pairs of labels.
  """
  total = len(pixels)
  if total == 0:
    return 0.0, 0.0, np.nan, np.nan, np.nan, np.nan
  sizes = np.zeros(segments.max() + 1, np.int64)
  shared = np.zeros(len(sizes), np.int64)
  touched = np.empty(len(sizes), np.int32)
  pair_squares = region_squares = segment_squares = 0
  pair_entropy = region_entropy = segment_entropy = 0.0
  for region in range(len(starts) - 1):
    size = starts[region + 1] - starts[region]
    region_squares += size * size
    region_entropy += _entropy_term(size, total)
    kinds = 0
    for pixel in pixels[starts[region] : starts[region + 1]]:
      segment = segments[pixel]
      if shared[segment] == 0:
        touched[kinds] = segment
        kinds += 1
      shared[segment] += 1
    for segment in touched[:kinds]:
      size = shared[segment]
      shared[segment] = 0
      sizes[segment] += size
      if segment:
        pair_squares += size * size
        pair_entropy += _entropy_term(size, total)
  for size in sizes[1:]:
    if size:
      segment_squares += size * size
      segment_entropy += _entropy_term(size, total)
  # Each pixel on a border is a segment of its own.
  pair_squares += sizes[0]
  segment_squares += sizes[0]
  pair_entropy += sizes[0] / total * np.log(total)
  segment_entropy += sizes[0] / total * np.log(total)

  # Rounding can make it negative.
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
