"""The layer table, and finding the first layer that is not finite."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.models import fc_resnet
from skipnet_jax.models import layer_table


@pytest.fixture(scope='module')
def table():
  return layer_table.layer_table(fc_resnet.FCResNet(), (1, 512, 512, 1))


def test_the_papers_network(table):
  convs = [row for row in table if row.flops]
  main_path = [
    row
    for row in convs
    if row.name.count('/conv_') or row.name in ('down_1', 'up_5', 'classifier')
  ]
  assert len(main_path) == 140
  assert sum(row.parameters for row in table) == 11_451_745


def test_rows_by_hand(table):
  rows = {row.name: row for row in table}
  assert table[0].name == 'down_1'
  assert rows['down_1'] == layer_table.Layer(
    'down_1',
    'FCResNet',
    (1, 512, 512, 32),
    3 * 3 * 32 + 32,
    2 * 512 * 512 * 9 * 32,
    512 * 512,
  )
  # Inside the third of up_1's ten blocks the width is 512 / 4.
  row = rows['up_1/block_3/conv_2']
  assert row.block == 'BottleneckBlock'
  assert row.shape == (1, 32, 32, 128)
  assert row.parameters == 9 * 128 * 128 + 128
  assert row.flops == 2 * 32 * 32 * 9 * 128 * 128
  norm = rows['up_1/block_3/norm_1']
  assert (norm.parameters, norm.flops) == (2 * 512, 0)


def test_the_text_has_every_layer_and_the_totals(table):
  text = layer_table.format_table(table, 11_451_745)
  assert '11,451,745 parameters' in text
  assert len(text.splitlines()) == len(table) + 4


def test_transposed_convolutions_are_counted_at_their_input():
  class Up(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      del train
      return nn.ConvTranspose(3, (2, 2), (2, 2), name='up')(x)

  (row,) = layer_table.layer_table(Up(), (1, 8, 8, 5))
  assert row.shape == (1, 16, 16, 3)
  assert row.flops == 2 * 8 * 8 * (2 * 2 * 5 * 3)


def test_the_first_layer_that_is_not_finite_is_named():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      del train
      for name in ('z', 'y', 'x'):
        x = nn.Dense(2, name=name)(x)
      return {'logits': x}

  model, image = Net(), jnp.ones((1, 4, 4, 1))
  variables = model.init(jax.random.key(0), image, train=False)
  assert layer_table.first_nonfinite(model, variables, image, {}) is None
  variables['params']['y']['kernel'] *= jnp.inf
  assert layer_table.first_nonfinite(model, variables, image, {}) == 'y'
