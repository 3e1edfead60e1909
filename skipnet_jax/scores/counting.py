"""Counts how segments and regions overlap: the kernels of V_rand and V_info."""

import numba
import numpy as np

# The order of what `score_columns` returns.
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
def score_columns(segments, pixels, starts):
  """The COLUMNS of one segmentation, NaN where undefined.

  `pixels` and `starts` are those of the ground truth, from `group_pixels`.
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
