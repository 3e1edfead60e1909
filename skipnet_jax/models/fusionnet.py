"""FusionNet (Quan, Hildebrand and Jeong 2016)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import post_activation
from skipnet_jax.models import skips

DEPTH = 4  # Number of downsamplings.


class FusionNet(network.Network):
  """A U-shaped network of residual blocks whose long skips are sums.

  Each level: convolution, BatchNorm, ReLU; a residual block of three
  convolutions; convolution, BatchNorm, ReLU.

  Attributes:
    long_skips: sums from the contracting to the expanding path.
    short_skips: sums of the residual blocks.
    base_width: channels of the first level; the bridge has 16 times as many.
    use_running_average: False: a prediction uses the BatchNorm statistics of
      each image alone.
  """

  long_skips: bool = True
  short_skips: bool = True
  base_width: int = 64
  use_running_average: bool = True
  size_multiple = 2**DEPTH
  minimum: ClassVar = {'base_width': 1}

  @network.normalising
  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    settings = dict(dtype=dtype, axis_name=self.axis_name)

    def level(name, x, features):
      def norm(x, i):
        return post_activation.ConvNorm(
          features, **settings, name=f'{name}_conv_{i}'
        )(x, train)

      x = post_activation.ResidualBlock(
        3, self.short_skips, False, settings, name=name
      )(norm(x, 1), train)
      return norm(x, 2)

    x, down = image, []
    for i in range(DEPTH):
      x = level(f'down_{i}', x, self.base_width * 2**i)
      down.append(x)
      x = layers.max_pool(x)
    x = level('bridge', x, self.base_width * 2**DEPTH)
    for i in reversed(range(DEPTH)):
      features = self.base_width * 2**i
      x = layers.ConvTranspose(
        features, 3, dtype=dtype, normalised=train, name=f'up_{i}_up'
      )(x)
      x = layers.batch_norm(f'up_{i}_norm', train, dtype, self.axis_name)(x)
      x = nn.relu(x)
      if self.long_skips:
        x = skips.LongSkip(dtype=dtype, name=f'long_skip_{i}')(x, down[i])
      x = level(f'up_{i}', x, features)
    x = layers.Conv(1, 1, dtype=dtype, name='classifier')(x)
    return {'logits': layers.at_least_float32(x)}
