"""The head of FC-ResNet on a TPU: BatchNorm, ReLU and the classifier, as one.

Neighbouring pixels and their channels are one axis, as the convolution before
gives them. With a sum over channels, XLA copies the features, and the
gradient of the logits for each channel, from one layout to another.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers

Array = jax.Array


def _of_each(kernel: Array, pixels: int) -> Array:
  """The kernel `[c]` for each of p pixels side by side: `[p * c, p]`."""
  return jnp.kron(jnp.eye(pixels, dtype=kernel.dtype), kernel[:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def logits(
  epsilon: float,
  axis_name: str | None,
  x: Array,
  scale: Array,
  bias: Array,
  kernel: Array,
) -> tuple[Array, Array, Array]:
  """One logit a pixel, by batch statistics.

  Args:
    epsilon: is added to the variance.
    axis_name: mapped axis of a pmapped call, or None.
    x: `[b, y, x, p * c]`, the features of p pixels side by side.
    scale: of BatchNorm, `[c]`.
    bias: the same.
    kernel: of the classifier, `[c]`.

  Returns:
    `(y, mean, variance)`: y `[b, y, x, p]` of x's dtype, without the
    classifier's bias; mean and variance `[c]`, without a gradient.
  """
  return _forward(epsilon, axis_name, x, scale, bias, kernel)[0]


def _forward(epsilon, axis_name, x, scale, bias, kernel):
  sums = fused_norm.joined_sums(fused_norm.power_sums(x, None), scale.size)
  mean, square = fused_norm.means(sums, x, axis_name)
  variance = fused_norm.variance_of(mean, square)
  inverse = lax.rsqrt(variance + epsilon)
  y = fused_norm.affine(x, scale, bias, mean, inverse)
  of_each = _of_each(kernel, x.shape[-1] // kernel.size)
  y = jnp.maximum(y.astype(x.dtype), 0)
  y = jnp.matmul(y, of_each.astype(x.dtype), precision='highest')
  return (y, mean, variance), (x, scale, bias, kernel, mean, inverse)


def _backward(epsilon, axis_name, kept, cotangents):
  x, scale, bias, kernel, mean, inverse = kept
  dy = cotangents[0]
  # As a product, it has the layout of x.
  ones = _of_each(jnp.ones_like(kernel), dy.shape[-1]).astype(dy.dtype)
  dy = layers.at_least_float32(jnp.matmul(dy, ones.T, precision='highest'))
  y = fused_norm.affine(x, scale, bias, mean, inverse)
  dy = jnp.where(y > 0, dy, 0)
  # The classifier's kernel scales a second time. Its own gradient is a sum over
  # what BatchNorm gives, and follows from the sums for scale and bias.
  dx, of_scale, of_bias = fused_norm.gradients(
    dy, x, scale * kernel, mean, inverse, axis_name
  )
  of_kernel = of_scale * scale + of_bias * bias
  return dx, of_scale * kernel, of_bias * kernel, of_kernel


logits.defvjp(_forward, _backward)
