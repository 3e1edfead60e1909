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

Array = jax.Array


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
  """The sums of two arrays `[..., c]` over all axes but the last."""
  zero = jnp.zeros((), a.dtype)
  return lax.reduce(
    (a, b),
    (zero, zero),
    lambda x, y: (x[0] + y[0], x[1] + y[1]),
    tuple(range(a.ndim - 1)),
  )


def _means(
  sums: tuple[Array, Array], x: Array, axis_name: str | None
) -> tuple[Array, Array]:
  count = x.size // x.shape[-1]
  means = sums[0] / count, sums[1] / count
  return means if axis_name is None else lax.pmean(means, axis_name)


def _along(x: Array, ndim: int) -> Array:
  return x.reshape(*[1] * (ndim - 1), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
  x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
  """BatchNorm by batch statistics.

  Args:
    x: `[..., c]`.
    scale: `[c]`.
    bias: `[c]`.
    epsilon: is added to the variance.
    axis_name: mapped axis of a pmapped call, or None.

  Returns:
    `(y, mean, variance)`: y in at least float32, of x's shape; mean and
    variance `[c]`, without a gradient.
  """
  return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
  wide = layers.at_least_float32(x)
  mean, square = _means(_sums(wide, jnp.square(wide)), x, axis_name)
  variance = jnp.maximum(0.0, square - jnp.square(mean))
  inverse = lax.rsqrt(variance + epsilon)
  y = (wide - _along(mean, x.ndim)) * _along(inverse * scale, x.ndim)
  y += _along(bias, x.ndim)
  return (y, mean, variance), (x, scale, mean, inverse)


def _backward(epsilon, axis_name, kept, cotangents):
  x, scale, mean, inverse = kept
  dy = cotangents[0]
  centred = layers.at_least_float32(x) - _along(mean, x.ndim)
  standard = centred * _along(inverse, x.ndim)
  of_bias, of_scale = _sums(dy, dy * standard)
  first, second = _means((of_bias, of_scale), x, axis_name)
  dx = dy - _along(first, x.ndim) - standard * _along(second, x.ndim)
  dx *= _along(scale * inverse, x.ndim)
  return dx.astype(x.dtype), of_scale, of_bias


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
      x, params['scale'], params['bias'], module.epsilon, module.axis_name
    )
    kept = layers.unbiased(module, x, variance)
    for name, value in (('mean', mean), ('var', kept)):
      old = module.variables['batch_stats'][name]
      new = module.momentum * old + (1 - module.momentum) * value
      module.put_variable('batch_stats', name, new)
    return y.astype(module.dtype or x.dtype)

  return nn.intercept_methods(intercept)
