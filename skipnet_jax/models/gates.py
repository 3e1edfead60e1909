"""Gates on skip connections (Guo et al. 2019).

A gate multiplies a skip by a mask in 0..1. Each mask is sown as `value` into
the collection `gates`: a call with `mutable=['gates']` returns it, and for all
other calls it costs nothing.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers

GATES = 'gates'
# The authors' code draws all kernels from it.
KERNEL_INIT = nn.initializers.normal(0.02)


def _sow(module: nn.Module, mask: jax.Array) -> None:
  if not module.is_initializing():
    module.sow(GATES, 'value', mask, lambda _, new: new, lambda: None)


def uniform(inputs: int) -> Any:
  """Initialises biases uniformly in +-1 / sqrt(inputs), PyTorch's default.

  `inputs` is the number of weights of each output.
  """
  limit = 1 / math.sqrt(inputs)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


def _one_channel_conv(dtype: layers.Dtype) -> layers.Conv:
  return layers.Conv(
    1, use_bias=False, kernel_init=KERNEL_INIT, dtype=dtype, name='conv'
  )


class ChannelGate(nn.Module):
  """A weight for each channel, from the channels' means over the image.

  1x1 convolution to an eighth of the channels, ReLU, 1x1 convolution, sigmoid;
  both convolutions have a bias, which starts as in the authors' code.
  """

  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to the same shape."""

    def conv(name, x, features):
      return layers.Conv(
        features,
        1,
        kernel_init=KERNEL_INIT,
        bias_init=uniform(x.shape[-1]),
        dtype=self.dtype,
        name=name,
      )(x)

    channels = x.shape[-1]
    mask = jnp.mean(layers.at_least_float32(x), (1, 2), keepdims=True)
    mask = nn.relu(conv('reduce', mask.astype(self.dtype), channels // 8))
    mask = nn.sigmoid(conv('expand', mask, channels))
    _sow(self, mask)
    return x * layers.spread(mask, x)


class PixelGate(nn.Module):
  """A weight for each pixel, from a 3x3 convolution of the channels' mean."""

  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to the same shape."""
    mask = jnp.mean(x, -1, keepdims=True)
    mask = nn.sigmoid(_one_channel_conv(self.dtype)(mask))
    _sow(self, mask)
    return x * layers.spread(mask, x)


class ConfidenceMask(nn.Module):
  """A mask of the pixels where a provisional prediction is uncertain.

  It is `(1 - t^2)^gamma`, where t in -1..1 is the tanh of a 3x3 convolution
  without bias. No loss compares t with a label, but its gradient flows through
  the mask. gamma is at least 1; a larger one makes the mask smaller.
  """

  gamma: int = 3
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to a mask `[b, y, x, 1]`."""
    t = jnp.tanh(_one_channel_conv(self.dtype)(x))
    mask = (1 - jnp.square(t)) ** self.gamma
    _sow(self, mask)
    return mask
