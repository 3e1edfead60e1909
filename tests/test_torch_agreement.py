"""Flax and PyTorch, every network and its switches, as one function."""

import jax
import numpy as np
import pytest
import small_networks
from small_networks import make_batch
import systems

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.step import agreement
from skipnet_jax.step import losses

pytestmark = pytest.mark.peer

SMALL = {name: system.small for name, system in systems.SYSTEMS.items()} | {
  'fc_resnet': dict(base_width=4, repetitions=(1, 1, 1, 2, 1, 1, 1)),
  'polymtl': dict(
    base_width=4, repetitions=(1, 1, 1, 2, 1, 1, 1), normaliser_width=2
  ),
}
# Of all kernels: F-CLmser-S's gates and masks are half open at it.
DEVIATION = {'f_clmser_s': 0.2}
MIXED = 'simple,basic,bottleneck,simple,bottleneck,basic,simple'


@pytest.fixture(scope='module')
def parity():
  from skipnet_jax.benchmarking.peer import parity

  return parity


@pytest.fixture(scope='module')
def both():
  """Makes (model, variables, network) whose statistics are not the first."""
  from skipnet_jax.benchmarking.peer import networks as torch_networks
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  def make(name='fc_resnet', **fields):
    config = models.model_config(name, **SMALL[name] | fields)
    model = models.build_model(config)
    rng = np.random.default_rng(0)

    def moved(path, leaf):
      # Scales and variances stay near one, biases and means near zero.
      noise = 0.1 * rng.uniform(-1, 1, leaf.shape)
      if path[-1].key == 'kernel':
        he = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return leaf * (DEVIATION.get(name, he) / he)
      if path[-2].key == 'reduce':
        # The channel gates' few ReLUs: some would give nothing else.
        noise += 1
      return np.asarray(leaf) + noise.astype(leaf.dtype)

    drawn = small_networks.draw(model, model.input_shape((64, 64)))
    variables = jax.tree_util.tree_map_with_path(
      moved, {'batch_stats': {}} | drawn
    )
    network = torch_networks.build(model)
    torch_weights.load(network, variables)
    return model, variables, network

  return make


def assert_equal(ours, theirs):
  for part in ('logits', 'loss', 'gradient', 'statistics'):
    assert ours[part].keys() == theirs[part].keys()
    for name, value in theirs[part].items():
      # Of the whole part: a bias before a BatchNorm has no gradient.
      whole = max(np.abs(v).max() for v in theirs[part].values())
      np.testing.assert_allclose(
        ours[part][name], value, rtol=1e-9, atol=1e-9 * whole
      )


@pytest.mark.parametrize(
  'fields',
  [
    {'blocks': MIXED, 'long_skip_projection': 'both'},
    {'blocks': MIXED, 'batch_norm': False},
    {'blocks': 'bottleneck', 'short_skips': False, 'long_skips': False},
  ],
)
def test_outputs_and_gradients_are_equal_in_float64(fields, both, parity):
  model, variables, network = both(dropout=0.3, **fields)
  batch = make_batch(64, noise=1)
  ours = parity.ours(model, variables, batch, 'float64')
  theirs = parity.theirs(network, batch, 'float64')
  assert_equal(ours, theirs)
  assert network.classifier.weight.grad is None


@pytest.mark.parametrize(
  ('name', 'fields', 'loss'),
  [
    (name, fields, loss)
    for name, system in systems.SYSTEMS.items()
    for fields, loss in system.agreement
  ],
)
def test_other_networks_are_equal_in_float64(name, fields, loss, both, parity):
  model, variables, network = both(name, **fields)
  batch = make_batch((32, 64), weight=True, slices=model.slices, noise=1)
  terms = losses.Terms(lambda step: 0.3, adversarial=0.2)
  ours = parity.ours(model, variables, batch, 'float64', loss, terms)
  theirs = parity.theirs(network, batch, 'float64', loss, terms)
  assert_equal(ours, theirs)
  for layer, apart in parity._by_layer(ours, theirs).items():
    assert apart < parity.EXACT, layer
  whole = max(np.abs(v).max() for v in theirs['gradient'].values())
  for layer, value in theirs['gradient'].items():
    if 'gate' in layer or 'mask' in layer:
      assert np.abs(value).max() > 1e-5 * whole, layer


def test_a_check_tells_how_close_they_are(both, parity, monkeypatch):
  model, variables, network = both(blocks=MIXED)
  batch = make_batch(96, count=1, noise=1)
  monkeypatch.setattr(parity, 'SIDE', 64)
  ours, kept = parity.ours, {}

  # Compiled once for the right and the wrong weights of the other side.
  def once(model, variables, batch, dtype, *objective):
    if dtype not in kept:
      kept[dtype] = ours(model, variables, batch, dtype, *objective)
    return kept[dtype]

  monkeypatch.setattr(parity, 'ours', once)
  found = parity.check(model, variables, network, batch)
  assert found['image_size'] == [64, 64]
  for part in ('logits', 'loss', 'gradient', 'statistics'):
    assert found['float64'][part] < 1e-9
    assert found['float32'][part] < 1e-4
  assert 0 < found['float64']['worst_layer'] < 1e-9

  weight = network.down_4.block_1.conv_1.weight
  weight.data[0, 0, 0, 0] += 0.01
  with pytest.raises(errors.RunError, match='does not agree'):
    parity.check(model, variables, network, batch)


def test_only_without_batch_norm_may_gradients_in_float32_be_apart(
  both, parity, monkeypatch
):
  def scaled(network):
    def ours(model, variables, batch, dtype, *objective):
      point = parity.theirs(network, batch, dtype, *objective)
      if dtype == 'float32':
        gradient = point['gradient']
        point['gradient'] = {k: 1.001 * v for k, v in gradient.items()}
      return point

    return ours

  batch = make_batch(64, count=1, noise=1)
  model, variables, network = both('unet')
  monkeypatch.setattr(parity, 'ours', scaled(network))
  found = parity.check(model, variables, network, batch)
  assert found['float32']['gradient'] == pytest.approx(1e-3)

  model, variables, network = both('fusionnet')
  assert agreement.tolerance('gradient', variables) == agreement.TOLERANCE
  monkeypatch.setattr(parity, '_shift_biases', lambda n: n)
  monkeypatch.setattr(parity, 'ours', scaled(network))
  with pytest.raises(errors.RunError, match='gradient in float32 differs'):
    parity.check(model, variables, network, batch)


def test_a_gradient_that_cancels_out_is_compared_with_the_whole(
  parity,
):
  theirs = {'a.weight': np.ones(3), 'b.weight': np.full(3, 1e-9)}
  ours = theirs | {'b.weight': np.full(3, 1.0000001e-9)}
  found = parity._by_layer({'gradient': ours}, {'gradient': theirs})
  assert found['a'] == 0
  assert 0 < found['b'] < parity.EXACT


def test_a_network_with_other_layers_is_refused(both, parity):
  model, variables, _ = both(blocks='simple')
  network = both(blocks='simple', batch_norm=False)[2]
  with pytest.raises(errors.RunError, match=r'only one side has .*norm'):
    parity.check(model, variables, network, make_batch(64, noise=1))
