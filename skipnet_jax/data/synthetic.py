"""A deterministic procedural EM stack with labels: the embedded default data.

It imitates the training stack of ISBI 2012, serial-section TEM of the ventral
nerve cord of a Drosophila larva at 4 x 4 x 50 nm. Nothing is taken from that
stack but measured statistics (grey levels, membrane thickness and fraction,
number and sizes of cells, change between slices).

Cells are chains of discs that drift from slice to slice and push each other
aside; each pixel belongs to the disc whose rim is nearest, seen through a
smooth warp. All random fields and draws come from one seed.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile

import numpy as np
from scipy import ndimage, sparse, special

from skipnet_jax import errors

# Part of the cache's file name: raise it whenever the same arguments would give
# other bits.
VERSION = 1
MIN_SIZE = 32
# Pixels further than this from every disc belong to the glia between them.
_REACH = 12.0


class _Noise:
  """Smooth Gaussian noise of zero mean and unit variance, slice by slice.

  A coarse random grid is spread by Gaussian kernels, `scale` [pixels] wide in
  the plane and `scale_z` [slices] across; sparse products keep the bits
  independent of the number of BLAS threads.
  """

  def __init__(self, rng, shape, scale, scale_z=1e-3):
    self._z, self._y, self._x = (
      self._spread(n, s)
      for n, s in zip(shape, (scale_z, scale, scale), strict=True)
    )
    grid = [m.shape[1] for m in (self._z, self._y, self._x)]
    coarse = rng.standard_normal(grid, np.float32)
    mixed = self._z @ coarse.reshape(grid[0], -1)
    self._coarse = mixed.reshape(shape[0], *grid[1:])

  @staticmethod
  def _spread(n, scale):
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
    return (self._x @ (self._y @ self._coarse[z]).T).T


@dataclasses.dataclass
class _Discs:
  """Discs of all cells in one slice of a toroidal world [pixels]."""

  centre: np.ndarray  # [n, 2] y, x
  radius: np.ndarray  # [n]
  cell: np.ndarray  # [n] int, from 1; a cell's discs follow one another
  velocity: np.ndarray  # [n, 2] pixels per slice
  world: np.ndarray  # [2]

  def wrap(self, difference):
    return difference - self.world * np.round(difference / self.world)


def _seed_discs(rng, world, largest):
  """Draws cells of heavy-tailed size, large ones first, into the widest gap."""
  target, radii = 0.86 * world.prod(), []
  # Golden-ratio steps through the quantiles: every seed gets the same mixture.
  quantile = rng.uniform()
  while target > 0:
    quantile = (quantile + 0.6180339887) % 1
    spread = 0.78 * special.ndtri(quantile)
    r = float(np.clip(11.5 * np.exp(spread), 7, largest))
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
    # Neighbours run in similar directions, as neurites in a bundle do.
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
  return _Discs(*arrays, world)


def _relax(discs, rounds):
  """Pushes overlapping discs apart and keeps the chains of a cell together."""
  c, r = discs.centre, discs.radius
  apart = np.hypot(*discs.wrap(c[:, None] - c[None]).T).T
  near = apart < (r[:, None] + r[None]) + 10
  i, j = np.nonzero(np.triu(near & (discs.cell[:, None] != discs.cell), 1))
  k = np.nonzero(discs.cell[1:] == discs.cell[:-1])[0]
  first, second = np.concatenate([i, k]), np.concatenate([j, k + 1])
  chained = np.arange(len(first)) >= len(i)
  # A little overlap: rims flatten on each other, but none swallows a small one.
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


def _tracks(rng, slices, shape, largest):
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


def _rasterise(discs, grid):
  """Gives each pixel the cell of the nearest rim; 0 is glia in the gaps."""
  shape = grid.shape[1:]
  owner = np.zeros(shape, np.int32)
  best = np.full(shape, _REACH, np.float32)
  for disc, (y, x) in enumerate(discs.centre):
    r = discs.radius[disc]
    window = _window(y, x, r + _REACH + 30, shape)
    if window is None:
      continue
    rim = np.hypot(grid[0][window] - y, grid[1][window] - x) - r
    nearer = rim < best[window]
    best[window][nearer] = rim[nearer]
    owner[window][nearer] = discs.cell[disc]
  return owner


def _window(y, x, half, shape):
  """The slices of a square clipped to the image, None where it is outside."""
  y0, y1 = max(int(y - half), 0), min(int(y + half) + 1, shape[0])
  x0, x1 = max(int(x - half), 0), min(int(x + half) + 1, shape[1])
  if y0 >= y1 or x0 >= x1:
    return None
  return slice(y0, y1), slice(x0, x1)


def _border_distance(owner):
  """Distance [pixels] to the border between cells, 0 on it."""
  border = np.zeros(owner.shape, bool)
  border[:-1] |= owner[:-1] != owner[1:]
  border[:, :-1] |= owner[:, :-1] != owner[:, 1:]
  if not border.any():
    return np.full(owner.shape, 99, np.float32)
  return ndimage.distance_transform_edt(~border).astype(np.float32)


def _obliqueness(distance, neighbours):
  """How far the border moves to the next slices [pixels], spread nearby."""
  moved = np.mean([np.minimum(d, 12) for d in neighbours], axis=0)
  border = (distance == 0).astype(np.float32)
  weight = ndimage.gaussian_filter(border, 4) + 1e-4
  return ndimage.gaussian_filter(moved * border, 4) / weight


def _draw_membranes(image, distance, width, oblique, gap, dense):
  """Darkens the borders: thin and sharp, or wide and grey where cut obliquely.

  A gap above 0 opens a lighter line between the two bilayers.
  """
  soft = 0.6 + 0.7 * dense + 0.07 * oblique
  steps = np.clip((distance - width - 0.1 * oblique) / soft, -20, 20)
  wall = 1 / (1 + np.exp(steps))
  line = np.clip(gap - 0.5, 0, 1) * np.exp(-((distance / 0.8) ** 2))
  depth = 106 / (1 + 0.05 * oblique + 0.35 * dense)
  image -= depth * wall * (1 - 0.7 * line)


def _label(inside):
  """255 inside cells, 0 on membranes; specks count as membrane."""
  parts, _ = ndimage.label(inside)
  large = np.bincount(parts.ravel()) >= 25
  large[0] = False
  return np.where(large[parts], 255, 0).astype(np.uint8)


def _draw_reticulum(image, field, patch, room):
  """Draws thin dark curved cisternae where patches allow and there is room."""
  line = np.exp(-((field / 0.07) ** 2)) * np.clip(patch - 1.2, 0, 1)
  image -= 70 * line * room


def _draw_vesicles(rng, image, richness, room):
  """Stamps small dark rings (vesicles, microtubules) into the cytoplasm."""
  count = image.size // 28
  y, x = (rng.integers(0, n, count) for n in image.shape)
  keep = rng.uniform(0, 1, count) < richness[y, x] * room[y, x]
  y, x = y[keep, None, None], x[keep, None, None]
  radius = rng.gamma(9, 0.28, y.shape)
  depth = rng.uniform(20, 90, y.shape)
  dy, dx = np.mgrid[-6:7, -6:7]
  off = rng.uniform(-0.5, 0.5, (2, *y.shape))
  ring = (np.hypot(dy - off[0], dx - off[1]) - radius) / 0.85
  stamp = (depth * np.exp(-(ring**2))).astype(np.float32)
  padded = np.zeros([n + 12 for n in image.shape], np.float32)
  np.add.at(padded, (y + dy + 6, x + dx + 6), stamp)
  image -= np.minimum(padded[6:-6, 6:-6], 85) * room


@dataclasses.dataclass
class _Geometry:
  """What one slice shows, before any grey: all [y, x], in pixels."""

  discs: _Discs
  grid: np.ndarray  # [2, y, x] warped coordinates
  owner: np.ndarray  # cell, 0 for glia
  distance: np.ndarray  # to the border between cells


@dataclasses.dataclass
class _Mitochondrion:
  disc: int
  offset: np.ndarray  # [2] from the disc's centre, pixels
  axes: np.ndarray  # [2] half axes, pixels
  angle: float
  middle: float  # slice
  reach: float  # slices
  pitch: float  # pixels between cristae


def _seed_mitochondria(rng, discs, slices):
  """Puts mitochondria into some of the wider discs."""
  found = []
  for i in np.nonzero(discs.radius > 15)[0]:
    for _ in range(rng.poisson(0.3 * slices / 30 + 0.1)):
      r = min(discs.radius[i], 46)
      minor = r * rng.uniform(0.45, 0.8)
      found.append(
        _Mitochondrion(
          i,
          rng.normal(0, 0.25, 2) * discs.radius[i],
          np.array([minor * rng.uniform(1.0, 1.8), minor]),
          rng.uniform(0, np.pi),
          rng.uniform(-2, slices + 2),
          rng.uniform(4, 12),
          rng.uniform(6, 9),
        )
      )
  return found


def _draw_mitochondria(image, room, members, z, geometry, ripple):
  """Draws dark bodies with double walls and cristae; takes their room away."""
  for m in members:
    phase = 1 - ((z - m.middle) / m.reach) ** 2
    if phase <= 0.05:
      continue
    axes = m.axes * np.sqrt(phase)
    y, x = geometry.discs.centre[m.disc] + m.offset
    window = _window(y, x, axes.max() + 30, image.shape)
    if window is None:
      continue
    dy, dx = geometry.grid[0][window] - y, geometry.grid[1][window] - x
    u = dx * np.cos(m.angle) + dy * np.sin(m.angle)
    v = dy * np.cos(m.angle) - dx * np.sin(m.angle)
    inside = (1 - np.hypot(u / axes[0], v / axes[1])) * axes.min()
    inside = np.minimum(inside, geometry.distance[window] - 5)
    inside[geometry.owner[window] != geometry.discs.cell[m.disc]] = -9
    cover = 1 / (1 + np.exp(-np.clip(inside, -20, 20) / 0.6))
    stack = np.sin(2 * np.pi * (v + 2.5 * ripple[window]) / m.pitch)
    body = 84 + 26 * stack * np.clip(inside / 3 - 1, 0, 1)
    body -= 38 * np.exp(-(((inside - 0.8) / 1.1) ** 2))
    image[window] += cover * (body - image[window])
    room[window] *= 1 - cover


def _expose(rng, image, light):
  """Blurs, adds light and shot noise; sets the slice's mean and contrast."""
  grain = rng.standard_normal(image.shape, np.float32)
  image = ndimage.gaussian_filter(image + rng.uniform(32, 58) * grain, 0.8)
  image += 9 * light + 7 * rng.standard_normal(image.shape, np.float32)
  image -= image.mean()
  image *= rng.normal(42.8, 3.0) / image.std()
  return np.clip(image + rng.normal(126, 9.5), 0, 255).astype(np.uint8)


def _checked_shape(seed, slices, size):
  """The stack's (z, y, x), once the arguments are known to be usable."""
  if not _whole(seed) or seed < 0:
    raise errors.InputError(
      f'seed is {seed!r}; the synthetic stack takes a whole number of at least '
      '0: use another seed.'
    )
  if not _whole(slices) or slices < 1:
    raise errors.InputError(
      f'slices is {slices!r}; the synthetic stack has at least 1: ask for more.'
    )
  plane = (size, size) if _whole(size) else size
  usable = isinstance(plane, (tuple, list)) and len(plane) == 2
  if not usable or not all(_whole(n) and n >= MIN_SIZE for n in plane):
    raise errors.InputError(
      f'size is {size!r}; a synthetic slice takes one whole number or (y, x) '
      f'of at least {MIN_SIZE} pixels: ask for larger slices.'
    )
  return int(slices), int(plane[0]), int(plane[1])


def _whole(number):
  return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def generate(
  seed: int = 0, slices: int = 30, size: int | tuple[int, int] = 512
) -> tuple[np.ndarray, np.ndarray]:
  """Makes a stack of EM-like slices and its membrane labels.

  Args:
    seed: 0 or more; equal arguments give equal bits.
    slices: number of slices, 50 nm apart, at least 1.
    size: side of a slice, or (y, x), in pixels of 4 nm, at least 32.

  Returns:
    image: [z, y, x] uint8.
    label: [z, y, x] uint8, 255 inside cells and 0 on membranes.

  Raises:
    InputError: an argument is out of range.
  """
  volume = _checked_shape(seed, slices, size)
  shape = volume[1:]
  rng = np.random.default_rng(seed)
  # Small slices get small cells, so that each still shows several.
  largest = min(72.0, 0.2 * min(shape))
  warp = [
    [(a, _Noise(rng, volume, s, 1.5)) for s, a in ((36, 7.0), (9, 1.5))]
    for _ in 'yx'
  ]
  plane = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
  stack = []
  for z, discs in enumerate(_tracks(rng, slices, shape, largest)):
    shift = rng.normal(0, 3, 2)  # Slices are never perfectly aligned.
    bend = [sum(a * noise(z) for a, noise in axis) for axis in warp]
    grid = plane + np.stack(bend) + shift[:, None, None].astype(np.float32)
    owner = _rasterise(discs, grid)
    stack.append(_Geometry(discs, grid, owner, _border_distance(owner)))

  cells = stack[0].discs.cell.max() + 1
  tone = rng.normal(0, 8, cells).astype(np.float32)
  tone[0] = -26
  coarse = rng.gamma(4, 5, cells).astype(np.float32)
  richness = np.clip(rng.lognormal(-2.1, 0.8, cells), 0.06, 0.6)
  members = _seed_mitochondria(rng, stack[0].discs, slices)
  width, gap, junction, light, patch, sheet = (
    _Noise(rng, volume, s, sz)
    for s, sz in ((7, 1), (12, 1), (16, 1.2), (60, 1), (22, 1), (11, 1))
  )
  granules = _Noise(rng, volume, 2)
  images, labels = [], []
  for z, geometry in enumerate(stack):
    owner, distance = geometry.owner, geometry.distance
    dense = np.clip(junction(z) - 1.5, 0, 1.5)
    half = 2.25 + 0.4 * width(z) + 9 * dense
    beside = [stack[n] for n in (z - 1, z + 1) if 0 <= n < slices] or [geometry]
    oblique = _obliqueness(distance, [g.distance for g in beside])
    image = 150 + ndimage.gaussian_filter(tone[owner], 1)
    image -= coarse[owner] * np.clip(granules(z), -0.5, 2)
    room = np.clip((distance - half - 2) / 2, 0, 1)
    _draw_mitochondria(image, room, members, z, geometry, sheet(z))
    _draw_vesicles(rng, image, richness[owner], room)
    _draw_reticulum(image, sheet(z), patch(z), room)
    _draw_membranes(image, distance, half, oblique, gap(z), dense)
    images.append(_expose(rng, image, light(z)))
    labels.append(_label(distance > half + 0.7))
  return np.stack(images), np.stack(labels)


def load(
  seed: int = 0,
  slices: int = 30,
  size: int | tuple[int, int] = 512,
  cache_dir: pathlib.Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """`generate`, kept in a file for the next time.

  Args:
    seed: as in `generate`.
    slices: as in `generate`.
    size: as in `generate`.
    cache_dir: by default `$SKIPNET_CACHE_DIR`, else `~/.cache/skipnet_jax`;
      a file that cannot be read is made anew, a folder that cannot be
      written to is passed over.

  Returns:
    image, label: [z, y, x] uint8, as from `generate`.

  Raises:
    InputError: an argument is out of range.
  """
  shape = _checked_shape(seed, slices, size)
  if cache_dir is None:
    cache_dir = os.environ.get('SKIPNET_CACHE_DIR') or os.path.expanduser(
      '~/.cache/skipnet_jax'
    )
  sides = 'x'.join(map(str, shape))
  path = pathlib.Path(cache_dir) / f'synthetic-v{VERSION}-{seed}-{sides}.npz'
  kept = _read(path, shape)
  if kept is None:
    kept = generate(seed, slices, size)
    _write(path, *kept)
  return kept


def _read(path, shape):
  """The stacks in a cached file, None where it is missing or damaged."""
  try:
    # Opened here, as np.load leaves a damaged archive's file open.
    with path.open('rb') as file, np.load(file, allow_pickle=False) as kept:
      image, label = kept['image'], kept['label']
  except Exception:  # A damaged archive fails in too many ways to name.
    return None
  whole = all(a.shape == shape and a.dtype == np.uint8 for a in (image, label))
  return (image, label) if whole else None


def _write(path, image, label):
  """Writes a file in one step; a cache that cannot be written is no error."""
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix='.tmp')
    try:
      with os.fdopen(handle, 'wb') as file:
        np.savez(file, image=image, label=label)
      os.replace(name, path)
    finally:
      pathlib.Path(name).unlink(missing_ok=True)
