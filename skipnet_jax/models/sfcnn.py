"""SFCNN (Weiler et al. 2018): a U-Net of steerable-filter convolutions."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax import errors
from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips
from skipnet_jax.models import steerable

# Halvings between the four levels.
DEPTH = 3


class SFCNN(network.Network):
  """A U-Net equivariant under rotations by 22.5 degrees.

  Exactly so under quarter turns, which map the pixels onto themselves. Each
  level: two steerable convolutions with BatchNorm and ReLU; max pooling and
  repetition between the levels; at the end the mean over the orientations, and
  a 1x1 convolution. (The largest instead would turn over by rounding.) Widths
  are not published.

  Attributes:
    long_skips: concatenations from the contracting to the expanding path.
    base_width: channels of the first level at each of the 16 orientations;
      each level has twice as many as the one before.
    kernel_size: side of the kernels, in pixels: 3, 5 or 7.
  """

  long_skips: bool = True
  base_width: int = 8
  kernel_size: int = 5
  size_multiple = 2**DEPTH
  least: ClassVar = {'base_width': 1}

  def check(self) -> None:
    """Raises InputError for a setting that no network can be built from."""
    super().check()
    if self.kernel_size not in (3, 5, 7):
      raise errors.InputError(
        f'model.kernel_size is {self.kernel_size}; it must be 3, 5 or 7.'
      )

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
    del sample
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)

    def level(name, x, features):
      for i in (1, 2):
        x = steerable.SteerableConv(
          features,
          self.kernel_size,
          lift=x.shape[-1] == 1,
          dtype=dtype,
          name=f'{name}_conv_{i}',
        )(x)
        x = steerable.OrientedNorm(
          dtype, self.axis_name, name=f'{name}_norm_{i}'
        )(x, train)
      return x

    x, down = image, []
    for i in range(DEPTH + 1):
      x = level(f'down_{i}', x, self.base_width * 2**i)
      if i < DEPTH:
        down.append(x)
        x = layers.max_pool(x)
    for i in reversed(range(DEPTH)):
      x = layers.repeat(x)
      if self.long_skips:
        x = _join(f'long_skip_{i}', x, down[i])
      x = level(f'up_{i}', x, self.base_width * 2**i)
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, steerable.ORIENTATIONS, -1).mean(3)
    x = layers.Conv(1, 1, dtype=dtype, name='classifier')(x)
    return {'logits': layers.wide(x)}


def _join(name: str, x: jax.Array, encoder: jax.Array) -> jax.Array:
  """Concatenates the channels of each orientation."""
  shape = (*x.shape[:3], steerable.ORIENTATIONS, -1)
  both = skips.LongConcatenation(name=name)(
    x.reshape(shape), encoder.reshape(shape)
  )
  return both.reshape(*x.shape[:3], -1)
