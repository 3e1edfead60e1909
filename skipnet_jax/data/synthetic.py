"""A synthetic EM stack with labels, generated from a seed.

It imitates the training stack of ISBI 2012, serial-section TEM of the ventral
nerve cord of a Drosophila larva at 4 x 4 x 50 nm, by measured statistics (grey
levels, membrane thickness and fraction, number and sizes of cells, change
between slices). It contains no pixel of that stack.

Cells are chains of discs that drift from slice to slice and push each other
aside; after a smooth warp, each pixel belongs to the disc with the nearest rim.
"""

import contextlib
import dataclasses
import math
import pathlib

import numpy as np
from scipy import ndimage

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import synthetic_cells

# Part of the cached file's name: increase it when a change alters the stack.
VERSION = 1
MIN_SIZE = 32
# Of the whole stack; generating it takes several bytes each.
MAX_PIXELS = 2**28


def _draw_membranes(image, distance, width, oblique, gap, dense):
  """Darkens the borders; those cut obliquely are wide and grey.

  A gap above 0 draws a lighter line between the two bilayers.
  """
  soft = 0.6 + 0.7 * dense + 0.07 * oblique
  steps = np.clip((distance - width - 0.1 * oblique) / soft, -20, 20)
  wall = 1 / (1 + np.exp(steps))
  line = np.clip(gap - 0.5, 0, 1) * np.exp(-((distance / 0.8) ** 2))
  depth = 106 / (1 + 0.05 * oblique + 0.35 * dense)
  image -= depth * wall * (1 - 0.7 * line)


def _label(inside):
  """255 inside cells, 0 on membranes; tiny regions become membrane."""
  parts, _ = ndimage.label(inside)
  large = np.bincount(parts.ravel()) >= 25
  large[0] = False
  return np.where(large[parts], 255, 0).astype(np.uint8)


def _draw_vesicles(rng, image, richness, room):
  """Draws small dark rings (vesicles, microtubules) into the cytoplasm."""
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
  """The cells of one slice."""

  discs: synthetic_cells.Discs
  grid: np.ndarray  # [2, y, x] warped coordinates [pixels]
  owner: np.ndarray  # [y, x] cell, 0 for glia
  distance: np.ndarray  # [y, x] to the border between cells [pixels]


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
  """Places mitochondria in some of the larger discs."""
  mitochondria = []
  for i in np.nonzero(discs.radius > 15)[0]:
    for _ in range(rng.poisson(0.3 * slices / 30 + 0.1)):
      r = min(discs.radius[i], 46)
      minor = r * rng.uniform(0.45, 0.8)
      mitochondria.append(
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
  return mitochondria


def _draw_mitochondria(image, room, mitochondria, z, geometry, ripple):
  """Draws dark bodies with double walls and cristae, and sets `room` to 0."""
  for m in mitochondria:
    phase = 1 - ((z - m.middle) / m.reach) ** 2
    if phase <= 0.05:
      continue
    axes = m.axes * np.sqrt(phase)
    y, x = geometry.discs.centre[m.disc] + m.offset
    window = synthetic_cells.window_around(y, x, axes.max() + 30, image.shape)
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
  """Blurs, adds uneven light and noise, sets the slice's mean and contrast."""
  grain = rng.standard_normal(image.shape, np.float32)
  image = ndimage.gaussian_filter(image + rng.uniform(32, 58) * grain, 0.8)
  image += 9 * light + 7 * rng.standard_normal(image.shape, np.float32)
  image -= image.mean()
  image *= rng.normal(42.8, 3.0) / image.std()
  return np.clip(image + rng.normal(126, 9.5), 0, 255).astype(np.uint8)


def _checked_shape(seed, slices, size):
  """Checks the arguments; returns the shape of the stack, (z, y, x)."""
  for name, value, least in (('seed', seed, 0), ('slices', slices, 1)):
    if not _is_integer(value) or value < least:
      raise errors.InputError(
        f'{name} is {value!r}, but must be an integer of at least {least} for '
        'the synthetic stack.'
      )
  plane = (size, size) if _is_integer(size) else size
  usable = isinstance(plane, (tuple, list)) and len(plane) == 2
  if not usable or not all(_is_integer(n) and n >= MIN_SIZE for n in plane):
    raise errors.InputError(
      f'size is {size!r}, but must be an integer or (y, x) of at least '
      f'{MIN_SIZE} pixels for the synthetic stack.'
    )
  shape = int(slices), int(plane[0]), int(plane[1])
  if math.prod(shape) > MAX_PIXELS:
    raise errors.InputError(
      f'{shape[0]} slices of {shape[1]}x{shape[2]} have {math.prod(shape)} '
      f'pixels, but the synthetic stack has at most {MAX_PIXELS}: give fewer '
      'or smaller slices.'
    )
  return shape


def _is_integer(value):
  return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def generate(
  seed: int = 0, slices: int = 30, size: int | tuple[int, int] = 512
) -> tuple[np.ndarray, np.ndarray]:
  """Generates a stack of EM-like slices and its membrane labels.

  Args:
    seed: 0 or more; equal arguments give equal bits.
    slices: number of slices, 50 nm apart, at least 1.
    size: side of a slice, or (y, x), in pixels of 4 nm, at least 32; the stack
      has at most `MAX_PIXELS`.

  Returns:
    image: [z, y, x] uint8.
    label: [z, y, x] uint8, 255 inside cells and 0 on membranes.

  Raises:
    InputError: an argument is out of range.
  """
  volume = _checked_shape(seed, slices, size)
  shape = volume[1:]
  rng = np.random.default_rng(seed)
  # Small slices have small cells, so that each contains several.
  largest = min(72.0, 0.2 * min(shape))
  warps = [synthetic_cells.Noise(rng, volume, s, 1.5) for s in (36, 9, 36, 9)]
  plane = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
  stack = []
  tracks = synthetic_cells.tracks(rng, slices, shape, largest)
  for z, discs in enumerate(tracks):
    shift = rng.normal(0, 3, 2)  # Slices are never perfectly aligned.
    y_wide, y_narrow, x_wide, x_narrow = (noise(z) for noise in warps)
    bend = [7.0 * y_wide + 1.5 * y_narrow, 7.0 * x_wide + 1.5 * x_narrow]
    grid = plane + np.stack(bend) + shift[:, None, None].astype(np.float32)
    owner = synthetic_cells.rasterise(discs, grid)
    distance = synthetic_cells.border_distance(owner)
    stack.append(_Geometry(discs, grid, owner, distance))

  cells = stack[0].discs.cell.max() + 1
  tone = rng.normal(0, 8, cells).astype(np.float32)
  tone[0] = -26
  coarse = rng.gamma(4, 5, cells).astype(np.float32)
  richness = np.clip(rng.lognormal(-2.1, 0.8, cells), 0.06, 0.6)
  mitochondria = _seed_mitochondria(rng, stack[0].discs, slices)
  width, gap, junction, light, patch, sheet = (
    synthetic_cells.Noise(rng, volume, s, sz)
    for s, sz in ((7, 1), (12, 1), (16, 1.2), (60, 1), (22, 1), (11, 1))
  )
  granules = synthetic_cells.Noise(rng, volume, 2)
  images, labels = [], []
  for z, geometry in enumerate(stack):
    owner, distance = geometry.owner, geometry.distance
    dense = np.clip(junction(z) - 1.5, 0, 1.5)
    half = 2.25 + 0.4 * width(z) + 9 * dense
    beside = [stack[n] for n in (z - 1, z + 1) if 0 <= n < slices] or [geometry]
    distances = [g.distance for g in beside]
    oblique = synthetic_cells.obliqueness(distance, distances)
    image = 150 + ndimage.gaussian_filter(tone[owner], 1)
    image -= coarse[owner] * np.clip(granules(z), -0.5, 2)
    room = np.clip((distance - half - 2) / 2, 0, 1)
    _draw_mitochondria(image, room, mitochondria, z, geometry, sheet(z))
    _draw_vesicles(rng, image, richness[owner], room)
    # The endoplasmic reticulum: thin dark curved lines in some areas.
    line = np.exp(-((sheet(z) / 0.07) ** 2)) * np.clip(patch(z) - 1.2, 0, 1)
    image -= 70 * line * room
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
  """`generate`, cached in a file; the other arguments are those of `generate`.

  Args:
    cache_dir: by default `environment.cache_dir()`. A damaged file is replaced;
      in a folder that is not writable, nothing is cached.

  Raises:
    InputError: an argument is out of range.
  """
  shape = _checked_shape(seed, slices, size)
  folder = pathlib.Path(cache_dir or environment.cache_dir())
  sides = 'x'.join(map(str, shape))
  path = folder / f'synthetic-v{VERSION}-{seed}-{sides}.npz'
  cached = _read(path, shape)
  if cached:
    return cached
  image, label = generate(seed, slices, size)
  with contextlib.suppress(OSError):
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
      np.savez(file, image=image, label=label)
  return image, label


def _read(path, shape):
  """The stacks in a cached file; None if it is missing or damaged."""
  try:
    # Opened here, because np.load leaves the file of a damaged archive open.
    with path.open('rb') as file, np.load(file, allow_pickle=False) as cached:
      stacks = cached['image'], cached['label']
  except Exception:  # A damaged archive raises many kinds of exceptions.
    return None
  whole = all(a.shape == shape and a.dtype == np.uint8 for a in stacks)
  return stacks if whole else None
