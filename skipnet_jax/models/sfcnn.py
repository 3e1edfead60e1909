"""SFCNN (Weiler et al. 2018): a U-Net of steerable-filter convolutions."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips
from skipnet_jax.models import steerable

DEPTH = 3  # Number of downsamplings.


class SFCNN(network.Network):
  """A U-Net equivariant under rotations by 22.5 degrees.

  The equivariance is exact for quarter turns, which map pixels onto pixels.
  Each level: two steerable convolutions with BatchNorm and ReLU. Between the
  levels: max pooling and nearest upsampling. At the end: the mean over the
  orientations (rounding would change which of them is the maximum), and a 1x1
  convolution. Widths are not published.

  Attributes:
    long_skips: concatenations from the contracting to the expanding path.
    base_width: channels of the first level at each of the 16 orientations;
      each next level has twice as many.
    kernel_size: side of the kernels, in pixels: 3, 5 or 7.
  """

  long_skips: bool = True
  base_width: int = 8
  kernel_size: int = 5
  size_multiple = 2**DEPTH
  minimum: ClassVar = {'base_width': 1}
  choices: ClassVar = {'kernel_size': (3, 5, 7)}

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
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
      x = layers.upsample(x)
      if self.long_skips:
        # Concatenates the channels of each orientation.
        shape = (*x.shape[:3], steerable.ORIENTATIONS, -1)
        x = skips.LongConcatenation(name=f'long_skip_{i}')(
          x.reshape(shape), down[i].reshape(shape)
        )
        x = x.reshape(*x.shape[:3], -1)
      x = level(f'up_{i}', x, self.base_width * 2**i)
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, steerable.ORIENTATIONS, -1).mean(3)
    x = layers.Conv(1, 1, dtype=dtype, name='classifier')(x)
    return {'logits': layers.at_least_float32(x)}
