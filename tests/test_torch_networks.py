"""The PyTorch networks: parameters as in the Flax ones, by name and shape."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import clmser

pytestmark = pytest.mark.peer

SWITCHES = [
  ('fc_resnet', {}),
  *[('f_clmser_s', {'gates': gates}) for gates in clmser.VARIANTS],
  ('f_clmser_s', {'deconv_kernel': 3, 'short_skips': False}),
  ('f_clmser_s', {'long_skips': False}),
  ('unet', {}),
  ('unet', {'up_kernel': 3, 'padding': 'VALID'}),
  ('unet', {'long_skips': False}),
  ('fusionnet', {}),
  ('fusionnet', {'long_skips': False, 'short_skips': False}),
  ('fc_resnet', {'slices': 3}),
  ('polymtl', {'normaliser_width': 2}),
  ('cumedvision', {}),
  ('m2fcn', {}),
  ('fcn_lstm', {'hidden': 3}),
  ('fcn_lstm', {'long_skips': False}),
  ('addn', {}),
  ('addn', {'long_skips': False}),
  ('sfcnn', {}),
  ('sfcnn', {'long_skips': False, 'kernel_size': 3}),
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
  ('name', 'fields', 'count'),
  [
    ('f_clmser_s', {'gates': 'none'}, 8_293_704),
    ('f_clmser_s', {'gates': 'cg'}, 8_306_178),
    ('f_clmser_s', {'gates': 'cg+pg'}, 8_306_205),
    ('f_clmser_s', {'gates': 'cg+full_pg'}, 8_306_223),
    ('f_clmser_s', {'gates': 'cg+pg+gm'}, 8_308_941),
    ('unet', {}, 31_030_658),
    ('unet', {'up_kernel': 3}, 34_512_258),
    ('fusionnet', {}, 78_531_137),
    ('polymtl', {}, 13_392_579),
    ('cumedvision', {}, 7_933_126),
    ('m2fcn', {}, 5_732_820),
    ('fcn_lstm', {}, 16_761_761),
    ('addn', {}, 8_994_058),
    ('sfcnn', {}, 2_810_001),
  ],
)
def test_it_has_the_known_number_of_parameters(name, fields, count, meta):
  _, network = meta(name, **fields)
  assert sum(p.numel() for p in network.parameters()) == count


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

  assert set(torch_networks.NETWORKS) == set(models.MODELS.values())
  with pytest.raises(errors.InputError, match='Dense has no counterpart'):
    torch_networks.build(nn.Dense(1))


@pytest.mark.parametrize('pad', [((2, 3), (0, 1)), ((9, 4), (7, 20))])
def test_an_image_is_mirrored_as_often_as_it_takes(pad, torch):
  from skipnet_jax.benchmarking.peer.networks import layers as torch_layers

  image = np.random.default_rng(0).normal(size=(2, 1, 4, 6))
  found = torch_layers.mirror(torch.from_numpy(image), pad)
  expected = np.pad(image, ((0, 0), (0, 0), *pad), 'reflect')
  np.testing.assert_array_equal(found.numpy(), expected)
