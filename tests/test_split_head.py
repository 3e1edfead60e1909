"""The head of FC-ResNet as one operation, against Flax's layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import layers
from skipnet_jax.models import split_head

CHANNELS = 3


def as_layers(axis_name, x, scale, bias, kernel):
  """What `split_head.logits` gives, of Flax's BatchNorm, ReLU and a sum."""
  norm = layers.batch_norm('norm', True, None, axis_name)
  x = x.reshape(*x.shape[:3], 4, CHANNELS)
  y, updated = norm.apply(
    {
      'params': {'scale': scale, 'bias': bias},
      'batch_stats': {'mean': 0 * scale, 'var': 0 * scale},
    },
    x,
    mutable=['batch_stats'],
  )
  # Of momentum 0.9, and from zero.
  mean, variance = (
    updated['batch_stats'][name] * 10 for name in ('mean', 'var')
  )
  weight = kernel.reshape(1, 1, 1, 1, -1)
  return jnp.sum(nn.relu(y) * weight, -1), mean, variance


def measured(call, x, parameters, axis_name):
  """Results and gradients of some function of the logits."""

  def value(parameters, x, weight):
    y, mean, variance = call(axis_name, x, *parameters)
    total = jnp.sum(weight * y + y**3)
    if axis_name:
      total = jax.lax.psum(total, axis_name)
    return total, (y, mean, variance)

  def gradients(x, weight):
    grad = jax.grad(value, (0, 1), has_aux=True)
    (of_parameters, of_x), found = grad(parameters, x, weight)
    if axis_name:
      # As a step does, see `step.make_train_step`.
      of_parameters = jax.lax.pmean(of_parameters, axis_name)
    return found, of_parameters, of_x

  weight = jnp.linspace(-1, 2, x.size // CHANNELS).reshape(*x.shape[:3], 4)
  if axis_name is None:
    return jax.jit(gradients)(x, weight)
  halves = (a.reshape(2, -1, *a.shape[1:]) for a in (x, weight))
  return jax.pmap(gradients, axis_name, devices=jax.devices()[:2])(*halves)


@pytest.mark.parametrize('axis_name', [None, 'data'])
def test_it_is_the_layers_to_rounding(axis_name):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    x = jnp.asarray(rng.normal(1, 2, (4, 3, 5, 4 * CHANNELS)))
    scale, bias, kernel = jnp.asarray(rng.normal(0.3, 1, (3, CHANNELS)))
    # A kernel may be zero: nothing is divided by it.
    parameters = scale, bias, kernel.at[1].set(0)
    one = functools.partial(split_head.logits, 1e-5)
    found, expected = (
      measured(call, x, parameters, axis_name) for call in (one, as_layers)
    )
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_gradient_in_bfloat16_is_that_of_float32():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(1, 2, (2, 8, 8, 4 * CHANNELS)), jnp.bfloat16)
  parameters = jnp.asarray(rng.normal(0.3, 1, (3, CHANNELS)), jnp.float32)

  def gradients(x):
    def value(parameters, x):
      y, _, _ = split_head.logits(1e-5, None, x, *parameters)
      return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    return jax.jit(jax.grad(value, (0, 1)))(parameters, x)

  with jax.numpy_dtype_promotion('standard'):
    found, expected = gradients(x), gradients(x.astype(jnp.float32))
  assert found[1].dtype == jnp.bfloat16
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(
      np.float32(a), b, rtol=0.02, atol=0.01 * float(jnp.abs(b).max())
    )
