"""U-Net's pixel weights, which are largest on thin borders between cells."""

import math

import numpy as np
import scipy.ndimage

# Distance, in sigmas, beyond which the border's term is below 1e-5 of w0.
_REACH = 5


def border_weight(
  label: np.ndarray, w0: float, sigma: float, inside: float
) -> np.ndarray:
  """Pixel weights `[z, y, x]` float32 (Ronneberger et al. 2015, section 3).

  `w = w_class + w0 exp(-(d1 + d2)^2 / (2 sigma^2))`: d1 and d2 are the
  distances of a membrane pixel to the nearest and the second nearest cell in
  its slice; cells are 4-connected regions. Inside cells the second term is 0.
  `w_class` balances the classes, with mean 1; the paper does not define it.

  Args:
    label: `[z, y, x]` bool, True inside a cell.
    w0: weight of a border of width zero.
    sigma: in pixels.
    inside: share of the pixels inside cells, by which the classes are balanced.
  """
  # A single class has the weight 1.
  balance = (0.5 / (1 - inside), 0.5 / inside) if 0 < inside < 1 else (1, 1)
  weight = np.where(label, balance[1], balance[0]).astype(np.float32)
  for page, cells in zip(weight, label, strict=True):
    nearest, second = _two_distances(cells, math.ceil(_REACH * sigma))
    border = np.exp(-np.square((nearest + second) / sigma) / 2)
    page += (w0 * np.where(cells, 0, border)).astype(np.float32)
  return weight


def _two_distances(
  cells: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
  """Distances to the nearest two cells; infinite beyond `reach`, `[y, x]`."""
  nearest, second = np.full((2, *cells.shape), np.inf)
  numbered, _ = scipy.ndimage.label(cells)
  for number, box in enumerate(scipy.ndimage.find_objects(numbered), start=1):
    around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
    distance = scipy.ndimage.distance_transform_edt(numbered[around] != number)
    near, far = nearest[around], second[around]
    np.copyto(far, np.minimum(far, np.maximum(near, distance)))
    np.copyto(near, np.minimum(near, distance))
  return nearest, second
