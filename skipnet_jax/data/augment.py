"""Augmentation on the device: one random transform for image and label.

Flips, quarter turns, rotation, shear, scale, U-Net's spline warp and elastic
displacements are combined into one coordinate map, so that the image is
interpolated only once (Drozdzal et al. 2016, section 3.1; Guo et al. 2019).
"""

import jax
from jax import lax
import jax.numpy as jnp
from jax.scipy import ndimage
import numpy as np
import scipy.ndimage

from skipnet_jax import config as config_lib

Array = jax.Array
Settings = config_lib.Augmentation


def _smoothing(side: int, sigma: float) -> np.ndarray:
  """The matrix that smooths a vector by a Gaussian, with zeros beyond it."""
  return scipy.ndimage.gaussian_filter1d(
    np.eye(side, dtype=np.float32), sigma, axis=0, mode='constant'
  )


def _elastic(key: Array, size: tuple[int, int], settings: Settings) -> Array:
  """Displacement of each pixel, `[2, y, x]`, in pixels."""
  k_noise, k_displaced = jax.random.split(key)
  noise = jax.random.uniform(k_noise, (2, *size), minval=-1.0, maxval=1.0)
  rows, columns = (_smoothing(side, settings.elastic_sigma) for side in size)
  smooth = jnp.einsum(
    'yi,cij,xj->cyx', rows, noise, columns, precision='highest'
  )
  displaced = jax.random.bernoulli(k_displaced, settings.elastic_share)
  return jnp.where(displaced, settings.elastic * smooth, 0.0)


def coordinates(key: Array, size: tuple[int, int], settings: Settings) -> Array:
  """Where to sample each pixel, `[2, y, x]` float32, in pixels."""
  k_angle, k_shear, k_flip, k_warp = jax.random.split(key, 4)
  shape = jnp.asarray(size, jnp.float32)[:, None, None]
  centre = (shape - 1) / 2
  axes = (jnp.arange(s, dtype=jnp.float32) for s in size)
  grid = jnp.stack(jnp.meshgrid(*axes, indexing='ij'))
  limit = jnp.deg2rad(jnp.float32(settings.rotation))
  angle = jax.random.uniform(k_angle, (), minval=-limit, maxval=limit)
  shear = jax.random.uniform(
    k_shear, (), minval=-settings.shear, maxval=settings.shear
  )
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  rotate = jnp.array([[cos, -sin], [sin, cos]])
  slant = jnp.array([[1.0, -jnp.sin(shear)], [0.0, jnp.cos(shear)]])
  # By default, accelerators would round the product to bfloat16.
  matrix = jnp.matmul(rotate, slant, precision='highest')
  # fold_in keeps the other random numbers independent of these settings.
  if settings.scale:
    limit = jnp.log1p(jnp.float32(settings.scale))
    k_scale = jax.random.fold_in(key, 6)
    # Sampled farther apart, an image becomes smaller.
    matrix = matrix * jnp.exp(
      -jax.random.uniform(k_scale, (), minval=-limit, maxval=limit)
    )
  offset = grid - centre
  moved = jnp.stack(
    [matrix[i, 0] * offset[0] + matrix[i, 1] * offset[1] for i in (0, 1)]
  )
  coarse = settings.warp * jax.random.normal(k_warp, (2, 3, 3))
  moved = moved + centre
  warp = jax.image.resize(coarse, (2, *size), 'cubic', precision='highest')
  moved = moved + warp
  if settings.elastic:
    moved = moved + _elastic(jax.random.fold_in(key, 1), size, settings)
  if settings.rot90:
    turns = jax.random.randint(jax.random.fold_in(key, 2), (), 0, 4)
    moved = jnp.where(turns % 2, moved[::-1], moved)
    # A transposition and a flip make a quarter turn.
    turned = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1]])[turns] > 0
    moved = jnp.where(turned[:, None, None], shape - 1 - moved, moved)
  flip = jax.random.bernoulli(k_flip, 0.5 if settings.flip else 0.0, (2, 1, 1))
  return jnp.where(flip, shape - 1 - moved, moved)


def transform(
  key: Array, image: Array, label: Array, settings: Settings, *more: Array
) -> tuple[Array, ...]:
  """Transforms one example: image, label and `more`; shapes and dtypes stay.

  Beyond the borders, all are reflected.

  Args:
    key: of this example.
    image: `[..., y, x]` float32, interpolated bilinearly.
    label: `[y, x]` float32, interpolated by nearest neighbour.
    settings: strengths.
    *more: `[y, x]` float32, interpolated bilinearly.
  """
  if not settings.active():
    return intensity(key, image, settings), label, *more
  y, x = label.shape
  where = list(coordinates(key, (y, x), settings))

  def sample(x: Array, order: int) -> Array:
    return ndimage.map_coordinates(x, where, order, 'reflect')

  planes = image.reshape(-1, *label.shape)
  planes = jax.vmap(lambda plane: sample(plane, 1))(planes)
  image, label = planes.reshape(image.shape), sample(label, 0)
  return intensity(key, image, settings), label, *(sample(x, 1) for x in more)


def intensity(key: Array, image: Array, settings: Settings) -> Array:
  """Smooths `[..., y, x]`, changes contrast and brightness, adds noise."""
  k_gain, k_bias, k_noise = (jax.random.fold_in(key, i) for i in (3, 4, 5))
  if settings.blur:
    image = _blurred(jax.random.fold_in(key, 7), image, settings.blur)
  if limit := settings.contrast:
    low, high = 1 - limit, 1 + limit
    image = image * jax.random.uniform(k_gain, (), minval=low, maxval=high)
  if limit := settings.brightness:
    image = image + jax.random.uniform(k_bias, (), minval=-limit, maxval=limit)
  if settings.low_contrast:
    k_lost, k_factor = jax.random.split(jax.random.fold_in(key, 8))
    factor = jax.random.uniform(k_factor, (), minval=0.1, maxval=0.5)
    lost = jax.random.bernoulli(k_lost, settings.low_contrast)
    image = image * jnp.where(lost, factor, 1.0)
  if settings.noise:
    image = image + settings.noise * jax.random.normal(k_noise, image.shape)
  return image


def _blurred(key: Array, image: Array, most: float) -> Array:
  """`[..., y, x]` after a Gaussian of random sigma; beyond borders the same."""
  sigma = jax.random.uniform(key, (), minval=0.0, maxval=most)
  reach = int(np.ceil(3 * most))
  offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
  # At sigma 0, all weights but the middle one are zero.
  weights = jnp.exp(-0.5 * jnp.square(offsets / jnp.maximum(sigma, 1e-3)))
  weights = weights / weights.sum()
  for axis in (-2, -1):
    side = image.shape[axis]
    padding = [(0, 0)] * image.ndim
    padding[axis] = (reach, reach)
    wide = jnp.pad(image, padding, 'symmetric')
    shifted = [
      lax.slice_in_dim(wide, i, i + side, axis=axis % image.ndim)
      for i in range(2 * reach + 1)
    ]
    image = sum(w * part for w, part in zip(weights, shifted, strict=True))
  return image
