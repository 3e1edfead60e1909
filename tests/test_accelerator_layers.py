"""Layers in the form for accelerators, against that for CPUs."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import accelerator_layers
from skipnet_jax.models import blocks
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers
from skipnet_jax.models import polymtl
from skipnet_jax.models import skips
from skipnet_jax.models import split_head
from skipnet_jax.models import tpu_layers

MODULES = {
  'upsampled': layers.Conv(3, upsampled=True, dtype=jnp.float64),
  'single': layers.Conv(1, 1, dtype=jnp.float64),
  'strided': layers.Conv(1, 1, 2, dtype=jnp.float64),
  'simple': blocks.SimpleBlock(4, dropout=0.2, dtype=jnp.float64),
  'pooled': blocks.SimpleBlock(4, 'down', dtype=jnp.float64),
}


def assert_equal(module, x, *arguments, tpu=True, devices=1):
  """Compares outputs, statistics and gradients with those of other platforms.

  Args:
    module: in float64.
    x: its first argument.
    *arguments: the others.
    tpu: whether in the form for TPUs, else in that for GPUs.
    devices: over which the images of a mapped call are distributed.
  """
  rng = np.random.default_rng(0)

  def draw(path, like):
    values = rng.normal(0.3, 0.3, like.shape)
    if path[-1].key == 'kernel':
      # All layers then give numbers of one size, and none hides another.
      values = rng.normal(size=like.shape) / np.prod(like.shape[:-1]) ** 0.5
    return jnp.asarray(values)

  def call(fused):
    def value(params, x):
      with contextlib.ExitStack() as forms:
        if fused:
          if tpu:
            forms.enter_context(tpu_layers.instead_of_layers())
          forms.enter_context(fused_norm.instead_of_flax())
          forms.enter_context(accelerator_layers.instead_of_layers())
        y, updated = module.apply(
          {**variables, 'params': params},
          x,
          *arguments,
          mutable=['batch_stats'],
          rngs={'dropout': jax.random.key(1)},
        )
      y = y['logits'] if isinstance(y, dict) else y
      weights = jnp.linspace(-1, 2, y.size).reshape(y.shape)
      total = jnp.sum(weights * y**3)
      if devices > 1:
        total = jax.lax.psum(total, 'data')
      return total, (y, updated)

    grad = jax.grad(value, (0, 1), has_aux=True)
    if devices == 1:
      return jax.jit(grad)(variables['params'], x)
    mapped = jax.pmap(
      grad, 'data', in_axes=(None, 0), devices=jax.devices()[:devices]
    )
    (of_params, of_x), found = mapped(
      variables['params'], x.reshape(devices, -1, *x.shape[1:])
    )
    # Of one device alone, that of a bias before BatchNorm is not zero.
    return jax.tree.map(lambda each: each.mean(0), of_params), of_x, found

  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    x = jnp.asarray(x)
    variables = jax.eval_shape(
      lambda: module.init(jax.random.key(0), x, *arguments)
    )
    variables = jax.tree_util.tree_map_with_path(draw, variables)
    found, expected = call(True), call(False)
  for a, b in zip(
    *map(jax.tree.leaves, (found[-1], expected[-1])), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())
  gradients = [jax.tree.leaves(each[:-1]) for each in (found, expected)]
  largest = max(np.abs(b).max() for b in gradients[1])
  for a, b in zip(*gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)


@pytest.mark.parametrize('name', MODULES)
def test_it_is_the_layer_to_rounding(name):
  module, rng = MODULES[name], np.random.default_rng(0)
  block = isinstance(module, blocks.Block)
  x = rng.normal(1, 2, (2, 6, 4, 4))
  assert_equal(module, x, *[True, True] * block, tpu=False)


@pytest.mark.parametrize(
  ('tpu', 'changes'),
  [
    (False, {'slices': 3}),
    (False, {'batch_norm': False, 'short_skips': False}),
    (True, {'slices': 3}),
    (True, {'blocks': 'simple,basic,bottleneck,simple,basic,basic,simple'}),
    (True, {'blocks': 'basic', 'long_skips': False}),
    (True, {'base_width': 1}),
    (True, {'short_skips': False, 'long_skip_projection': 'both'}),
    (True, {'batch_norm': False, 'short_skips': False, 'long_skips': False}),
  ],
)
def test_a_network_is_the_same(tpu, changes):
  small = {'base_width': 2, 'repetitions': (1,) * 7, 'dtype': 'float64'}
  network = fc_resnet.FCResNet(**(small | changes))
  x = np.random.default_rng(1).normal(size=(2, 32, 64, network.slices))
  assert_equal(network, x, True, tpu=tpu)


@pytest.mark.parametrize(('tpu', 'times'), [(True, 1), (False, 0)])
def test_on_a_tpu_the_head_is_one_operation(tpu, times, monkeypatch):
  called, logits = [], split_head.logits

  def call(*arguments):
    called.append(arguments)
    return logits(*arguments)

  monkeypatch.setattr(split_head, 'logits', call)
  network = fc_resnet.FCResNet(base_width=2, repetitions=(1,) * 7)
  x = jnp.zeros((2, 32, 32, 1))
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), x, train=False)
  )

  def value(variables):
    return network.apply(
      variables,
      x,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(1)},
    )

  with contextlib.ExitStack() as forms:
    if tpu:
      forms.enter_context(tpu_layers.instead_of_layers())
    forms.enter_context(fused_norm.instead_of_flax())
    forms.enter_context(accelerator_layers.instead_of_layers())
    jax.eval_shape(value, variables)
  assert len(called) == times


class Own(fc_resnet.FCResNet):
  """A network of someone's own, with layers of the same names."""

  @nn.compact
  def __call__(self, image, train, sample=False):
    """See `Network`."""
    kind = dict(short_skip=True, batch_norm=True, dropout=0.0, dtype=self.dtype)
    x = layers.Conv(8, dtype=self.dtype, name='down_1')(image)
    # An axis of its own before the channels, as of split pixels.
    x = layers.Dropout(0.3)(x.reshape(*x.shape[:3], 4, 2), train)
    x = nn.BatchNorm(use_running_average=False, use_scale=False)(x)
    x = jnp.repeat(skips.ShortSkip('down', self.dtype)(x[:, ::2, ::2], x), 4, 1)
    x = x.reshape(*x.shape[:3], 8)
    x = fc_resnet.Stage(
      'bottleneck', 8, 2, True, True, False, kind, name='across'
    )(nn.relu(x), train, train)
    return {'logits': layers.Conv(1, 1, dtype=self.dtype)(nn.relu(x))}


def test_a_mapped_network_is_the_same():
  network = fc_resnet.FCResNet(
    base_width=2, repetitions=(1,) * 7, dtype='float64', axis_name='data'
  )
  x = np.random.default_rng(1).normal(size=(4, 32, 32, 1))
  assert_equal(network, x, True, devices=2)


def test_a_network_within_another_is_the_same():
  network = polymtl.PolyMtl(base_width=2, repetitions=(1,) * 7, dtype='float64')
  x = np.random.default_rng(1).normal(size=(2, 32, 64, network.slices))
  assert_equal(network, x, True)


def test_an_own_network_may_use_its_layers_in_another_way():
  x = np.random.default_rng(1).normal(size=(2, 32, 32, 1))
  assert_equal(Own(dtype='float64'), x, True)
