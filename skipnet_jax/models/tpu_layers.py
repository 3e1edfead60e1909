"""FC-ResNet's layers in the form that moves the fewest bytes on a TPU.

A TPU keeps an array in tiles of 8x128, and pads the 32 channels of the
outermost layers to 128. So the two outermost resolutions are split (space to
depth):

  - half of the image's is `[b, y, x, 4, c]`, with an axis for the four pixels
    of 2x2;
  - the image's is `[b, y, x, 4, 4, c]`: the last but one axis is the same, the
    one before it is for the four pixels of the image within such a pixel.

The last axes lie side by side as channels of a convolution, 128 or 512. Pooling
and upsampling are then elementwise, and XLA keeps one layout for them all.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _of_each(bias: Array, pixels: int) -> Array:
  """The bias `[c]` for each of p pixels: `[p * c]`."""
  return jnp.tile(bias, pixels)


def _of_each_forward(bias, pixels):
  return _of_each(bias, pixels), None


def _of_each_backward(pixels, _, of_each):
  # Or XLA sums over these pixels and all others at once, and for that copies
  # the gradient of the image into another layout.
  of_each = lax.optimization_barrier(of_each)
  return (of_each.reshape(pixels, -1).sum(0),)


_of_each.defvjp(_of_each_forward, _of_each_backward)


def _split(y: Array, bias: Array, *pixels: int) -> Array:
  """`[b, y, x, p * c]` as `[b, y, x, *pixels, c]`, with a bias."""
  y = y + layers.spread(_of_each(bias, math.prod(pixels)), y)
  return y.reshape(*y.shape[:3], *pixels, -1)


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

  A row is a product with zeros and ones: a TPU has no fast way to place the
  pixels of a row in turns.
  """
  b, h, w, _ = x.shape
  # Which of two in y and x: of the smallest pixels (j, i), of others (q, p).
  pixels = x.reshape(b, h, w, 2, 2, 2, 2)
  place = jnp.eye(4 * w, dtype=x.dtype).reshape(w, 2, 2, -1)
  y = jnp.einsum('bhwjiqp,wpic->bhqjc', pixels, place, precision='highest')
  return y.reshape(b, 4 * h, 4 * w, 1)


def _conv(module: layers.Conv, x: Array) -> Array | None:
  """The convolution, if its argument or result is split; else None."""
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
    return _split(y, bias, 4, 4)
  if module.upsampled:
    y = conv(_side_by_side(x), _upsampling_kernel(kernel))
    return _split(y, bias, 4, 4)
  if module.kernel_size == 3 and module.strides == 1:
    y = conv(_side_by_side(x), _split_kernel(kernel))
    return _split(y, bias, 4)
  if module.kernel_size == 1:
    x = _decimated(x) if module.strides == 2 else x
    y = x @ kernel[0, 0].astype(x.dtype)
    y = y + layers.spread(bias, y)
    return _interleaved(_side_by_side(y)) if outermost else y
  # The first of a basic block that downsamples.
  y = layers.conv(
    layers.joined_pixels(x),
    kernel.astype(x.dtype),
    module.strides,
    module.padding,
  )
  return y + layers.spread(bias, y)


def _decimated(x: Array) -> Array:
  """The first pixel of 2x2."""
  shape = *x.shape[:3], *x.shape[4:]
  x = _side_by_side(x)
  return x[..., : x.shape[-1] // 4].reshape(shape)


def _shortcut(module: skips.ShortSkip, x: Array, features: int) -> Array:
  """The shortcut of a block that downsamples a split image."""
  x = _decimated(x)
  if x.shape[-1] != features:
    x = layers.Conv(features, 1, dtype=module.dtype, name='projection')(x)
  return x


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
  with jax.named_scope('norm'):
    y, mean, variance = split_head.logits(
      norm.epsilon,
      norm.axis_name,
      _side_by_side(x),
      params['norm']['scale'],
      params['norm']['bias'],
      params['classifier']['kernel'].reshape(-1),
    )
  fused_norm.keep_running(norm, mean, variance)
  with jax.named_scope('classifier'):
    y = _interleaved(y)
    return y + layers.spread(params['classifier']['bias'], y)


def instead_of_layers() -> Any:
  """In this context, FC-ResNet uses these layers.

  They need `fused_norm.instead_of_flax` and
  `accelerator_layers.instead_of_layers`, entered after it.
  """

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module, method = context.module, context.method_name
    initial = module.is_initializing() or not args
    if initial or not accelerator_layers.in_fc_resnet(module):
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
    elif isinstance(module, skips.LongSkip) and call and args[-1].ndim == 5:
      if isinstance(x, stage_ends.Upsampled):
        x = dataclasses.replace(x, split=True)
      else:
        x = layers.split_pixels(x)
      return next_fun(x, args[1])
    elif isinstance(module, nn.BatchNorm) and call and x.ndim > 4:
      if not module.use_running_average:
        return next_fun(_side_by_side(x), *args[1:], **kwargs).reshape(x.shape)
    elif isinstance(module, skips.ShortSkip) and method == 'shortcut':
      if module.resample == 'down' and x.ndim > 4:
        return _shortcut(module, *args)
    elif isinstance(module, layers.Dropout) and call and x.ndim == 5:
      return _dropped(module, *args)
    elif method == '_head' and args[-1] and module.batch_norm:
      return _head(module, x)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)
