"""The statistics of BatchNorm: unbiased running ones, or each image's own."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import layers


class UnbiasedBatchNorm(nn.BatchNorm):
  """BatchNorm with PyTorch's running variance, which is the unbiased one."""

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    use_running_average: bool | None = None,
    *,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Maps `[b, y, x, c]` to the same shape; the options are not used."""
    shape, wide = x.shape[-1:], layers.at_least_float32(x)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    scale = self.param('scale', self.scale_init, shape)
    bias = self.param('bias', self.bias_init, shape)
    if self.use_running_average:
      mean, variance = running_mean.value, running_var.value
    else:
      mean, square = (wide.mean((0, 1, 2)), jnp.square(wide).mean((0, 1, 2)))
      if self.axis_name is not None:
        mean, square = lax.pmean((mean, square), self.axis_name)
      variance = jnp.maximum(0.0, square - jnp.square(mean))
      kept = unbiased(self, x, variance)
      for running, new in ((running_mean, mean), (running_var, kept)):
        old = self.momentum * running.value
        running.value = old + (1 - self.momentum) * new
    inverse = lax.rsqrt(variance + self.epsilon) * scale
    mean, inverse, bias = (
      layers.spread(each, wide) for each in (mean, inverse, bias)
    )
    return ((wide - mean) * inverse + bias).astype(self.dtype or x.dtype)


def own_statistics() -> Any:
  """In this context, predictions normalise each image by itself.

  A BatchNorm that would use its running statistics uses the mean and the
  variance of the pixels of each image instead, as in training with one image.
  """

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module = context.module
    if (
      not isinstance(module, nn.BatchNorm)
      or context.method_name != '__call__'
      or module.is_initializing()
      or not kwargs.get('use_running_average', module.use_running_average)
    ):
      return next_fun(*args, **kwargs)
    x = layers.at_least_float32(args[0])
    pixels = tuple(range(1, x.ndim - 1))
    mean = x.mean(pixels, keepdims=True)
    variance = jnp.square(x - mean).mean(pixels, keepdims=True)
    y = (x - mean) * lax.rsqrt(variance + module.epsilon)
    params = module.variables.get('params', {})
    if 'scale' in params:
      y *= layers.spread(params['scale'], y)
    if 'bias' in params:
      y += layers.spread(params['bias'], y)
    return y.astype(module.dtype or args[0].dtype)

  return nn.intercept_methods(intercept)


def unbiased(
  module: nn.BatchNorm, x: jax.Array, variance: jax.Array
) -> jax.Array:
  """What a BatchNorm keeps of the variance `[..., c]` of its input `x`."""
  if not isinstance(module, UnbiasedBatchNorm):
    return variance
  devices = 1 if module.axis_name is None else lax.psum(1, module.axis_name)
  count = devices * (x.size // x.shape[-1])
  return variance * (count / max(1, count - 1))
