"""Bottleneck blocks with the kernels of `products`, for GPUs that train.

A block's derivative is written out: it normalises each input again rather than
keep it, passes over it once for all sums, and adds the skip's gradient as it
writes that of the input.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import blocks
from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers
from skipnet_jax.models import product_kernels
from skipnet_jax.models import products
from skipnet_jax.models import skips
from skipnet_jax.models import stage_ends
from skipnet_jax.models import upsampled

Array = jax.Array


# The vector that has a parameter, and where in it the parameter begins, by the
# path of its module, its name and its shape; None if it is not in a vector.
Find = Callable[
  [tuple[str, ...], str, tuple[int, ...]], tuple[Array, int] | None
]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def product(
  form: product_kernels.Form,
  passes: bool,
  axis_name: str | None,
  x: Array,
  scale: Array,
  shift: Array,
  kernel: Array,
  bias: Array | None,
  where: tuple[Array, Any] | None,
  skip: Array | None,
  words: products.Words | None,
  sums: Array | None,
) -> tuple[Array, Array, tuple[Array, Array], Array]:
  """BatchNorm, ReLU, 1x1 convolution, dropout and the sum with a skip.

  Args:
    form: see `product_kernels.Form`.
    passes: whether the second result is used.
    axis_name: mapped axis of a pmapped call, or None.
    x: `[b, y, x, k]`.
    scale: of BatchNorm, `[k]`.
    shift: its bias, `[k]`.
    kernel: `[k, n]`.
    bias: `[n]`, or None.
    where: a vector that has scale, shift and bias, and where each begins, as in
      `products.Norm`: the kernels then read them there, and need no copies. Or
      None.
    skip: is added, `[b, y, x, n]`, or None.
    words: see `products.forward`.
    sums: see `fused_norm.normalise`.

  Returns:
    The sum; x, of which other uses should take this one, so that their
    gradient is added to it at no cost; mean and variance of x; and the sums of
    the first result and of its square, as `fused_norm.normalise` takes them.
  """
  return _forward(
    form,
    passes,
    axis_name,
    x,
    scale,
    shift,
    kernel,
    bias,
    where,
    skip,
    words,
    sums,
  )[0]


def _matrix(x: Array | None) -> Array | None:
  return None if x is None else x.reshape(-1, x.shape[-1])


def _of_all(sums: Any, axis_name: str | None) -> Any:
  """Sums over a device's pixels become their mean over the devices."""
  return sums if axis_name is None else lax.pmean(sums, axis_name)


def _joined(scale: Array, shift: Array, bias: Array | None) -> Any:
  """`where` of `product`, of a vector made for it."""
  given = [a for a in (scale, shift, bias) if a is not None]
  starts = np.cumsum([0, scale.size, shift.size], dtype=np.int32)
  return jnp.concatenate(given), starts


def _forward(
  form,
  passes,
  axis_name,
  x,
  scale,
  shift,
  kernel,
  bias,
  where,
  skip,
  words,
  sums,
):
  powers = _of_all(fused_norm.power_sums(x, sums), axis_name)
  vector, starts = where or _joined(scale, shift, bias)
  norm = products.Norm(*powers, vector, starts)
  w = kernel.astype(x.dtype)
  y, found = products.forward(_matrix(x), norm, w, _matrix(skip), words, form)
  y = y.reshape(*x.shape[:-1], -1)
  k = x.shape[-1]
  mean, square = powers[0][:k] / form.pixels, powers[1][-k:] / form.pixels
  kept = x, norm, w, words, skip is None
  return (y, x, (mean, fused_norm.variance_of(mean, square)), found), kept


def _backward(form, passes, axis_name, kept, cotangents):
  x, norm, w, words, alone = kept
  dy, through = cotangents[:2]
  matrix = _matrix(dy)
  dw, found = products.sums(_matrix(x), norm, w, matrix, words, form)
  k = x.shape[-1]
  found = jnp.sum(found, 0)
  of_shift, of_scale, of_bias = jnp.split(found, (k, 2 * k))
  found = _of_all(found, axis_name)
  added = _matrix(through) if passes else None
  dx = products.backward(_matrix(x), norm, w, matrix, found, added, words, form)
  return (
    dx.reshape(x.shape),
    of_scale,
    of_shift,
    jnp.sum(dw, 0),
    of_bias if form.biased else None,
    None,
    None if alone else dy,
    None,
    None,
  )


product.defvjp(_forward, _backward)


class _Sums:
  """The sums over arrays that a kernel has written, by array."""

  def __init__(self) -> None:
    self._found: dict[int, tuple[Array, Array]] = {}

  def keep(self, x: Array, sums: Array) -> Array:
    """Keeps the sums of x, and returns x."""
    self._found[id(x)] = x, sums
    return x

  def of(self, x: Array) -> Array | None:
    """The sums of x, or None."""
    return self._found.get(id(x), (x, None))[1]


@dataclasses.dataclass(frozen=True)
class _Block:
  """Calls a bottleneck block.

  A bias in front of a BatchNorm is left out of the activations and added to
  their mean.

  Attributes:
    module: bound, in its compact method.
    known: sums over the activations of the network, as far as it is traced.
    find: where the parameters are.
    interpret: see `product_kernels.Form`.
  """

  module: blocks.BottleneckBlock
  known: _Sums
  find: Find
  interpret: bool

  def call(self, x: Array, drop: bool) -> Array | stage_ends.Upsampled:
    """See `blocks.Block`."""
    m = self.module
    inner = m.features // 4
    first = self._conv(1, inner, 1, m._strides())
    second = self._conv(2, inner, 3)
    if m.resample == 'down':
      y = first(m._act(x, 1, True))
    else:
      y, x = self._product(1, first, x, biased=False, passes=m.short_skip)
    y = second(self._norm_and_relu(2, y, first))
    last = functools.partial(
      self._product, 3, self._conv(3, m.features, 1), y, before=second
    )
    if m.resample == 'up':
      return stage_ends.end(m, last()[0], x, drop)
    skip = skips.ShortSkip(m.resample, m.dtype, name='short_skip')
    if not m.short_skip:
      return m._drop(last()[0], drop)
    return last(drop=drop, skip=skip.shortcut(x, m.features))[0]

  def _conv(
    self, index: int, features: int, size: int, strides: int = 1
  ) -> layers.Conv:
    m, name = self.module, f'conv_{index}'
    return layers.Conv(
      features, size, strides, use_bias=False, dtype=m.dtype, name=name
    )

  def _product(
    self,
    index: int,
    conv: layers.Conv,
    x: Array,
    *,
    before: layers.Conv | None = None,
    biased: bool = True,
    passes: bool = False,
    drop: bool = False,
    skip: Array | None = None,
  ) -> tuple[Array, Array]:
    """BatchNorm, ReLU and a 1x1 convolution; x again, see `product`."""
    m, norm = self.module, self._norm(index)
    params, kernel = norm.variables['params'], conv.variables['params']
    pixels = x.size // x.shape[-1]
    form = product_kernels.Form(
      product_kernels.rows_of(x.shape[1] * x.shape[2]),
      pixels,
      norm.epsilon,
      biased=biased,
      interpret=self.interpret,
    )
    words = None
    if drop and m.dropout:
      dropout = layers.Dropout(m.dropout, m.axis_name)
      form = dataclasses.replace(form, rate=m.dropout)
      # Constants need no kernel, as a range would.
      layer = np.asarray([layers.dropout_layer(dropout.path)], np.uint32)
      first: Any = np.arange(0, pixels, form.rows, dtype=np.uint32)
      if m.axis_name is not None:
        first = first + dropout.first(pixels)
      words = products.Words(dropout.words(), layer, first)
    with jax.named_scope(f'conv_{index}'):
      y, x, statistics, sums = product(
        form,
        passes,
        norm.axis_name,
        x,
        params['scale'],
        params['bias'],
        kernel['kernel'][0, 0],
        kernel['bias'] if biased else None,
        self._where(norm, conv if biased else None),
        skip,
        words,
        self.known.of(x),
      )
    self._keep_running(norm, *statistics, before)
    return self.known.keep(y, sums), x

  def _norm_and_relu(self, index: int, x: Array, before: layers.Conv) -> Array:
    norm = self._norm(index)
    params = norm.variables['params']
    with jax.named_scope(f'norm_{index}'):
      y, mean, variance = fused_norm.normalise(
        norm.epsilon,
        norm.axis_name,
        'relu',
        x,
        params['scale'],
        params['bias'],
        self.known.of(x),
      )
    self._keep_running(norm, mean, variance, before)
    return y

  def _where(self, norm: nn.BatchNorm, conv: layers.Conv | None) -> Any:
    """See `product`."""
    named: list[tuple[nn.Module, str]] = [(norm, 'scale'), (norm, 'bias')]
    if conv is not None:
      named.append((conv, 'bias'))
    places = [
      self.find(module.path, name, module.variables['params'][name].shape)
      for module, name in named
    ]
    found = [place for place in places if place is not None]
    if len(found) < len(named):
      return None
    starts = [start for _, start in found]
    return found[0][0], np.asarray((*starts, 0)[:3], np.int32)

  def _norm(self, index: int) -> nn.BatchNorm:
    m = self.module
    return layers.batch_norm(f'norm_{index}', True, m.dtype, m.axis_name)

  def _keep_running(
    self,
    norm: nn.BatchNorm,
    mean: Array,
    variance: Array,
    before: layers.Conv | None,
  ) -> None:
    if before is not None:
      mean += jax.lax.stop_gradient(before.variables['params']['bias'])
    fused_norm.keep_running(norm, mean, variance)


def _replaces(
  module: blocks.BottleneckBlock, x: Array, train: bool, interpret: bool
) -> bool:
  inner = module.features // 4
  pixels = _pixels(module, x)
  return (
    train
    and module.batch_norm
    and not module.is_initializing()
    and (interpret or module.dtype == jnp.bfloat16)
    and (
      module.resample == 'down'
      or product_kernels.fits(pixels, x.shape[-1], inner)
    )
    and product_kernels.fits(pixels, inner, module.features)
  )


def _project(
  module: layers.Conv,
  x: stage_ends.Upsampled,
  interpret: bool,
  otherwise: Callable,
) -> Array:
  """A long skip's 1x1 convolution."""
  if not upsampled.fits(x, module.features):
    return otherwise(x.whole())
  params = module.variables['params']
  return upsampled.times(x, params['kernel'][0, 0], params['bias'], interpret)


def _pixels(module: blocks.BottleneckBlock, x: Array) -> int:
  """Of an image within the block."""
  return x.shape[1] * x.shape[2] // module._strides() ** 2


def instead_of_blocks(
  find: Find = lambda *_: None, interpret: bool = False
) -> Any:
  """In this context, networks that train use it for `blocks.BottleneckBlock`.

  It takes those whose sides the kernels take, in bfloat16. With `interpret`,
  of any dtype and on any platform, slowly. `find` says where the parameters
  are.
  """
  known = _Sums()

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module = context.module
    if context.method_name != '__call__' or not args:
      return next_fun(*args, **kwargs)
    if isinstance(module, blocks.BottleneckBlock):
      x, train, drop = args
      if not _replaces(module, x, train, interpret):
        return next_fun(*args, **kwargs)
      y = _Block(module, known, find, interpret).call(x, drop)
      if isinstance(y, jax.Array) or stage_ends.joined_next(module):
        return y
      return y.whole()
    if isinstance(module, layers.Conv) and isinstance(
      args[0], stage_ends.Upsampled
    ):
      return _project(module, args[0], interpret, next_fun)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)
