"""Cuts a slice into superpixels: small regions that keep to the membranes."""

import numpy as np
from scipy import ndimage

from skipnet_jax import errors

# The same for all networks and slices.
_MEMBRANE = 0.25  # Least probability of a membrane that ends a distance.
_SMOOTHING = 2.0  # Pixels; of the distance and of the flooded relief.
_PROBABILITY_SHARE = 0.9  # Of the relief; the rest is the distance.
_LEAST_SIZE = 25  # Pixels; smaller superpixels are given to their neighbours.


def superpixels(inside: np.ndarray) -> np.ndarray:
  """Floods a slice from the places that are farthest from membranes.

  Args:
    inside: `[y, x]` float, the probability of the inside of cells.

  Returns:
    `[y, x]` int32, numbers from 0 up, without borders; each superpixel is
    connected by its pixels' sides. A slice without a membrane, or all of one,
    is a single superpixel.

  Raises:
    InputError: a probability is not in 0..1.
  """
  # Imported late: a training need not wait for it.
  from skimage import segmentation

  low, high = inside.min(), inside.max()
  # This form also refuses NaN, which min and max return.
  if not (low >= 0 and high <= 1):
    raise errors.InputError(
      f'A slice to segment has probabilities from {low} to {high}, but they '
      'must be in 0..1: the network gives no usable output, train it again.'
    )
  membrane = 1 - np.asarray(inside, np.float64)
  free = membrane <= _MEMBRANE
  if free.all() or not free.any():
    return np.zeros(inside.shape, np.int32)
  # Arrays that are no longer needed make room: a slice may be large.
  distance = _distance(free)
  smooth = ndimage.gaussian_filter(distance, _SMOOTHING)
  highest = (smooth == ndimage.maximum_filter(smooth, 3)) & (smooth > 0)
  del smooth, free
  seeds, _ = ndimage.label(highest, np.ones((3, 3)))
  del highest
  relief = ndimage.gaussian_filter(membrane, _SMOOTHING)
  del membrane
  relief *= _PROBABILITY_SHARE
  distance /= distance.max()
  np.subtract(1, distance, out=distance)
  distance *= 1 - _PROBABILITY_SHARE
  relief += distance
  del distance
  labels = segmentation.watershed(relief, seeds)
  del seeds
  sizes = np.bincount(labels.ravel())
  large = sizes >= _LEAST_SIZE
  if large.any() and not large[1:].all():
    # Only what is around the small ones can flood them.
    small = ~large[labels]
    labels[small] = 0
    around = ndimage.binary_dilation(small)
    flooded = segmentation.watershed(relief, labels, mask=around)
    labels[small] = flooded[small]
    sizes = np.bincount(labels.ravel())
  return (np.cumsum(sizes > 0) - 1).astype(np.int32)[labels]


def _distance(free: np.ndarray) -> np.ndarray:
  """From each pixel to the nearest one that is not free, `[y, x]` float64.

  That of `ndimage.distance_transform_edt`, which needs three times the memory.
  """
  nearest = ndimage.distance_transform_edt(
    free, return_distances=False, return_indices=True
  )
  found = np.empty(free.shape)
  columns = np.arange(free.shape[1])
  for y, (row, column) in enumerate(zip(*nearest, strict=True)):
    found[y] = np.sqrt((row - y) ** 2 + (column - columns) ** 2)
  return found
