"""BatchNorm with a derivative of its own, for accelerators.

It passes over the activations once for both sums forward, and once for both
backward. Flax's takes up to five passes, each a kernel or more. On a CPU it is
Flax's that is faster (docs/performance.md).
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import norms

Array = jax.Array


def total(a: Array, b: Array) -> tuple[Array, Array]:
  """The sums of two arrays `[..., c]` over all axes but the last."""
  zero = jnp.zeros((), a.dtype)
  return lax.reduce(
    (a, b),
    (zero, zero),
    lambda x, y: (x[0] + y[0], x[1] + y[1]),
    tuple(range(a.ndim - 1)),
  )


def joined_sums(sums: tuple[Array, Array], c: int) -> tuple[Array, Array]:
  """Adds sums `[p * c]` of p pixels side by side: `[c]`."""
  if sums[0].size == c:
    return sums
  first, second = (each.reshape(-1, c).sum(0) for each in sums)
  return first, second


def means(
  sums: tuple[Array, Array], x: Array, axis_name: str | None
) -> tuple[Array, Array]:
  """The means over the pixels of x, of all devices, from the sums `[c]`."""
  count = x.size // sums[0].size
  found = sums[0] / count, sums[1] / count
  return found if axis_name is None else lax.pmean(found, axis_name)


def power_sums(x: Array, parts: Array | None) -> tuple[Array, Array]:
  """The sums over pixels of x and of its square.

  Args:
    x: `[..., c]`.
    parts: these sums, if they are known, see `normalise`.

  Returns:
    Those of x, the first c elements, and those of its square, the last c: if
    they are known, twice the same array, so that nothing is copied.
  """
  if parts is None:
    wide = layers.at_least_float32(x)
    return total(wide, jnp.square(wide))
  joined = jnp.sum(parts, 0)
  return joined, joined


def variance_of(mean: Array, square: Array) -> Array:
  """The variance, from the means of values and of their squares."""
  return jnp.maximum(0.0, square - jnp.square(mean))


def _along(vector: Array, x: Array) -> Array:
  """A value of each channel `[c]`, along the last axis `p * c` of x."""
  if vector.size < x.shape[-1]:
    vector = jnp.tile(vector, x.shape[-1] // vector.size)
  return vector.reshape(*[1] * (x.ndim - 1), -1)


def maximum(x: Array) -> tuple[Array, Array]:
  """The largest of four pixels, and which it is.

  Args:
    x: `[b, y, x, 4, ...]`, or `[b, y, x, 4 * c]` with the pixels side by side.
  """
  if x.ndim > 4:
    value, *others = (x[:, :, :, i] for i in range(4))
  else:
    value, *others = jnp.split(x, 4, axis=-1)
  which = jnp.zeros((), jnp.uint8)
  for i, other in enumerate(others, 1):
    which = jnp.where(other > value, jnp.uint8(i), which)
    value = jnp.maximum(value, other)
  return value, which


def _at_maximum(dy: Array, which: Array, ndim: int) -> Array:
  """The gradient of `maximum`'s argument, of as many axes as it has."""
  if ndim == 5:
    pixel = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 1, 4, 1)
    return jnp.where(which[:, :, :, None] == pixel, dy[:, :, :, None], 0)
  parts = [jnp.where(which == i, dy, 0) for i in range(4)]
  return jnp.concatenate(parts, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def normalise(
  epsilon: float,
  axis_name: str | None,
  then: str,
  x: Array,
  scale: Array,
  bias: Array,
  sums: Array | None = None,
) -> tuple[Array, Array, Array]:
  """BatchNorm by batch statistics.

  Args:
    epsilon: is added to the variance.
    axis_name: mapped axis of a pmapped call, or None.
    then: what follows: nothing '', or 'relu', or 'pool', ReLU and 2x2 max
      pooling, by `maximum` if x is `[b, y, x, 4, c]` or `[b, y, x, 4 * p * c]`.
    x: `[..., c]`, or `[..., p * c]` with p pixels side by side.
    scale: `[c]`.
    bias: `[c]`.
    sums: of x and of its square, side by side and in parts `[parts, c + c]`,
      if they are known.

  Returns:
    `(y, mean, variance)`: y of x's shape or pooled, of x's dtype if something
    follows, and else of at least float32; mean and variance `[c]`, without a
    gradient.
  """
  return _forward(epsilon, axis_name, then, x, scale, bias, sums)[0]


def _forward(epsilon, axis_name, then, x, scale, bias, sums):
  first, second = power_sums(x, sums)
  c = x.shape[-1]
  joined = joined_sums((first[:c], second[-c:]), scale.size)
  mean, square = means(joined, x, axis_name)
  variance = variance_of(mean, square)
  inverse = lax.rsqrt(variance + epsilon)
  y = affine(x, scale, bias, mean, inverse)
  if then:
    y = jnp.maximum(y.astype(x.dtype), 0)
  which = None
  if then == 'pool' and (x.ndim == 5 or x.shape[-1] > scale.size):
    y, which = maximum(y)
    # None, where ReLU has no gradient.
    which = jnp.where(y > 0, which, jnp.uint8(4))
  elif then == 'pool':
    y = layers.max_pool(y)
  return (y, mean, variance), (x, scale, bias, mean, inverse, which)


def affine(
  x: Array, scale: Array, bias: Array, mean: Array, inverse: Array
) -> Array:
  """What BatchNorm gives, of at least float32; see `gradients`."""
  y = layers.at_least_float32(x) - _along(mean, x)
  return y * _along(inverse * scale, x) + _along(bias, x)


def gradients(
  dy: Array,
  x: Array,
  scale: Array,
  mean: Array,
  inverse: Array,
  axis_name: str | None,
) -> tuple[Array, Array, Array]:
  """The gradients of BatchNorm's x, scale and bias.

  Args:
    dy: the gradient of what it gives, `[..., p * c]`: p pixels side by side.
    x: of dy's shape.
    scale: `[c]`.
    mean: `[c]`.
    inverse: one over the standard deviation, `[c]`.
    axis_name: see `normalise`.
  """
  centred = layers.at_least_float32(x) - _along(mean, x)
  standard = centred * _along(inverse, x)
  of_bias, of_scale = joined_sums(total(dy, dy * standard), scale.size)
  first, second = means((of_bias, of_scale), x, axis_name)
  dx = dy - _along(first, x) - standard * _along(second, x)
  dx *= _along(scale * inverse, x)
  return dx.astype(x.dtype), of_scale, of_bias


def _backward(epsilon, axis_name, then, kept, cotangents):
  x, scale, bias, mean, inverse, which = kept
  dy = cotangents[0]
  if which is not None:
    dy = layers.at_least_float32(_at_maximum(dy, which, x.ndim))
  elif then:
    y = affine(x, scale, bias, mean, inverse).astype(x.dtype)
    if then == 'pool':
      (dy,) = jax.vjp(layers.max_pool, jnp.maximum(y, 0))[1](dy)
    dy = layers.at_least_float32(jnp.where(y > 0, dy, 0))
  return *gradients(dy, x, scale, mean, inverse, axis_name), None


normalise.defvjp(_forward, _backward)


def _replaces(module: nn.BatchNorm, args: tuple, kwargs: dict) -> bool:
  plain = (
    module.axis == -1
    and module.use_bias
    and module.use_scale
    and module.use_fast_variance
    and module.axis_index_groups is None
  )
  running = kwargs.get('use_running_average', module.use_running_average)
  return (
    plain
    and not running
    and not module.is_initializing()
    and len(args) == 1
    and kwargs.keys() <= {'use_running_average'}
  )


def keep_running(module: nn.BatchNorm, mean: Array, variance: Array) -> None:
  """Updates the running statistics of a BatchNorm."""
  for name, value in (('mean', mean), ('var', variance)):
    old = module.variables['batch_stats'][name]
    new = module.momentum * old + (1 - module.momentum) * value
    module.put_variable('batch_stats', name, new)


def instead_of_flax() -> Any:
  """In this context, networks that train use it instead of `nn.BatchNorm`."""

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module = context.module
    if not isinstance(module, nn.BatchNorm) or not _replaces(
      module, args, kwargs
    ):
      return next_fun(*args, **kwargs)
    (x,) = args
    params = module.variables['params']
    y, mean, variance = normalise(
      module.epsilon,
      module.axis_name,
      '',
      x,
      params['scale'],
      params['bias'],
    )
    keep_running(module, mean, norms.unbiased(module, x, variance))
    return y.astype(module.dtype or x.dtype)

  return nn.intercept_methods(intercept)
