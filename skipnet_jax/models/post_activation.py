"""Convolution, BatchNorm, ReLU in this order, and residual blocks of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import skips


class ConvNorm(nn.Module):
  """A 3x3 convolution, BatchNorm and, if `relu`, ReLU.

  `make_norm` is the argument `make` of `layers.batch_norm`.
  """

  features: int
  relu: bool = True
  use_bias: bool = True
  kernel_init: Any = nn.initializers.he_normal()
  scale_init: Any = nn.initializers.ones_init()
  make_norm: Any = nn.BatchNorm
  dtype: layers.Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, c]` to `[b, y, x, features]`."""
    x = layers.Conv(
      self.features,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      normalised=train,
      name='conv',
    )(x)
    x = layers.batch_norm(
      'norm',
      train,
      self.dtype,
      self.axis_name,
      self.scale_init,
      self.make_norm,
    )(x)
    return nn.relu(x) if self.relu else x


class ResidualBlock(nn.Module):
  """Several `ConvNorm`s, the last without ReLU, plus the block's input.

  `conv` has the attributes of every `ConvNorm`. ReLU follows the sum if `relu`.
  """

  convolutions: int
  short_skip: bool
  relu: bool
  conv: dict

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, c]` to the same shape."""
    residual, last = x, self.convolutions
    for i in range(1, last + 1):
      residual = ConvNorm(
        x.shape[-1], relu=i < last, **self.conv, name=f'conv_{i}'
      )(residual, train)
    if self.short_skip:
      skip = skips.ShortSkip('none', residual.dtype, name='short_skip')
      residual = skip(residual, x)
    return nn.relu(residual) if self.relu else residual
