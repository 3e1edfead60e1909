"""Layers in the form that moves the fewest bytes on a GPU."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import blocks
from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers

Array = jax.Array


def _conv(module: layers.Conv, x: Array) -> Array | None:
  """The convolution, or None if `layers.Conv` has the best form."""
  single = module.features == module.kernel_size == module.strides == 1
  if not (single or module.upsampled):
    return None
  kernel, x = module.variables['params']['kernel'], x.astype(module.dtype)
  bias = jnp.zeros((module.features,))
  if module.use_bias:
    bias = layers.make_bias(module, module.features, module.normalised)
  if module.upsampled:
    return _conv_of_upsampled(x, kernel, bias)
  # XLA fuses a sum with what stands before it, and pads a product.
  y = layers.at_least_float32(x) * kernel.reshape(1, 1, 1, -1)
  y = jnp.sum(y, -1, keepdims=True).astype(x.dtype)
  return y + layers.spread(bias, y)


def _split_in_thirds(kernel: Array, axis: int) -> Array:
  """`layers.split_by_parity`, with a zero for the third small pixel."""
  even, odd = layers.split_by_parity(kernel, axis)
  zero = jnp.zeros_like(even[:1])
  return jnp.stack(
    [jnp.concatenate([even, zero]), jnp.concatenate([zero, odd])]
  )


def _conv_of_upsampled(x: Array, kernel: Array, bias: Array) -> Array:
  """A 3x3 'SAME' convolution of `layers.upsample(x)`.

  The four parities of y and x are channels of one 3x3 convolution of x. Five in
  nine of its products are zero, but it reads and writes no shifted copies.
  """
  b, h, w, c = x.shape
  # [parity of x, small pixel, parity of y, small pixel, c_in, c_out]
  split = _split_in_thirds(_split_in_thirds(kernel, 0), 2)
  split = split.transpose(3, 1, 4, 2, 0, 5).reshape(3, 3, c, -1)
  y = layers.conv(x, split.astype(x.dtype))
  y = y + layers.spread(jnp.tile(bias, 4), y)
  y = y.reshape(b, h, w, 2, 2, -1)
  return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


def _residual(module: blocks.SimpleBlock, x: Array, drop: bool) -> Array:
  """The residual path, which normalises again rather than keep it."""
  norm = layers.batch_norm('norm_1', True, module.dtype, module.axis_name)
  params = norm.variables['params']
  y, mean, variance = fused_norm.normalise(
    norm.epsilon,
    norm.axis_name,
    'pool' if module.resample == 'down' else 'relu',
    x,
    params['scale'],
    params['bias'],
  )
  fused_norm.keep_running(norm, mean, variance)
  y = module._conv(y, 1, module.features, 3)
  return module._upsample(module._drop(y, drop))


def instead_of_layers() -> Any:
  """In this context, networks use it for some layers."""

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module, method = context.module, context.method_name
    if module.is_initializing():
      return next_fun(*args, **kwargs)
    if isinstance(module, layers.Conv) and method == '__call__':
      y = _conv(module, *args)
      return next_fun(*args, **kwargs) if y is None else y
    if isinstance(module, blocks.SimpleBlock) and method == 'residual':
      x, train, drop = args
      if train and module.batch_norm:
        return _residual(module, x, drop)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)
