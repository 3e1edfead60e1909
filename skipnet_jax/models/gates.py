"""Gates on skip connections (Guo et al. 2019).

A gate multiplies what skips by a mask in 0..1. Each mask is sown into the
collection `gates` as `value`: who applies a model with `mutable=['gates']`
gets it, for all others it costs nothing.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers

GATES = 'gates'


def _sow(module: nn.Module, mask: jax.Array) -> None:
  if not module.is_initializing():
    module.sow(GATES, 'value', mask, lambda _, new: new, lambda: None)


def _to_one_channel(gate: nn.Module, x: jax.Array) -> jax.Array:
  return layers.Conv(
    1,
    use_bias=False,
    kernel_init=gate.kernel_init,
    dtype=gate.dtype,
    name='conv',
  )(x)


class ChannelGate(nn.Module):
  """A weight for each channel, from the channels' means over the image.

  1x1 convolution to an eighth of the channels, ReLU, 1x1 convolution, sigmoid;
  both with bias.

  Attributes:
    kernel_init: of both convolutions.
    dtype: compute dtype.
  """

  kernel_init: Any = nn.initializers.he_normal()
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to the same shape."""

    def conv(features, name):
      return layers.Conv(
        features, 1, kernel_init=self.kernel_init, dtype=self.dtype, name=name
      )

    channels = x.shape[-1]
    # Summed in float32 at least, whatever the compute dtype.
    mask = jnp.mean(layers.wide(x), (1, 2), keepdims=True)
    mask = nn.relu(conv(channels // 8, 'reduce')(mask.astype(self.dtype)))
    mask = nn.sigmoid(conv(channels, 'expand')(mask))
    _sow(self, mask)
    return x * mask


class PixelGate(nn.Module):
  """A weight for each pixel, from a 3x3 convolution of the channels' mean.

  Attributes:
    kernel_init: of the convolution, which has no bias.
    dtype: compute dtype.
  """

  kernel_init: Any = nn.initializers.he_normal()
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to the same shape."""
    mask = jnp.mean(x, -1, keepdims=True)
    mask = nn.sigmoid(_to_one_channel(self, mask))
    _sow(self, mask)
    return x * mask


class ConfidenceMask(nn.Module):
  """Where a provisional prediction is unsure: `(1 - t^2)^gamma`.

  t in -1..1 is the tanh of a 3x3 convolution without bias; it is compared with
  no label, but the mask carries its gradient.

  Attributes:
    gamma: exponent, at least 1; the larger, the less passes.
    kernel_init: of the convolution.
    dtype: compute dtype.
  """

  gamma: int = 3
  kernel_init: Any = nn.initializers.he_normal()
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to a mask `[b, y, x, 1]`."""
    t = jnp.tanh(_to_one_channel(self, x))
    mask = (1 - jnp.square(t)) ** self.gamma
    _sow(self, mask)
    return mask
