"""Primitives against Flax's own, and dropout's independence of the devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from skipnet_jax.models import layers
from skipnet_jax.models import norms

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
  np.testing.assert_array_equal(layers.upsample(x), expected)


@pytest.mark.parametrize('shape', [(2, 8, 12, 5), (1, 1, 3, 2)])
def test_a_convolution_of_the_repeated_image_is_computed_on_the_small_one(
  shape,
):
  x = jax.random.normal(KEY, shape)
  ours = layers.Conv(7, upsampled=True)
  theirs = layers.Conv(7)
  variables = theirs.init(KEY, layers.upsample(x))
  shapes = jax.tree.map(jnp.shape, ours.init(KEY, x))
  assert shapes == jax.tree.map(jnp.shape, variables)
  weights = jax.random.normal(
    jax.random.key(1), (shape[0], 2 * shape[1], 2 * shape[2], 7)
  )

  def loss(conv, image, variables, x):
    return jnp.sum(jnp.sin(conv.apply(variables, image(x))) * weights)

  both = jax.jit(jax.value_and_grad(loss, (2, 3)), static_argnums=(0, 1))
  found = both(ours, lambda x: x, variables, x)
  expected = both(theirs, layers.upsample, variables, x)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@functools.partial(jax.jit, static_argnums=1)
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


def test_all_patterns_of_neighbouring_units_are_as_frequent():
  keep = np.asarray(drop(jnp.ones((4, 64, 64, 32)), 0.5)) > 0
  units = keep.reshape(4, -1)
  for stride in (1, 32, 32 * 64):
    # Units i, i + stride, ... i + 7 stride; no unit in two patterns.
    groups = units.reshape(4, -1, 8, stride).astype(int)
    words = np.tensordot(groups, 2 ** np.arange(8), ([2], [0]))
    counts = np.bincount(words.ravel(), minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_the_number_of_dropped_units_varies_as_that_of_fair_coins():
  keys = jax.random.split(KEY, 400)
  x = jnp.ones((1, 16, 16, 4))
  dropped = jax.jit(jax.vmap(lambda k: jnp.sum(drop(x, 0.5, k) == 0)))(keys)
  # Keys that only permute the units would always drop as many.
  ratio = np.var(np.asarray(dropped)) / (x.size * 0.25)
  assert 0.75 < ratio < 1.3


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


@pytest.mark.parametrize('size', [2, 3])
def test_a_transposed_convolution_adds_what_it_says(size):
  x = np.asarray(jax.random.normal(KEY, (2, 3, 4, 5)))
  layer = layers.ConvTranspose(7, size)
  variables = layer.init(KEY, x)
  variables['params']['bias'] = jnp.arange(7.0)
  kernel = np.asarray(variables['params']['kernel'])
  assert kernel.shape == (size, size, 5, 7)
  # One pixel more around: what falls outside is cut off.
  whole = np.zeros((2, 8, 10, 7))
  for i, j, p, q in np.ndindex(3, 4, size, size):
    y, z = 2 * i + p - (size == 3) + 1, 2 * j + q - (size == 3) + 1
    whole[:, y, z] += x[:, i, j] @ kernel[p, q]
  expected = whole[:, 1:7, 1:9] + np.arange(7.0)
  np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_the_centre_of_an_odd_rest_is_cut_below():
  x = jnp.arange(35.0).reshape(1, 5, 7, 1)
  found = layers.centre_crop(x, (2, 4))
  np.testing.assert_array_equal(found, x[:, 1:3, 1:5])


def test_a_running_variance_may_be_unbiased():
  make = norms.UnbiasedBatchNorm
  norm = layers.batch_norm('norm', True, jnp.float32, None, make=make)
  x = 3 * jax.random.normal(KEY, (2, 5, 7, 3)) + 1
  variables = norm.init(KEY, x)
  _, after = norm.apply(variables, x, mutable=['batch_stats'])
  pixels = np.asarray(x, np.float64)
  for name, new in (
    ('mean', pixels.mean((0, 1, 2))),
    ('var', pixels.var((0, 1, 2), ddof=1)),
  ):
    old = np.float64(variables['batch_stats'][name])
    np.testing.assert_allclose(
      after['batch_stats'][name], 0.9 * old + 0.1 * new, rtol=1e-5
    )
