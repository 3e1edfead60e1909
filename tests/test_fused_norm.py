"""The accelerators' BatchNorm against Flax's, which a CPU uses."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers
from skipnet_jax.models import norms


def form(fused):
  return fused_norm.instead_of_flax() if fused else contextlib.nullcontext()


def measured(
  fused, dtype, shape=(4, 3, 5, 6), axis_name=None, make=nn.BatchNorm
):
  """Outputs, running statistics, gradients of some function of the outputs."""
  module = layers.batch_norm('norm', True, dtype, axis_name, make=make)
  rng = np.random.default_rng(0)

  def draw(*size):
    return jnp.asarray(rng.normal(1, 2, size), jnp.float64)

  channels = shape[-1]
  params = {'scale': draw(channels), 'bias': draw(channels)}
  stats = {'mean': draw(channels), 'var': draw(channels) ** 2}
  x, weight = draw(*shape).astype(dtype), draw(*shape)

  def value(params, x, weight):
    with form(fused):
      y, updated = module.apply(
        {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
      )
    wide = y.astype(jnp.float64)
    total = jnp.sum(weight * wide + wide**3)
    if axis_name:
      total = jax.lax.psum(total, axis_name)
    return total, (y, updated)

  def call(x, weight):
    (_, found), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(
      params, x, weight
    )
    if axis_name:
      # As a step does, see `step.make_train_step`.
      gradients = jax.lax.pmean(gradients[0], axis_name), gradients[1]
    return found, gradients

  if not axis_name:
    return jax.jit(call)(x, weight)
  halves = (a.reshape(2, -1, *a.shape[1:]) for a in (x, weight))
  return jax.pmap(call, axis_name, devices=jax.devices()[:2])(*halves)


@pytest.mark.parametrize('make', [nn.BatchNorm, norms.UnbiasedBatchNorm])
@pytest.mark.parametrize('axis_name', [None, 'data'])
def test_it_is_flax_s_to_rounding(axis_name, make):
  # Flax's BatchNorm mixes dtypes for any compute dtype but float32.
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    found, expected = (
      measured(fused, 'float64', axis_name=axis_name, make=make)
      for fused in (True, False)
    )
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_sums_are_float32_whatever_the_network_computes_in():
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    (y, stats), _ = measured(True, 'bfloat16')
    (expected, known), _ = measured(False, 'bfloat16')
  assert y.dtype == expected.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    y.astype(np.float32), expected.astype(np.float32), rtol=0.01
  )
  for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(known), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


class Other(nn.Module):
  """A BatchNorm that it does not replace, and one by running statistics."""

  @nn.compact
  def __call__(self, x):
    """Normalises `[b, c]` twice."""
    x = nn.BatchNorm(use_running_average=False, use_bias=False)(x)
    return nn.BatchNorm(use_running_average=True)(x)


def test_other_batch_norms_stay_flax_s():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
  variables = Other().init(jax.random.key(0), x)
  with form(True):
    found = Other().apply(variables, x, mutable=['batch_stats'])
  expected = Other().apply(variables, x, mutable=['batch_stats'])
  jax.tree.map(np.testing.assert_array_equal, found, expected)
