"""M2FCN (Shen et al. 2017): a sequence of networks with side outputs."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import vgg


def bilinear(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
  """Initialises a kernel `[2s, 2s, 1, 1]` of stride s to interpolate."""
  side = shape[0]
  distance = jnp.abs(jnp.arange(side, dtype=dtype) - (side - 1) / 2)
  ramp = 1 - distance / (side / 2)
  return jnp.outer(ramp, ramp).reshape(shape)


def mean(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
  """Initialises a 1x1 kernel to the mean of all inputs."""
  return jnp.full(shape, 1 / shape[2], dtype)


class Stage(nn.Module):
  """A network with a side output at each level (Xie and Tu 2015) and a fusion.

  A side output is a 1x1 convolution to one channel, then a transposed
  convolution to full size, which starts as bilinear interpolation. The fusion
  starts as the mean of the side outputs: from random weights it may start with
  the wrong sign, and needs long to recover.
  """

  base_width: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps `[b, y, x, c]` to side outputs `[b, y, x, 4]`, fusion `[.., 1]`."""
    outputs = []
    for level, side in enumerate(
      vgg.Trunk(self.base_width, self.dtype, name='trunk')(x)
    ):
      side = layers.Conv(1, 1, dtype=self.dtype, name=f'side_{level}')(side)
      if level:
        stride = 2**level
        side = layers.ConvTranspose(
          1,
          2 * stride,
          stride,
          kernel_init=bilinear,
          dtype=self.dtype,
          name=f'side_{level}_up',
        )(side)
      outputs.append(side)
    sides = jnp.concatenate(outputs, -1)
    fusion = layers.Conv(
      1, 1, kernel_init=mean, dtype=self.dtype, name='fusion'
    )
    return sides, fusion(sides)


class M2FCN(network.Network):
  """Stages, each of which reads the image and the last stage's side outputs.

  The last fusion is the prediction. Every side output and every other fusion is
  an auxiliary output. Widths are not published; here each stage is half as wide
  as VGG.

  Attributes:
    stages: number of stages.
    base_width: channels of a stage's first level; the last has 8 times as many.
  """

  stages: int = 3
  base_width: int = 32
  size_multiple = vgg.SIZE_MULTIPLE
  minimum: ClassVar = {'stages': 1, 'base_width': 1}
  maximum: ClassVar = {'stages': 100}

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    x, auxiliary = image, {}
    for number in range(1, self.stages + 1):
      sides, fused = Stage(self.base_width, dtype, name=f'stage_{number}')(x)
      sides = layers.at_least_float32(sides)
      fused = layers.at_least_float32(fused)
      for level in range(sides.shape[-1]):
        name = f'stage_{number}_side_{level}'
        auxiliary[name] = sides[..., level : level + 1]
      auxiliary[f'stage_{number}'] = fused
      # Probabilities, so that no side output dominates the image by its scale.
      x = jnp.concatenate([image, nn.sigmoid(sides)], -1)
    del auxiliary[f'stage_{self.stages}']
    return {'logits': fused, 'auxiliary': auxiliary}
