"""SFCNN (Weiler, Hamprecht, Storath 2018): a U-Net of steerable filters.

A filter is a weighted sum of atoms: circular harmonics times Gaussian rings.
The network learns the weights. Shifting the phase of each harmonic rotates the
filter exactly. A feature map holds every channel at `ORIENTATIONS`
orientations: `[b, y, x, o c]`, where the orientation is the slower index.
"""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips

DEPTH = 3  # Number of downsamplings.
ORIENTATIONS = 16
# Standard deviation of the rings, in pixels; their radii are one pixel apart.
SIGMA = 0.6
# Highest angular frequency of each ring, from the centre: its pixels do not
# resolve higher ones.
FREQUENCIES = (0, 2, 3, 2)


@functools.cache
def basis(side: int) -> np.ndarray:
  """The atoms at every orientation, `[o, q, side, side]` float32.

  A harmonic above 0 has two atoms, a cosine and a sine; every atom has norm 1
  at orientation 0. A rotation by 90 degrees is `np.rot90` of the pixels. The
  side is odd and at most 7 pixels.
  """
  half = side // 2
  y, x = np.mgrid[half : -half - 1 : -1, -half : half + 1].astype(float)
  radius, angle = np.hypot(x, y), np.arctan2(y, x)
  turns = 2 * np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
  angle = angle[None] - turns[:, None, None]
  unscaled = []
  for ring, highest in enumerate(FREQUENCIES[: half + 1]):
    profile = np.exp(-((radius - ring) ** 2) / (2 * SIGMA**2))
    for k in range(highest + 1):
      # A harmonic above 0 is undefined at the centre: use 0.
      shape = profile if k == 0 else profile * (radius > 0)
      unscaled.append(shape * np.cos(k * angle))
      if k:
        unscaled.append(shape * np.sin(k * angle))
  atoms = np.stack(unscaled, 1)
  norm = np.sqrt(np.square(atoms[:1]).sum((2, 3), keepdims=True))
  return (atoms / norm).astype(np.float32)


def _he_normal(inputs: int):
  """Generalised He initialisation for atoms of norm 1 and `inputs` channels."""

  def init(key, shape, dtype=jnp.float32):
    scale = math.sqrt(2 / (shape[0] * inputs))
    return scale * jax.random.normal(key, shape, dtype)

  return init


class SteerableConv(nn.Module):
  """A convolution over positions and orientations, with bias.

  It has `features` output channels at every orientation. With `lift`, the input
  is an image without orientations; `normalised` is that of `layers.make_bias`.
  """

  features: int
  kernel_size: int = 5
  lift: bool = False
  normalised: bool = False
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, o c]`, or `[b, y, x, c]`, to `[b, y, x, o features]`."""
    atoms = basis(self.kernel_size)
    orientations = 1 if self.lift else ORIENTATIONS
    inputs = x.shape[-1] // orientations
    weights = self.param(
      'kernel',
      _he_normal(inputs * orientations),
      (atoms.shape[1], orientations, inputs, self.features),
    )
    # The weights depend on the input's orientation relative to the output's.
    to, by = np.mgrid[:ORIENTATIONS, :orientations]
    turned = weights[:, (by - to) % orientations]
    kernel = jnp.einsum(
      'oqyx,qoscf->yxscof', atoms, turned, precision='highest'
    )
    k = self.kernel_size
    kernel = kernel.reshape(k, k, orientations * inputs, -1).astype(self.dtype)
    x = layers.conv(x.astype(self.dtype), kernel)
    bias = layers.make_bias(self, self.features, self.normalised)
    return x + layers.spread(jnp.tile(bias, ORIENTATIONS), x)

  def products(self, kernel: tuple[int, ...]) -> int:
    """Multiplications per pixel for a `kernel` of this shape."""
    return self.kernel_size**2 * math.prod(kernel[1:]) * ORIENTATIONS


class OrientedNorm(nn.Module):
  """BatchNorm of each channel over all orientations, then ReLU."""

  dtype: layers.Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, o c]` to the same shape."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, ORIENTATIONS, c // ORIENTATIONS)
    x = layers.batch_norm('norm', train, self.dtype, self.axis_name)(x)
    return nn.relu(x).reshape(b, h, w, c)


class SFCNN(network.Network):
  """A U-Net equivariant under rotations by 22.5 degrees.

  The equivariance is exact for quarter turns, which map pixels onto pixels. For
  others it is approximate: turning the image by 22.5 degrees changed the turned
  prediction of a random network by 46 % of its norm (1 to 2 % after one layer,
  8 to 17 % after four).
  Each level: two steerable convolutions with BatchNorm and ReLU. Between the
  levels: max pooling and nearest upsampling. At the end: the mean over the
  orientations (rounding would change which of them is the maximum), and a 1x1
  convolution. Widths are not published.

  Attributes:
    long_skips: concatenations from the contracting to the expanding path.
    base_width: channels of the first level at each of the 16 orientations;
      each next level has twice as many.
    kernel_size: side of the kernels, in pixels: 3, 5 or 7.
    use_running_average: False: a prediction uses the BatchNorm statistics of
      each image alone.
  """

  long_skips: bool = True
  base_width: int = 8
  kernel_size: int = 5
  use_running_average: bool = True
  size_multiple = 2**DEPTH
  minimum: ClassVar = {'base_width': 1}
  choices: ClassVar = {'kernel_size': (3, 5, 7)}

  @network.normalising
  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)

    def level(name, x, features):
      for i in (1, 2):
        x = SteerableConv(
          features,
          self.kernel_size,
          lift=x.shape[-1] == 1,
          normalised=train,
          dtype=dtype,
          name=f'{name}_conv_{i}',
        )(x)
        x = OrientedNorm(dtype, self.axis_name, name=f'{name}_norm_{i}')(
          x, train
        )
      return x

    x, down = image, []
    for i in range(DEPTH + 1):
      x = level(f'down_{i}', x, self.base_width * 2**i)
      if i < DEPTH:
        down.append(x)
        x = layers.max_pool(x)
    for i in reversed(range(DEPTH)):
      x = layers.upsample(x)
      if self.long_skips:
        # Concatenates the channels of each orientation.
        shape = (*x.shape[:3], ORIENTATIONS, -1)
        x = skips.LongConcatenation(name=f'long_skip_{i}')(
          x.reshape(shape), down[i].reshape(shape)
        )
        x = x.reshape(*x.shape[:3], -1)
      x = level(f'up_{i}', x, self.base_width * 2**i)
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, ORIENTATIONS, -1).mean(3)
    x = layers.Conv(1, 1, dtype=dtype, name='classifier')(x)
    return {'logits': layers.at_least_float32(x)}
