"""FC-ResNet's layers in the form that moves the fewest bytes on a TPU.

A TPU keeps an array in tiles of 8x128, and pads the 32 channels of the
outermost layers to 128. So the two outermost resolutions are split (space to
depth):

  - half of the image's: `[b, y, x, 4, c]` has the four pixels of 2x2;
  - the image's: `[b, y, x, 4, 4, c]` also has, in the axis before, the four
    pixels of which each of these is made.

The last axes lie side by side as channels of a convolution, 128 or 512. Pooling
and upsampling are then elementwise, and nothing is copied into another layout.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import accelerator_layers
from skipnet_jax.models import blocks
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers
from skipnet_jax.models import skips
from skipnet_jax.models import split_head
from skipnet_jax.models import stage_ends

Array = jax.Array


def _side_by_side(x: Array) -> Array:
  return x.reshape(*x.shape[:3], -1)


def _first_kernel(kernel: Array) -> Array:
  """A 3x3 kernel for one that reads 6x6 and gives 4x4 pixels, split twice."""
  at = accelerator_layers.placed
  # [pixel of x, tap of x, pixel of y, tap of y, c, n]
  both = at(at(kernel, 0, 4), 2, 4)
  c, n = kernel.shape[2:]
  both = both.reshape(2, 2, 6, 2, 2, 6, c, n)
  return both.transpose(5, 2, 6, 4, 1, 3, 0, 7).reshape(6, 6, c, 16 * n)


def _split_kernel(kernel: Array) -> Array:
  """A 3x3 kernel for split images: `[3, 3, 4 * c, 4 * n]`."""
  at = accelerator_layers.placed
  # [parity of x, tap of x, parity of y, tap of y, c, n]
  both = at(at(kernel, 0, 2, margin=1), 2, 2, margin=1)
  c, n = kernel.shape[2:]
  both = both.reshape(2, 3, 2, 2, 3, 2, c, n)
  return both.transpose(4, 1, 5, 2, 6, 3, 0, 7).reshape(3, 3, 4 * c, 4 * n)


def _upsampling_kernel(kernel: Array) -> Array:
  """A 3x3 kernel for what a split image is upsampled to, split twice.

  It has the shape `[3, 3, 4 * c, 16 * n]`.
  """
  c, n = kernel.shape[2:]
  split = _split_kernel(accelerator_layers.of_upsampled(kernel))
  split = split.reshape(3, 3, 4 * c, 4, 4, n).swapaxes(3, 4)
  return split.reshape(3, 3, 4 * c, 16 * n)


def _interleaved(x: Array) -> Array:
  """Sixteen pixels of one channel, split twice, as `[b, 4y, 4x, 1]`.

  They are products with zeros and ones: a TPU has no fast way to place the
  pixels of a row in turns.
  """
  b, h, w, _ = x.shape
  # [pixel of a row of small ones, which of four, pixel of a row]
  place = jnp.eye(4 * w, dtype=x.dtype).reshape(w, 4, -1)
  rows = []
  for row in range(4):
    parts = []
    for column in range(4):
      inner = 2 * (row % 2) + column % 2
      outer = 2 * (row // 2) + column // 2
      pixel = x[..., 4 * inner + outer]
      parts.append(jnp.matmul(pixel, place[:, column], precision='highest'))
    rows.append(sum(parts[1:], parts[0]))
  return jnp.stack(rows, 2).reshape(b, 4 * h, 4 * w, 1)


def _conv(module: layers.Conv, x: Array) -> Array | None:
  """The convolution of a split image, or None for another one."""
  kernel = module.variables['params']['kernel']
  outermost = type(module.parent) is fc_resnet.FCResNet
  first = outermost and module.name == 'down_1'
  if outermost and module.upsampled and x.ndim == 4:
    x = layers.split_pixels(x)
  if not first and x.ndim == 4:
    return None
  x, bias = x.astype(module.dtype), jnp.zeros((module.features,))
  if module.use_bias:
    bias = layers.make_bias(module, module.features, module.normalised)

  def conv(x, kernel, stride=1):
    return layers.conv(x, kernel.astype(x.dtype), stride, ((1, 1), (1, 1)))

  if first:
    y = conv(x, _first_kernel(kernel), 4)
    return accelerator_layers.split(y, bias, 4, 4)
  if module.upsampled:
    y = conv(_side_by_side(x), _upsampling_kernel(kernel))
    return accelerator_layers.split(y, bias, 4, 4)
  if module.kernel_size == 3 and module.strides == 1:
    y = conv(_side_by_side(x), _split_kernel(kernel))
    return accelerator_layers.split(y, bias, 4)
  if module.kernel_size == 1:
    x = x[:, :, :, 0] if module.strides == 2 else x
    y = x @ kernel[0, 0].astype(x.dtype)
    y = y + layers.spread(bias, y)
    return _interleaved(_side_by_side(y)) if outermost else y
  # Of a basic block that downsamples.
  y = layers.conv(
    layers.joined_pixels(x),
    kernel.astype(x.dtype),
    module.strides,
    module.padding,
  )
  return y + layers.spread(bias, y)


def _dropped(module: layers.Dropout, x: Array, drop: bool) -> Array:
  """Dropout of a split image."""
  if not drop or module.rate == 0:
    return x
  b, h, w, _, c = x.shape
  y = _side_by_side(x)
  image, row, column, channel = (
    lax.broadcasted_iota(jnp.uint32, y.shape, axis) for axis in range(4)
  )
  unit = layers.split_units(
    (b, 2 * h, 2 * w, c), channel // c, image, row, column, channel % c
  )
  unit = unit + module.first(x.size)
  layer = layers.dropout_layer(module.path)
  y = layers.dropped(y, unit, layer, module.words(), module.rate)
  return y.reshape(x.shape)


def _head(module: fc_resnet.FCResNet, x: Array) -> Array:
  """The head of a network in training."""
  norm = layers.batch_norm('norm', True, module.dtype, module.axis_name)
  params = module.variables['params']
  y, mean, variance = split_head.logits(
    norm.epsilon,
    norm.axis_name,
    _side_by_side(x),
    params['norm']['scale'],
    params['norm']['bias'],
    params['classifier']['kernel'].reshape(-1),
  )
  fused_norm.keep_running(norm, mean, variance)
  y = _interleaved(y)
  return y + layers.spread(params['classifier']['bias'], y)


def instead_of_layers() -> Any:
  """In this context, networks use it, before `accelerator_layers`."""

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module, method = context.module, context.method_name
    if module.is_initializing() or not args:
      return next_fun(*args, **kwargs)
    x, call = args[0], method == '__call__'
    if isinstance(module, blocks.BottleneckBlock) and call:
      if module.resample == 'up' and stage_ends.joined_next(module):
        _, train, drop = args
        main = module.convolved(x, train)
        return stage_ends.end(module, main, x, drop)
    elif isinstance(module, layers.Conv) and call:
      if isinstance(x, stage_ends.Upsampled):
        params = module.variables['params']
        return x.times(params['kernel'][0, 0], params['bias'])
      y = _conv(module, x)
      return next_fun(*args, **kwargs) if y is None else y
    elif isinstance(module, skips.LongSkip) and call and args[1].ndim == 5:
      if isinstance(x, stage_ends.Upsampled):
        x = dataclasses.replace(x, split=True)
      else:
        x = layers.split_pixels(x)
      return next_fun(x, args[1])
    elif isinstance(module, layers.Dropout) and call and x.ndim == 5:
      return _dropped(module, *args)
    elif method == 'head' and x.ndim == 6 and args[1] and module.batch_norm:
      return _head(module, x)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)
