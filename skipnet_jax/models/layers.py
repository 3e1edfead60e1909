"""Convolution, normalisation, dropout and resampling: the fast paths' place.

Activations are `[b, y, x, c]` in the compute dtype, parameters float32.
"""

from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

Dtype = Any


class Conv(nn.Module):
  """A 'SAME' convolution with he_normal kernel and zero bias.

  A 1x1 convolution is a matrix product over the decimated input: the same
  numbers as a strided convolution, and faster on every backend.

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel, in pixels.
    strides: decimation in y and x.
    use_bias: whether a bias is added.
    kernel_init: initialiser of the `[k, k, c_in, c_out]` kernel.
    dtype: compute dtype.
  """

  features: int
  kernel_size: int = 3
  strides: int = 1
  use_bias: bool = True
  kernel_init: Any = nn.initializers.he_normal()
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c_in]` to `[b, y / strides, x / strides, features]`."""
    k, s = self.kernel_size, self.strides
    kernel = self.param(
      'kernel', self.kernel_init, (k, k, x.shape[-1], self.features)
    ).astype(self.dtype)
    x = x.astype(self.dtype)
    if k == 1:
      x = lax.dot_general(
        x[:, ::s, ::s], kernel[0, 0], (((3,), (0,)), ((), ()))
      )
    else:
      x = lax.conv_general_dilated(
        x, kernel, (s, s), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
      x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return x


class Dropout(nn.Module):
  """Dropout whose mask depends on an example's place in the global batch.

  Each example has a key of its own, folded with its index over all devices, so
  that `jit`, `pmap` and `sharded` drop the same units. Sixteen random bits
  decide over a unit: half the work of `flax.linen.Dropout`, and the rate is
  met to 1e-5.

  Attributes:
    rate: share of the units set to zero, 0 <= rate < 1.
    axis_name: mapped axis of a pmapped call, None otherwise.
  """

  rate: float
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, drop: bool) -> jax.Array:
    """Maps `[b, ...]` to the same shape; the identity unless `drop`."""
    dropped = round(self.rate * 2**16)
    if not drop or dropped == 0:
      return x
    key = self.make_rng('dropout')
    index = jnp.arange(x.shape[0])
    if self.axis_name is not None and not self.is_initializing():
      index = index + lax.axis_index(self.axis_name) * x.shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    size = x[0].size
    words = jax.vmap(lambda k: jax.random.bits(k, ((size + 1) // 2,)))(keys)
    bits = lax.bitcast_convert_type(words, jnp.uint16).reshape(x.shape[0], -1)
    keep = bits[:, :size].reshape(x.shape) >= dropped
    scale = jnp.asarray(2**16 / (2**16 - dropped), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros_like(x))


def batch_norm(
  name: str, train: bool, dtype: Dtype, axis_name: str | None
) -> nn.BatchNorm:
  """BatchNorm as in the paper: scale, bias, momentum 0.9; float32 statistics.

  Args:
    name: the layer's name.
    train: batch statistics if True, running ones otherwise.
    dtype: dtype of the result.
    axis_name: mapped axis over which statistics are averaged, or None.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    axis_name=axis_name,
    name=name,
  )


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max pooling with stride 2: `[b, y, x, c]` to `[b, y/2, x/2, c]`.

  By pairs: half the time of a maximum over two axes, and a gradient that does
  not rest on finding the elements that equal the result.
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w, c)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1]).reshape(b, h // 2, w // 2, 2, c)
  return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def repeat(x: jax.Array) -> jax.Array:
  """Nearest upsampling by two: `[b, y, x, c]` to `[b, 2y, 2x, c]`."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)
