"""Layers in the form that moves the fewest bytes on an accelerator.

FC-ResNet's outermost resolution is "split" there: `[b, y, x, 4, c]` has the
four pixels of 2x2 side by side, of the first row first (space to depth).
Pooling and upsampling are then elementwise, and XLA fuses them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import blocks
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers
from skipnet_jax.models import skips
from skipnet_jax.models import split_head

Array = jax.Array


def _conv(module: layers.Conv, x: Array, tpu: bool) -> Array | None:
  """The convolution, or None if `layers.Conv` has the best form."""
  single = module.features == module.kernel_size == module.strides == 1
  # A subclass may use its layers in another way.
  outermost = type(module.parent) is fc_resnet.FCResNet
  first = outermost and module.name == 'down_1'
  if not (single or module.upsampled or first):
    return None
  kernel, x = module.variables['params']['kernel'], x.astype(module.dtype)
  bias = jnp.zeros((module.features,))
  if module.use_bias:
    bias = layers.make_bias(module, module.features, module.normalised)
  if first:
    return _split_conv(x, kernel, bias)
  if module.upsampled:
    y = _conv_of_upsampled(x, kernel, bias)
    return y if outermost else layers.joined_pixels(y)
  # XLA fuses a sum with what stands before it, and pads a product.
  y = layers.at_least_float32(x) * kernel.reshape(*[1] * (x.ndim - 1), -1)
  y = jnp.sum(y, -1, keepdims=True).astype(x.dtype)
  if y.ndim == 5:
    y = _interleaved(y[..., 0]) if tpu else layers.joined_pixels(y)
  return y + layers.spread(bias, y)


def _interleaved(x: Array) -> Array:
  """`layers.joined_pixels` of one channel, as products with zeros and ones.

  It maps `[b, y, x, 4]` to `[b, 2y, 2x, 1]`. A TPU has no fast way to place the
  pixels of a row in turns.
  """
  b, h, w, _ = x.shape
  # [pixel of a row of small ones, which of two, pixel of a row]
  place = jnp.eye(2 * w, dtype=x.dtype).reshape(w, 2, -1)
  rows = []
  for row in range(2):
    even, odd = (
      jnp.matmul(x[..., 2 * row + i], place[:, i], precision='highest')
      for i in range(2)
    )
    rows.append(even + odd)
  return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, 1)


def _at_parities(kernel: Array, axis: int) -> Array:
  """Places three taps for an even and an odd pixel among the four they read."""
  kernel = jnp.moveaxis(kernel, axis, 0)
  zero = jnp.zeros_like(kernel[:1])
  return jnp.stack(
    [jnp.concatenate([kernel, zero]), jnp.concatenate([zero, kernel])]
  )


def _split_conv(x: Array, kernel: Array, bias: Array) -> Array:
  """A 3x3 'SAME' convolution, `[b, 2y, 2x, c_in]` to `[b, y, x, 4, c_out]`."""
  # [parity of x, tap, parity of y, tap, c_in, c_out]
  placed = _at_parities(_at_parities(kernel, 0), 2)
  c_in, c_out = kernel.shape[2:]
  placed = placed.transpose(3, 1, 4, 2, 0, 5).reshape(4, 4, c_in, 4 * c_out)
  y = layers.conv(x, placed.astype(x.dtype), 2, ((1, 1), (1, 1)))
  return _split(y, bias)


def _split(y: Array, bias: Array) -> Array:
  """`[b, y, x, 4 * c]` as `[b, y, x, 4, c]`, with a bias."""
  # After the reshape, XLA writes the bias as an image for cuDNN.
  y = y + layers.spread(jnp.tile(bias, 4), y)
  return y.reshape(*y.shape[:3], 4, -1)


def _split_in_thirds(kernel: Array, axis: int) -> Array:
  """`layers.split_by_parity`, with a zero for the third small pixel."""
  even, odd = layers.split_by_parity(kernel, axis)
  zero = jnp.zeros_like(even[:1])
  return jnp.stack(
    [jnp.concatenate([even, zero]), jnp.concatenate([zero, odd])]
  )


def _conv_of_upsampled(x: Array, kernel: Array, bias: Array) -> Array:
  """A 3x3 'SAME' convolution of `layers.upsample(x)`, split.

  The four parities of y and x are channels of one 3x3 convolution of x. Five in
  nine of its products are zero, but it reads and writes no shifted copies.
  """
  c = x.shape[-1]
  # [parity of x, small pixel, parity of y, small pixel, c_in, c_out]
  split = _split_in_thirds(_split_in_thirds(kernel, 0), 2)
  split = split.transpose(3, 1, 4, 2, 0, 5).reshape(3, 3, c, -1)
  y = layers.conv(x, split.astype(x.dtype))
  return _split(y, bias)


def _residual(
  module: blocks.SimpleBlock, x: Array, train: bool, drop: bool
) -> Array:
  """The residual path, which normalises again rather than keep it.

  x may be split where the block downsamples.
  """
  down = module.resample == 'down'
  if train and module.batch_norm:
    norm = layers.batch_norm('norm_1', True, module.dtype, module.axis_name)
    params = norm.variables['params']
    y, mean, variance = fused_norm.normalise(
      norm.epsilon,
      norm.axis_name,
      'pool' if down else 'relu',
      x,
      params['scale'],
      params['bias'],
    )
    fused_norm.keep_running(norm, mean, variance)
  else:
    y = module._act(x, 1, train)
    y = fused_norm.pool(y) if down else y
  y = module._conv(y, 1, module.features, 3)
  return module._upsample(module._drop(y, drop))


def _head(module: fc_resnet.FCResNet, x: Array) -> Array:
  """The head of a network in training, of split x."""
  norm = layers.batch_norm('norm', True, module.dtype, module.axis_name)
  params = {
    name: module.variables['params'][name] for name in ('norm', 'classifier')
  }
  y, mean, variance = split_head.logits(
    norm.epsilon,
    norm.axis_name,
    x.reshape(*x.shape[:3], -1),
    params['norm']['scale'],
    params['norm']['bias'],
    params['classifier']['kernel'].reshape(-1),
  )
  fused_norm.keep_running(norm, mean, variance)
  y = _interleaved(y)
  return y + layers.spread(params['classifier']['bias'], y)


def instead_of_layers(tpu: bool = False) -> Any:
  """In this context, networks use it for some layers; `tpu` says for a TPU."""

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module, method = context.module, context.method_name
    if module.is_initializing():
      return next_fun(*args, **kwargs)
    if isinstance(module, layers.Conv) and method == '__call__' and args:
      y = _conv(module, args[0], tpu)
      return next_fun(*args, **kwargs) if y is None else y
    if isinstance(module, blocks.SimpleBlock) and method == 'residual':
      return _residual(module, *args)
    if tpu and isinstance(module, fc_resnet.FCResNet) and method == 'head':
      x, train = args
      if train and module.batch_norm and x.ndim == 5:
        return _head(module, x)
    if isinstance(module, skips.ShortSkip) and method == 'shortcut':
      x, _ = args
      # `down_2` has as many channels as `down_1`: its skip projects nothing.
      return x[..., 0, :] if x.ndim == 5 else next_fun(*args, **kwargs)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)
