"""The residual blocks of Drozdzal et al. 2016, section 2 (Figure 1).

All are pre-activation: BatchNorm, ReLU, convolution. A 1x1 convolution commutes
with upsampling and decimation, so it runs at the lower resolution.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import skips


class Block(nn.Module):
  """The base class of the blocks: attributes, pre-activation, shortcut.

  Attributes:
    resample: 'none', 'down' or 'up', by a factor of two.
    short_skip: whether the input is added to the output.
    batch_norm: whether BatchNorm precedes each ReLU.
    dropout: rate on the residual path.
  """

  features: int
  resample: str = 'none'
  short_skip: bool = True
  batch_norm: bool = True
  dropout: float = 0.0
  dtype: layers.Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, drop: bool) -> jax.Array:
    """Maps `[b, y, x, c]` to `[b, y', x', features]`."""
    residual = self.residual(x, train, drop)
    if not self.short_skip:
      return residual
    skip = skips.ShortSkip(self.resample, self.dtype, name='short_skip')
    return skip(residual, x)

  def residual(self, x: jax.Array, train: bool, drop: bool) -> jax.Array:
    """The residual path: `[b, y, x, c]` to `[b, y', x', features]`."""
    raise TypeError('Block is abstract: use one of BLOCKS')

  def _act(self, x: jax.Array, index: int, train: bool) -> jax.Array:
    if self.batch_norm:
      norm = layers.batch_norm(
        f'norm_{index}', train, self.dtype, self.axis_name
      )
      x = norm(x)
    return nn.relu(x)

  def _conv(self, x, index: int, features: int, size: int, **attributes):
    return layers.Conv(
      features, size, **attributes, dtype=self.dtype, name=f'conv_{index}'
    )(x)

  def _drop(self, x: jax.Array, drop: bool) -> jax.Array:
    return layers.Dropout(self.dropout, self.axis_name)(x, drop)

  def _upsample(self, x: jax.Array) -> jax.Array:
    return layers.upsample(x) if self.resample == 'up' else x

  def _strides(self) -> int:
    return 2 if self.resample == 'down' else 1


class SimpleBlock(Block):
  """One 3x3 convolution; max pooling downsamples."""

  def residual(self, x: jax.Array, train: bool, drop: bool) -> jax.Array:
    """BN, ReLU, [max pool], 3x3, dropout, [upsample]."""
    x = self._act(x, 1, train)
    if self.resample == 'down':
      x = layers.max_pool(x)
    x = self._conv(x, 1, self.features, 3)
    return self._upsample(self._drop(x, drop))


class BasicBlock(Block):
  """Two 3x3 convolutions; the stride of the first downsamples."""

  def residual(self, x: jax.Array, train: bool, drop: bool) -> jax.Array:
    """BN, ReLU, 3x3, dropout, BN, ReLU, [upsample], 3x3.

    With stride 2, 'SAME' would pad after the last pixel only. The authors pad
    one pixel before the first too.
    """
    x = self._act(x, 1, train)
    padding = ((1, 1), (1, 1))
    x = self._conv(
      x, 1, self.features, 3, strides=self._strides(), padding=padding
    )
    x = self._act(self._drop(x, drop), 2, train)
    return self._conv(self._upsample(x), 2, self.features, 3)


class BottleneckBlock(Block):
  """1x1, 3x3 and 1x1 convolutions, the first two of a quarter of the width."""

  def residual(self, x: jax.Array, train: bool, drop: bool) -> jax.Array:
    """BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, [upsample], 1x1, dropout."""
    return self._drop(self._upsample(self.convolved(x, train)), drop)

  def convolved(self, x: jax.Array, train: bool) -> jax.Array:
    """The residual path without upsampling and dropout."""
    inner = self.features // 4
    normalised = train and self.batch_norm
    x = self._act(x, 1, train)
    x = self._conv(
      x, 1, inner, 1, strides=self._strides(), normalised=normalised
    )
    x = self._act(x, 2, train)
    x = self._conv(x, 2, inner, 3, normalised=normalised)
    return self._conv(self._act(x, 3, train), 3, self.features, 1)


# Block kind: (class, output width as a multiple of the stage's inner width).
BLOCKS = {
  'simple': (SimpleBlock, 1),
  'basic': (BasicBlock, 1),
  'bottleneck': (BottleneckBlock, 4),
}
