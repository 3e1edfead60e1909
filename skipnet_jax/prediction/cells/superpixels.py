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
  distance = ndimage.distance_transform_edt(free)
  smooth = ndimage.gaussian_filter(distance, _SMOOTHING)
  highest = (smooth == ndimage.maximum_filter(smooth, 3)) & (smooth > 0)
  seeds, _ = ndimage.label(highest, np.ones((3, 3)))
  relief = _PROBABILITY_SHARE * ndimage.gaussian_filter(membrane, _SMOOTHING)
  relief += (1 - _PROBABILITY_SHARE) * (1 - distance / distance.max())
  labels = segmentation.watershed(relief, seeds)
  large = np.bincount(labels.ravel()) >= _LEAST_SIZE
  if large.any() and not large[1:].all():
    labels = segmentation.watershed(relief, np.where(large[labels], labels, 0))
  _, numbers = np.unique(labels, return_inverse=True)
  return numbers.reshape(labels.shape).astype(np.int32)
