"""Group convolutions by steerable filters (Weiler, Hamprecht, Storath 2018).

A filter is a sum of circular harmonics times Gaussian rings, whose weights are
learned; turning each harmonic by its phase turns the filter exactly. Feature
maps hold every channel at `ORIENTATIONS` orientations: `[b, y, x, o c]`, the
orientation the slower index.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import layers

ORIENTATIONS = 16
# Width of the rings, in pixels; they lie one pixel apart.
SIGMA = 0.6
# Highest angular frequency of each ring, from the centre: beyond, a harmonic
# is not resolved by the pixels there.
FREQUENCIES = (0, 2, 3, 2)


@functools.cache
def basis(side: int) -> np.ndarray:
  """The atoms at every orientation, `[o, q, side, side]` float32.

  Each harmonic above 0 has two, a cosine and a sine; every atom has the norm 1
  at orientation 0. Turning by 90 degrees is `np.rot90` of the pixels.

  Args:
    side: of the kernel, in pixels, odd and at most 7.
  """
  half = side // 2
  y, x = np.mgrid[half : -half - 1 : -1, -half : half + 1].astype(float)
  radius, angle = np.hypot(x, y), np.arctan2(y, x)
  turns = 2 * np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
  angle = angle[None] - turns[:, None, None]
  found = []
  for ring, highest in enumerate(FREQUENCIES[: half + 1]):
    profile = np.exp(-((radius - ring) ** 2) / (2 * SIGMA**2))
    for k in range(highest + 1):
      # A harmonic has no value in its centre.
      shape = profile if k == 0 else profile * (radius > 0)
      found.append(shape * np.cos(k * angle))
      if k:
        found.append(shape * np.sin(k * angle))
  atoms = np.stack(found, 1)
  norm = np.sqrt(np.square(atoms[:1]).sum((2, 3), keepdims=True))
  return (atoms / norm).astype(np.float32)


def _he_normal(inputs: int):
  """Generalised He initialisation: of atoms of norm 1, seen by `inputs`."""

  def init(key, shape, dtype=jnp.float32):
    scale = math.sqrt(2 / (shape[0] * inputs))
    return scale * jax.random.normal(key, shape, dtype)

  return init


class SteerableConv(nn.Module):
  """A convolution over positions and orientations, with bias.

  Attributes:
    features: output channels, at every orientation.
    kernel_size: side of the kernel, in pixels, odd and at most 7.
    lift: whether the input is an image, without orientations.
    dtype: compute dtype.
  """

  features: int
  kernel_size: int = 5
  lift: bool = False
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, o c]`, or `[b, y, x, c]`, to `[b, y, x, o features]`."""
    atoms = basis(self.kernel_size)
    seen = 1 if self.lift else ORIENTATIONS
    inputs = x.shape[-1] // seen
    weights = self.param(
      'kernel',
      _he_normal(inputs * seen),
      (atoms.shape[1], seen, inputs, self.features),
    )
    # An output orientation sees the others relative to its own.
    to, by = np.mgrid[:ORIENTATIONS, :seen]
    turned = weights[:, (by - to) % seen]
    kernel = jnp.einsum(
      'oqyx,qoscf->yxscof', atoms, turned, precision='highest'
    )
    k = self.kernel_size
    kernel = kernel.reshape(k, k, seen * inputs, -1).astype(self.dtype)
    x = layers.conv(x.astype(self.dtype), kernel)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    bias = jnp.tile(bias, ORIENTATIONS).astype(self.dtype)
    return x + bias.reshape(1, 1, 1, -1)

  def products(self, kernel: tuple[int, ...]) -> int:
    """Of a pixel, with a `kernel` of this shape, see `layer_table`."""
    _, seen, inputs, features = kernel
    return self.kernel_size**2 * seen * inputs * features * ORIENTATIONS


class OrientedNorm(nn.Module):
  """BatchNorm of each channel over all orientations, then ReLU.

  Attributes:
    dtype: compute dtype.
    axis_name: mapped axis of a pmapped call, or None.
  """

  dtype: layers.Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, o c]` to the same shape."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, ORIENTATIONS, c // ORIENTATIONS)
    x = layers.batch_norm('norm', train, self.dtype, self.axis_name)(x)
    return nn.relu(x).reshape(b, h, w, c)
