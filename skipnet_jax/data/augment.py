"""Augmentation on the device: one random transform for image and label.

Flips, rotation, shear and U-Net's spline warp become one coordinate map, so
that the image is interpolated once (Drozdzal et al. 2016, section 3.1).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
  """Strength of each transform; the fields of `data.augment`.

  Attributes:
    flip: horizontal and vertical, each with probability one half.
    rotation: degrees, uniform in +-rotation.
    shear: radians, uniform in +-shear.
    warp: pixels, standard deviation of the displacements of a 3x3 grid,
      interpolated bicubically to every pixel.
  """

  flip: bool = True
  rotation: float = 25.0
  shear: float = 0.41
  warp: float = 10.0

  def active(self) -> bool:
    """Whether anything is transformed at all."""
    return bool(self.flip or self.rotation or self.shear or self.warp)


def coordinates(key: Array, size: tuple[int, int], settings: Settings) -> Array:
  """Where each pixel of the result is sampled, `[2, y, x]` float32, in pixels.

  Args:
    key: decides over the transform alone.
    size: sides y and x of the image.
    settings: strengths.
  """
  k_angle, k_shear, k_flip, k_warp = jax.random.split(key, 4)
  shape = jnp.asarray(size, jnp.float32)[:, None, None]
  centre = (shape - 1) / 2
  grid = jnp.stack(
    jnp.meshgrid(
      *(jnp.arange(s, dtype=jnp.float32) for s in size), indexing='ij'
    )
  )
  limit = jnp.deg2rad(jnp.float32(settings.rotation))
  angle = jax.random.uniform(k_angle, (), minval=-limit, maxval=limit)
  shear = jax.random.uniform(
    k_shear, (), minval=-settings.shear, maxval=settings.shear
  )
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  rotate = jnp.array([[cos, -sin], [sin, cos]])
  slant = jnp.array([[1.0, -jnp.sin(shear)], [0.0, jnp.cos(shear)]])
  # Full precision: on accelerators a matrix product would round to bfloat16.
  matrix = jnp.matmul(rotate, slant, precision='highest')
  offset = grid - centre
  moved = jnp.stack(
    [matrix[i, 0] * offset[0] + matrix[i, 1] * offset[1] for i in (0, 1)]
  )
  coarse = settings.warp * jax.random.normal(k_warp, (2, 3, 3))
  moved = (
    moved
    + centre
    + jax.image.resize(coarse, (2, *size), 'cubic', precision='highest')
  )
  flip = jax.random.bernoulli(k_flip, 0.5 if settings.flip else 0.0, (2, 1, 1))
  return jnp.where(flip, shape - 1 - moved, moved)


def transform(
  key: Array, image: Array, label: Array, settings: Settings
) -> tuple[Array, Array]:
  """Transforms one example.

  Args:
    key: the example's own.
    image: `[y, x]` float32, sampled bilinearly.
    label: `[y, x]` float32, sampled by nearest neighbour.
    settings: strengths.

  Returns:
    Image and label of the same shapes and dtypes; outside, both are reflected.
  """
  if not settings.active():
    return image, label
  where = coordinates(key, image.shape, settings)
  return (
    ndimage.map_coordinates(image, list(where), 1, 'reflect'),
    ndimage.map_coordinates(label, list(where), 0, 'reflect'),
  )
