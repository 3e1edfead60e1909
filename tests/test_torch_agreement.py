"""Flax and PyTorch, all three kinds of block, as one function."""

import jax
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.training import optim
from skipnet_jax.training import state as state_lib

pytestmark = pytest.mark.peer

MIXED = 'simple,basic,bottleneck,simple,bottleneck,basic,simple'


@pytest.fixture(scope='module')
def torch_agreement():
  from skipnet_jax.benchmarking import torch_agreement

  return torch_agreement


@pytest.fixture(scope='module')
def both(smoke):
  """Makes (model, variables, network) whose statistics are not the first."""
  from skipnet_jax.benchmarking import torch_network
  from skipnet_jax.benchmarking import torch_weights

  def make(**fields):
    config = models.model_config(
      'fc_resnet',
      **dict(base_width=4, repetitions=(1, 1, 1, 2, 1, 1, 1)) | fields,
    )
    model = models.build_model(config)
    optimizer = optim.make_optimizer(
      smoke().optim, optim.make_schedule(smoke().optim, 1, 1)
    )
    state = state_lib.create_state(model, optimizer, 0)
    rng = np.random.default_rng(0)

    def moved(path, leaf):
      # Scales and variances stay near one, biases and means near zero.
      noise = 0.1 * rng.uniform(-1, 1, leaf.shape)
      kernel = path[-1].key == 'kernel'
      return leaf if kernel else leaf + noise.astype(leaf.dtype)

    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    variables = jax.tree_util.tree_map_with_path(moved, variables)
    network = torch_network.TorchFCResNet(model)
    torch_weights.load(network, variables)
    return model, variables, network

  return make


def make_batch(count=2, side=64):
  rng = np.random.default_rng(1)
  image = rng.normal(size=(count, side, side, 1))
  return {
    'image': image.astype(np.float32),
    'label': (image + rng.normal(size=image.shape) > 0).astype(np.float32),
  }


@pytest.mark.parametrize(
  'fields',
  [
    {'blocks': MIXED, 'long_skip_projection': 'both'},
    {'blocks': MIXED, 'batch_norm': False},
    {'blocks': 'bottleneck', 'short_skips': False, 'long_skips': False},
  ],
)
def test_outputs_and_gradients_are_equal_in_float64(
  fields, both, torch_agreement
):
  model, variables, network = both(dropout=0.3, **fields)
  batch = make_batch()
  ours = torch_agreement.ours(model, variables, batch, 'float64')
  theirs = torch_agreement.theirs(network, batch, 'float64')
  for part in ('logits', 'loss', 'gradient', 'statistics'):
    assert ours[part].keys() == theirs[part].keys()
    for name, value in theirs[part].items():
      # Of the whole part: a bias before a BatchNorm has no gradient.
      whole = max(np.abs(v).max() for v in theirs[part].values())
      np.testing.assert_allclose(
        ours[part][name], value, rtol=1e-6, atol=1e-6 * whole
      )
  assert network.classifier.weight.grad is None


def test_a_check_tells_how_close_they_are(both, torch_agreement, monkeypatch):
  model, variables, network = both(blocks=MIXED)
  batch = make_batch(1, 96)
  monkeypatch.setattr(torch_agreement, 'SIDE', 64)
  ours, kept = torch_agreement.ours, {}

  # Compiled once for the right and the wrong weights of the other side.
  def once(model, variables, batch, dtype):
    if dtype not in kept:
      kept[dtype] = ours(model, variables, batch, dtype)
    return kept[dtype]

  monkeypatch.setattr(torch_agreement, 'ours', once)
  found = torch_agreement.check(model, variables, network, batch)
  assert found['image_size'] == [64, 64]
  for part in ('logits', 'loss', 'gradient', 'statistics'):
    assert found['float64'][part] < 1e-6
    assert found['float32'][part] < 1e-4
  assert 0 < found['float64']['worst_layer'] < 1e-6

  weight = network.down_4.block_1.conv_1.weight
  weight.data[0, 0, 0, 0] += 0.01
  with pytest.raises(errors.RunError, match='does not agree'):
    torch_agreement.check(model, variables, network, batch)


def test_a_network_with_other_layers_is_refused(both, torch_agreement):
  model, variables, _ = both(blocks='simple')
  network = both(blocks='simple', batch_norm=False)[2]
  with pytest.raises(errors.RunError, match=r'only one side has .*norm'):
    torch_agreement.check(model, variables, network, make_batch())
