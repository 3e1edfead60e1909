"""The contracting path of VGG, for CUMedVision and M2FCN."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers

# Number of convolutions on each level.
CONVOLUTIONS = (2, 2, 3, 3)
# The sides of an image are halved between the levels.
SIZE_MULTIPLE = 2 ** (len(CONVOLUTIONS) - 1)


class Trunk(nn.Module):
  """3x3 convolutions with ReLU, and max pooling between the levels.

  The first level has `base_width` channels, each next level twice as many.
  """

  base_width: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """Maps `[b, y, x, c]` to the levels' `[b, y / 2^i, x / 2^i, w 2^i]`."""
    levels = []
    for level, count in enumerate(CONVOLUTIONS):
      x = layers.max_pool(x) if level else x
      for i in range(1, count + 1):
        x = layers.Conv(
          self.base_width * 2**level,
          dtype=self.dtype,
          name=f'level_{level}_conv_{i}',
        )(x)
        x = nn.relu(x)
      levels.append(x)
    return levels
