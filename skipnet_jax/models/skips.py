"""Skip connections: short ones around a block, long ones across the network.

In a call, the first argument comes through the layers and the second one skips
them. `analysis.routes` recognises skips by their attribute `skip_kind`.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers


class ShortSkip(nn.Module):
  """The sum of a block's residual path and its shortcut.

  The shortcut is resampled like the block. A 1x1 convolution projects it only
  if the channel counts differ; it has no BatchNorm or ReLU.

  Attributes:
    resample: 'none', 'down' (decimation) or 'up' (nearest upsampling).
  """

  resample: str
  dtype: layers.Dtype
  skip_kind: ClassVar[str] = 'short'

  def __call__(self, residual: jax.Array, x: jax.Array) -> jax.Array:
    """Adds x `[b, y, x, c_in]` to residual `[b, y', x', c]`."""
    return residual + self.shortcut(x, residual.shape[-1])

  @nn.compact
  def shortcut(self, x: jax.Array, features: int) -> jax.Array:
    """Maps x to the residual's shape, of `features` channels."""
    if self.resample == 'down':
      x = x[:, ::2, ::2]
    if x.shape[-1] != features:
      x = layers.Conv(features, 1, dtype=self.dtype, name='projection')(x)
    if self.resample == 'up':
      x = layers.upsample(x)
    return x


class LongSkip(nn.Module):
  """The sum of the expanding path and the contracting stage of its resolution.

  If their channel counts differ, 1x1 convolutions project.

  Attributes:
    projection: 'decoder' projects the expanding side to the contracting side's
      width; 'both' projects each side that is wider to `features`.
    features: inner width of the stage, used by 'both'.
  """

  projection: str = 'decoder'
  features: int = 0
  dtype: layers.Dtype = jnp.float32
  skip_kind: ClassVar[str] = 'long'

  @nn.compact
  def __call__(self, decoder: jax.Array, encoder: jax.Array) -> jax.Array:
    """Adds `[b, y, x, c_decoder]` and `[b, y, x, c_encoder]`."""

    def project(x, features, name):
      if x.shape[-1] == features:
        return x
      return layers.Conv(features, 1, dtype=self.dtype, name=name)(x)

    width = encoder.shape[-1]
    if self.projection == 'both' and decoder.shape[-1] != width:
      width = self.features
    encoder = project(encoder, width, 'encoder')
    decoder = project(decoder, width, 'decoder')
    return decoder + encoder


class LongConcatenation(nn.Module):
  """The contracting stage's channels beside those of the expanding path."""

  skip_kind: ClassVar[str] = 'long'

  def __call__(self, decoder: jax.Array, encoder: jax.Array) -> jax.Array:
    """Returns `[b, y, x, c_encoder + c_decoder]`.

    The encoder is cropped to the centre if it is larger than the decoder.
    """
    encoder = layers.centre_crop(encoder, decoder.shape[1:3])
    return jnp.concatenate([encoder, decoder], -1)
