"""The PyTorch networks: parameters as in the Flax ones, by name and shape."""

import conftest
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

from skipnet_jax import errors
from skipnet_jax import models

pytestmark = pytest.mark.peer

SWITCHES = [
  (name, fields)
  for name, system in systems.SYSTEMS.items()
  for fields in system.switches
]


@pytest.fixture(scope='module')
def torch():
  import torch

  return torch


@pytest.fixture(scope='module')
def meta(torch):
  """Makes (model, network), the network without memory of its own."""
  from skipnet_jax.benchmarking.peer import networks as torch_networks

  def make(name, **fields):
    model = models.build_model(models.model_config(name, **fields))
    with torch.device('meta'):
      return model, torch_networks.build(model)

  return make


@pytest.mark.parametrize(('name', 'fields'), SWITCHES)
def test_names_and_shapes_are_those_of_the_flax_network(
  name, fields, meta, torch
):
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  model, network = meta(name, base_width=4, **fields)
  shape = model.input_shape((64, 64))
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  expected = torch_weights.to_torch(
    jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  )
  found = {
    name: tuple(value.shape)
    for name, value in network.state_dict().items()
    if not name.endswith('num_batches_tracked')
  }
  assert found == {name: tuple(v.shape) for name, v in expected.items()}


@pytest.mark.parametrize(
  ('name', 'preset'),
  [(n, preset) for n, s in systems.SYSTEMS.items() for preset in s.counts],
)
def test_it_has_the_known_number_of_parameters(name, preset, meta):
  module = conftest.experiment(systems.EXPERIMENTS[name])
  _, network = meta(**module.get_config(preset).model)
  count = sum(p.numel() for p in network.parameters())
  assert count == systems.SYSTEMS[name].counts[preset]


@pytest.mark.parametrize('name', models.MODELS)
def test_transposed_convolutions_are_known_by_their_name(name, meta, torch):
  _, network = meta(name)
  for layer, module in network.named_modules():
    if hasattr(module, 'weight'):
      transposed = isinstance(module, torch.nn.ConvTranspose2d)
      assert layer.endswith('_up') == transposed, layer


def test_a_transposed_kernel_keeps_its_order_of_channels():
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  kernel = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
  found = torch_weights.to_torch({'params': {'up_1_up': {'kernel': kernel}}})
  assert found['up_1_up.weight'][4, 6, 1, 2] == kernel[1, 2, 4, 6]


def test_every_model_has_a_counterpart_and_no_other_module(torch):
  from skipnet_jax.benchmarking.peer import networks as torch_networks

  for kind in models.MODELS.values():
    assert issubclass(torch_networks.counterpart(kind), torch.nn.Module)
  with pytest.raises(errors.InputError, match='Dense has no counterpart'):
    torch_networks.build(nn.Dense(1))


@pytest.mark.parametrize('pad', [((2, 3), (0, 1)), ((9, 4), (7, 20))])
def test_an_image_is_mirrored_as_often_as_it_takes(pad, torch):
  from skipnet_jax.benchmarking.peer.networks import layers as torch_layers

  image = np.random.default_rng(0).normal(size=(2, 1, 4, 6))
  found = torch_layers.mirror(torch.from_numpy(image), pad)
  expected = np.pad(image, ((0, 0), (0, 0), *pad), 'reflect')
  np.testing.assert_array_equal(found.numpy(), expected)
