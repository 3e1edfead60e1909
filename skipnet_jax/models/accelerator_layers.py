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

Array = jax.Array


def _conv(module: layers.Conv, x: Array) -> Array | None:
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
    y = layers.conv(x, of_upsampled(kernel).astype(x.dtype))
    y = _split(y, bias)
    return y if outermost else layers.joined_pixels(y)
  # XLA fuses a sum with what stands before it, and pads a product.
  y = layers.at_least_float32(x) * kernel.reshape(*[1] * (x.ndim - 1), -1)
  y = jnp.sum(y, -1, keepdims=True).astype(x.dtype)
  if y.ndim == 5:
    y = layers.joined_pixels(y)
  return y + layers.spread(bias, y)


def placed(kernel: Array, axis: int, outputs: int, margin: int = 0) -> Array:
  """Places the taps of neighbouring pixels among those that any of them reads.

  Args:
    kernel: with its taps along `axis`.
    axis: of the kernel.
    outputs: number of neighbouring pixels.
    margin: zeros on either side.

  Returns:
    `[outputs, taps, ...]`, without `axis`.
  """
  kernel = jnp.moveaxis(kernel, axis, 0)
  rest = [(0, 0)] * (kernel.ndim - 1)
  return jnp.stack(
    [
      jnp.pad(kernel, [(margin + i, margin + outputs - 1 - i), *rest])
      for i in range(outputs)
    ]
  )


def _split_conv(x: Array, kernel: Array, bias: Array) -> Array:
  """A 3x3 'SAME' convolution, `[b, 2y, 2x, c_in]` to `[b, y, x, 4, c_out]`."""
  # [parity of x, tap, parity of y, tap, c_in, c_out]
  at = placed(placed(kernel, 0, 2), 2, 2)
  c_in, c_out = kernel.shape[2:]
  at = at.transpose(3, 1, 4, 2, 0, 5).reshape(4, 4, c_in, 4 * c_out)
  y = layers.conv(x, at.astype(x.dtype), 2, ((1, 1), (1, 1)))
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


def of_upsampled(kernel: Array) -> Array:
  """A 3x3 kernel for `layers.upsample(x)` as one for x, `[3, 3, c, 4 * n]`.

  The four parities of y and x are its channels. Five in nine of its products
  are zero, but the convolution reads and writes no shifted copies.
  """
  # [parity of x, small pixel, parity of y, small pixel, c, n]
  parts = _split_in_thirds(_split_in_thirds(kernel, 0), 2)
  parts = parts.transpose(3, 1, 4, 2, 0, 5)
  return parts.reshape(3, 3, kernel.shape[2], -1)


def _residual(
  module: blocks.SimpleBlock, x: Array, train: bool, drop: bool
) -> Array:
  """The residual path, which normalises again rather than keep it.

  x may be split, see `tpu_layers` for all such shapes.
  """
  down, c = module.resample == 'down', x.shape[-1]
  pixels = x.shape[3:-1]
  # On a GPU, pooling of pixels in an axis of their own takes fewer bytes.
  flat = len(pixels) == 2 or (len(pixels) == 1 and not down)
  if train and module.batch_norm:
    norm = layers.batch_norm('norm_1', True, module.dtype, module.axis_name)
    params = norm.variables['params']
    y, mean, variance = fused_norm.normalise(
      norm.epsilon,
      norm.axis_name,
      'pool' if down else 'relu',
      x.reshape(*x.shape[:3], -1) if flat else x,
      params['scale'],
      params['bias'],
    )
    fused_norm.keep_running(norm, mean, variance)
  else:
    y = module._act(x, 1, train)
    if down:
      y = layers.max_pool(y) if y.ndim == 4 else fused_norm.maximum(y)[0]
  if flat:
    y = y.reshape(*y.shape[:3], *pixels[down:], c)
  y = module._conv(y, 1, module.features, 3)
  return module._upsample(module._drop(y, drop))


def in_fc_resnet(module: Any) -> bool:
  """Whether a module is an FC-ResNet, or a part of one."""
  while isinstance(module, nn.Module):
    # A subclass may use its layers in another way.
    if type(module) is fc_resnet.FCResNet:
      return True
    module = module.parent
  return False


def instead_of_layers() -> Any:
  """In this context, networks use it for some layers."""

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module, method = context.module, context.method_name
    if module.is_initializing():
      return next_fun(*args, **kwargs)
    if isinstance(module, layers.Conv) and method == '__call__' and args:
      y = _conv(module, args[0])
      return next_fun(*args, **kwargs) if y is None else y
    if isinstance(module, blocks.SimpleBlock) and method == 'residual':
      return _residual(module, *args)
    shortcut = isinstance(module, skips.ShortSkip) and method == 'shortcut'
    split = shortcut and args[0].ndim == 5 and in_fc_resnet(module)
    if split and module.resample == 'down':
      # `down_2` has as many channels as `down_1`: its skip projects nothing.
      return args[0][..., 0, :]
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)
