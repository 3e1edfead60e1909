"""The PyTorch network: its parameters are those of the Flax one, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import models

pytestmark = pytest.mark.peer

MIXED = 'simple,basic,bottleneck,simple,bottleneck,basic,simple'
SWITCHES = [
  {},
  {'blocks': 'basic', 'batch_norm': False},
  {'blocks': 'simple', 'long_skips': False},
  {'blocks': MIXED, 'long_skip_projection': 'both'},
  {'short_skips': False, 'base_width': 16},
  {'repetitions': (1, 1, 1, 1, 1, 1, 1)},
]


@pytest.fixture(scope='module')
def torch():
  import torch

  return torch


@pytest.fixture(scope='module')
def torch_network():
  from skipnet_jax.benchmarking.peer.networks import fc_resnet as torch_network

  return torch_network


@pytest.fixture(scope='module')
def torch_weights():
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  return torch_weights


def build(**fields):
  return models.build_model(models.model_config('fc_resnet', **fields))


def zeros(model):
  image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


@pytest.mark.parametrize('fields', SWITCHES)
def test_names_and_shapes_are_those_of_the_flax_network(
  fields, torch, torch_network, torch_weights
):
  model = build(**fields)
  with torch.device('meta'):
    network = torch_network.TorchFCResNet(model)
  found = {
    name: tuple(value.shape)
    for name, value in network.state_dict().items()
    if not name.endswith('num_batches_tracked')
  }
  expected = torch_weights.to_torch(zeros(model))
  assert found == {name: tuple(v.shape) for name, v in expected.items()}


@pytest.mark.parametrize(
  ('fields', 'count'),
  [
    ({}, 11_451_745),
    ({'long_skip_projection': 'both'}, 11_042_273),
    ({'short_skips': False, 'long_skips': False}, 10_180_097),
    ({'blocks': 'basic'}, 10_482_145),
  ],
)
def test_it_has_the_published_number_of_parameters(
  fields, count, torch, torch_network
):
  with torch.device('meta'):
    network = torch_network.TorchFCResNet(build(**fields))
  assert sum(p.numel() for p in network.parameters()) == count


def test_weights_of_another_network_are_not_loaded(
  torch_network, torch_weights
):
  network = torch_network.TorchFCResNet(build(base_width=4))
  with pytest.raises(RuntimeError, match='size mismatch'):
    torch_weights.load(network, zeros(build(base_width=8)))
  longer = zeros(build(base_width=4, repetitions=(4, 8, 10, 3, 10, 8, 3)))
  with pytest.raises(RuntimeError, match='Unexpected key'):
    torch_weights.load(network, longer)


def test_a_kernel_turns_its_axes(torch_weights):
  kernel = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
  found = torch_weights.to_torch({'params': {'a': {'kernel': kernel}}})
  assert list(found) == ['a.weight']
  assert found['a.weight'][6, 4, 1, 2] == kernel[1, 2, 4, 6]
  image = torch_weights.image(kernel)
  assert image[1, 6, 2, 4] == kernel[1, 2, 4, 6]
