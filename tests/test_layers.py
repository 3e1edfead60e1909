"""Primitives against Flax's own, and dropout's independence of the devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import layers

KEY = jax.random.key(0)


@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('use_bias', [True, False])
def test_convolutions_are_those_of_flax(size, strides, use_bias):
  x = jax.random.normal(KEY, (2, 8, 12, 5))
  ours = layers.Conv(7, size, strides, use_bias)
  theirs = nn.Conv(7, (size, size), strides, use_bias=use_bias)
  variables = ours.init(KEY, x)
  if use_bias:
    variables['params']['bias'] = jnp.arange(7.0)
  np.testing.assert_allclose(
    ours.apply(variables, x), theirs.apply(variables, x), atol=2e-5
  )


def test_max_pool_and_its_gradient_are_those_of_flax():
  x = jax.random.normal(KEY, (2, 8, 12, 3))
  weights = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))

  def theirs(x):
    return nn.max_pool(x, (2, 2), (2, 2))

  for f in (layers.max_pool, theirs):
    assert f(x).shape == weights.shape
  np.testing.assert_array_equal(layers.max_pool(x), theirs(x))
  grads = [
    jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(x)
    for f in (layers.max_pool, theirs)
  ]
  np.testing.assert_allclose(*grads, rtol=1e-6)


def test_repeat_is_nearest_upsampling():
  x = jax.random.normal(KEY, (2, 3, 4, 5))
  expected = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
  np.testing.assert_array_equal(layers.repeat(x), expected)


def drop(x, rate=0.25, key=KEY):
  return layers.Dropout(rate).apply({}, x, True, rngs={'dropout': key})


@pytest.mark.parametrize('rate', [0.1, 0.5])
@pytest.mark.parametrize('shape', [(4, 64, 64, 32), (3, 7, 5, 3)])
def test_dropout_meets_its_rate_and_keeps_the_mean(rate, shape):
  found = np.asarray(drop(jnp.ones(shape), rate))
  zero = found == 0
  n = zero.size
  deviation = 5 * np.sqrt(rate * (1 - rate) / n)
  assert abs(zero.mean() - rate) < deviation + 1e-5
  np.testing.assert_allclose(found[~zero], 1 / (1 - rate), rtol=1e-4)


def test_dropout_is_off_where_it_should_be():
  x = jnp.ones((2, 4, 4, 3))
  module = layers.Dropout(0.5)
  np.testing.assert_array_equal(module.apply({}, x, False), x)
  np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, True), x)


def test_examples_units_and_keys_are_independent():
  found = np.asarray(drop(jnp.ones((8, 32, 32, 4)), 0.5)) > 0
  other = np.asarray(drop(jnp.ones((8, 32, 32, 4)), 0.5, jax.random.key(1))) > 0
  for a, b in (
    (found[0], found[1]),
    (found[:, :-1], found[:, 1:]),
    (found[..., 0], found[..., 1]),
    (found, other),
  ):
    # Two fair coins agree half of the time.
    assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size)


@pytest.mark.parametrize('devices', [2, 8])
def test_an_example_drops_the_same_units_on_any_device(devices):
  x = jnp.ones((8, 6, 6, 3))
  module = layers.Dropout(0.5, axis_name='data')

  def call(part):
    return module.apply({}, part, True, rngs={'dropout': KEY})

  parts = x.reshape(devices, 8 // devices, 6, 6, 3)
  found = jax.pmap(call, 'data', devices=jax.devices()[:devices])(parts)
  np.testing.assert_array_equal(
    np.asarray(found).reshape(x.shape), drop(x, 0.5)
  )
