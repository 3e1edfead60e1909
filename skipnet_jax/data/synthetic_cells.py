"""The cell geometry of the synthetic stack: smooth noise, discs and borders.

`synthetic` draws the grey values. Increase `synthetic.VERSION` with every
change that alters the stack.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy import sparse
from scipy import special

# Pixels farther than this from every disc are glia.
_REACH = 12.0


class Noise:
  """Smooth Gaussian noise of zero mean and unit variance, slice by slice.

  A coarse random grid is interpolated by Gaussian kernels of width `scale`
  [pixels] in the plane and `scale_z` [slices] across; with sparse products, the
  bits do not depend on the number of BLAS threads.
  """

  def __init__(self, rng, shape, scale, scale_z=1e-3):
    self._z, self._y, self._x = (
      self._kernels(n, s)
      for n, s in zip(shape, (scale_z, scale, scale), strict=True)
    )
    grid = [m.shape[1] for m in (self._z, self._y, self._x)]
    coarse = rng.standard_normal(grid, np.float32)
    mixed = self._z @ coarse.reshape(grid[0], -1)
    self._coarse = mixed.reshape(shape[0], *grid[1:])

  @staticmethod
  def _kernels(n, scale):
    step = max(scale, 1.0)
    count = int(np.ceil((n - 1) / step)) + 7
    offset = np.arange(n)[:, None] / step - (np.arange(count)[None] - 3)
    sigma = min(scale, 1.0) * 0.8
    kernel = np.where(
      np.abs(offset) <= 3, np.exp(-0.5 * (offset / sigma) ** 2), 0
    )
    kernel /= np.sqrt((kernel**2).sum(1, keepdims=True))
    return sparse.csr_array(kernel.astype(np.float32))

  def __call__(self, z):
    """The noise of one slice, [y, x] float32."""
    return (self._x @ (self._y @ self._coarse[z]).T).T


@dataclasses.dataclass
class Discs:
  """Discs of all cells in one slice of a toroidal world [pixels]."""

  centre: np.ndarray  # [n, 2] y, x
  radius: np.ndarray  # [n]
  cell: np.ndarray  # [n] int, from 1; a cell's discs are consecutive
  velocity: np.ndarray  # [n, 2] pixels per slice
  world: np.ndarray  # [2]

  def wrap(self, difference):
    """Differences of positions, by the shorter way around the world."""
    return difference - self.world * np.round(difference / self.world)


def _seed_discs(rng, world, largest):
  """Draws cells of heavy-tailed sizes; the largest first, in the widest gap."""
  target, radii = 0.86 * world.prod(), []
  # Golden-ratio steps through the quantiles: every seed has the same mixture.
  quantile = rng.uniform()
  while target > 0:
    quantile = (quantile + 0.6180339887) % 1
    deviation = 0.78 * special.ndtri(quantile)
    r = float(np.clip(11.5 * np.exp(deviation), 7, largest))
    links = 1 + rng.poisson(1.8 if r < 0.4 * largest else 0.2)
    radii.append((r, links))
    target -= np.pi * r**2 * (1 + 0.6 * (links - 1))
  radii.sort(reverse=True)
  phase = rng.uniform(0, 2 * np.pi, 3)
  centre, radius, cell, velocity = [], [], [], []
  for number, (r, links) in enumerate(radii, 1):
    options = rng.uniform(0, 1, (48, 2)) * world
    if centre:
      gap = options[:, None] - np.array(centre)
      gap -= world * np.round(gap / world)
      gap = (np.hypot(*gap.T).T - np.array(radius)).min(1)
      place = options[gap.argmax()]
    else:
      place = options[0]
    # Neighbours run in similar directions, like neurites in a bundle.
    turn = 2 * np.pi * place / world + phase[:2]
    angle = phase[2] + 1.3 * np.sin(turn[0]) + 1.3 * np.sin(turn[1])
    angle += rng.normal(0, 0.5)
    heading = np.array([np.sin(angle), np.cos(angle)])
    speed = rng.normal(0, 6) + np.sign(rng.normal()) * links
    for _ in range(links):
      centre.append(place % world)
      radius.append(max(r * rng.lognormal(0, 0.18), 4))
      cell.append(number)
      velocity.append(speed * heading + rng.normal(0, 2, 2))
      angle += rng.normal(0, 0.35)
      place = place + r * np.array([np.sin(angle), np.cos(angle)])
  arrays = map(np.array, (centre, radius, cell, velocity))
  return Discs(*arrays, world)


def _relax(discs, rounds):
  """Pushes overlapping discs apart and keeps the chains of a cell together."""
  c, r = discs.centre, discs.radius
  apart = np.hypot(*discs.wrap(c[:, None] - c[None]).T).T
  near = apart < (r[:, None] + r[None]) + 10
  i, j = np.nonzero(np.triu(near & (discs.cell[:, None] != discs.cell), 1))
  k = np.nonzero(discs.cell[1:] == discs.cell[:-1])[0]
  first, second = np.concatenate([i, k]), np.concatenate([j, k + 1])
  chained = np.arange(len(first)) >= len(i)
  # Neighbours overlap a little: rims are flattened, small discs are not hidden.
  slack = np.where(chained, 0.9, 0.25) * np.minimum(r[first], r[second])
  rest = r[first] + r[second] - slack
  share = (r[second] / (r[first] + r[second]))[:, None]
  for _ in range(rounds):
    between = discs.wrap(c[first] - c[second])
    length = np.maximum(np.hypot(*between.T), 1e-3)
    lack = np.where(chained, rest - length, np.maximum(rest - length, 0))
    push = 0.5 * (lack / length)[:, None] * between
    np.add.at(c, first, share * push)
    np.add.at(c, second, (share - 1) * push)
  c %= discs.world


def tracks(rng, slices, shape, largest):
  """Yields the discs of every slice, in image coordinates [pixels]."""
  pad = largest + 8
  discs = _seed_discs(rng, np.array(shape) + 2.0 * pad, largest)
  base, swell = discs.radius, rng.normal(0, 1, len(discs.radius))
  _relax(discs, 40)
  for _ in range(slices):
    yield dataclasses.replace(discs, centre=discs.centre - pad)
    discs.velocity = 0.94 * discs.velocity
    discs.velocity += rng.normal(0, 1.5, discs.velocity.shape)
    swell = 0.9 * swell + np.sqrt(1 - 0.81) * rng.normal(0, 1, swell.shape)
    discs.radius = base * np.exp(0.22 * swell)
    discs.centre = discs.centre + discs.velocity
    _relax(discs, 5)


def rasterise(discs, grid):
  """The cell with the nearest rim, for each pixel; 0 for glia in the gaps."""
  shape = grid.shape[1:]
  owner = np.zeros(shape, np.int32)
  best = np.full(shape, _REACH, np.float32)
  for disc, (y, x) in enumerate(discs.centre):
    r = discs.radius[disc]
    window = window_around(y, x, r + _REACH + 30, shape)
    if window is None:
      continue
    rim = np.hypot(grid[0][window] - y, grid[1][window] - x) - r
    nearer = rim < best[window]
    best[window][nearer] = rim[nearer]
    owner[window][nearer] = discs.cell[disc]
  return owner


def window_around(y, x, half, shape):
  """The slices of a square clipped to the image; None if it is outside."""
  y0, y1 = max(int(y - half), 0), min(int(y + half) + 1, shape[0])
  x0, x1 = max(int(x - half), 0), min(int(x + half) + 1, shape[1])
  if y0 >= y1 or x0 >= x1:
    return None
  return slice(y0, y1), slice(x0, x1)


def border_distance(owner):
  """Distance [pixels] to the border between cells, 0 on it."""
  border = np.zeros(owner.shape, bool)
  border[:-1] |= owner[:-1] != owner[1:]
  border[:, :-1] |= owner[:, :-1] != owner[:, 1:]
  if not border.any():
    return np.full(owner.shape, 99, np.float32)
  return ndimage.distance_transform_edt(~border).astype(np.float32)


def obliqueness(distance, neighbours):
  """How far the border moves to the next slices [pixels], smoothed."""
  moved = np.mean([np.minimum(d, 12) for d in neighbours], axis=0)
  border = (distance == 0).astype(np.float32)
  weight = ndimage.gaussian_filter(border, 4) + 1e-4
  return ndimage.gaussian_filter(moved * border, 4) / weight
