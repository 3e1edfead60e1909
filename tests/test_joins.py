"""Skips that are found in a traced program, against those that are named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
import systems

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import joins
from skipnet_jax.analysis import routes
from skipnet_jax.step import state as state_lib

# At a width of two, maps would count as predictions.
WIDER = ('base_width', 'hidden', 'normaliser_width')


def switches(system):
  """Settings of the switches that a system has; of the first one, all four."""
  off = {f'{kind}_skips': False for kind in systems.SYSTEMS[system].skips}
  if not off:
    return [{}]
  single = [{name: False} for name in off] if system == 'fc_resnet' else []
  return [{}, off, *single]


@pytest.mark.parametrize(
  ('system', 'fields'),
  [(name, each) for name in systems.SYSTEMS for each in switches(name)],
)
def test_all_skips_of_our_systems_are_found_and_none_invented(system, fields):
  small = dict(systems.SYSTEMS[system].small)
  small |= {name: 4 for name in WIDER if name in small}
  config = models.model_config(system, **small, **fields)
  model = models.build_model(config)
  size = [max(64, side) for side in model.init_size()]
  arguments = (
    state_lib.abstract_variables(model),
    jax.ShapeDtypeStruct(model.input_shape(tuple(size)), jnp.float32),
  )
  named = []

  def record(kind, name, *sides):
    named.append((kind, name))
    return sides

  with joins.named(record):
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(
      *arguments
    )
  found, loops = joins.find(program, len(jax.tree.leaves(arguments)) - 1)
  assert loops == ()
  at_modules = [(join.kind, join.name.rpartition('/')[0]) for join in found]
  if system == 'addn':
    # Its dense blocks concatenate what each of their layers gives.
    dense = [each for each in at_modules if 'long_skip' not in each[1]]
    assert len(dense) == 21
    assert {kind for kind, _ in dense} == {'short'}
    at_modules = [each for each in at_modules if each not in dense]
  assert sorted(at_modules) == sorted(named)


def objective(outputs, batch):
  return jnp.mean(outputs['logits'] * batch['label'])


@pytest.fixture(scope='module')
def both():
  """The routes of both networks, with one set of parameters."""
  batch = {
    name: jax.random.normal(jax.random.key(i), (1, 8, 8, 1))
    for i, name in enumerate(('image', 'label'))
  }
  variables = small_networks.SkipNet().init(
    jax.random.key(2), batch['image'], False
  )
  return [
    routes.Routes(small_networks.SkipNet(named), variables, batch, objective)
    for named in (False, True)
  ]


def test_a_foreign_network_shows_what_was_found(both):
  found, named = both
  assert [str(join) for join in found.found] == [
    'SkipNet/add (short, bypasses 2 layers)',
    'SkipNet/add (short, bypasses 1 layers)',
    'SkipNet/concatenate (long, bypasses 2 layers)',
  ]
  assert named.found == ()
  assert named.branches == ('s1', 's2')
  assert found.branches == ('SkipNet/add', 'SkipNet/add')


def test_its_gradient_is_split_as_if_its_skips_had_names(both):
  found, named = both
  parts, expected = found.by_skip(), named.by_skip()
  for route in routes.ROUTES:
    assert any(np.abs(g).max() > 0 for g in expected[route].values())
    for name, g in expected[route].items():
      np.testing.assert_allclose(parts[route][name], g, atol=1e-6)
  np.testing.assert_allclose(
    found.by_length().shares, named.by_length().shares, atol=1e-5
  )


class Looped(nn.Module):
  @nn.compact
  def __call__(self, image, train):
    def body(net, x, _):
      return x + nn.Conv(1, (3, 3), name='conv')(x), None

    looped = nn.scan(
      body, variable_axes={'params': 0}, split_rngs={'params': True}, length=2
    )
    return {'logits': looped(self, image, None)[0]}


def test_layers_in_a_loop_are_refused():
  image = jnp.zeros((1, 8, 8, 1))
  variables = Looped().init(jax.random.key(0), image, False)
  batch = {'image': image, 'label': image}
  with pytest.raises(errors.InputError, match=r'Looped has layers in a loop'):
    routes.Routes(Looped(), variables, batch, objective)


def test_other_kinds_of_modules_are_refused_by_name():
  from flax import nnx

  class Net(nnx.Module):
    pass

  class Tree:
    pass

  Tree.__module__ = 'equinox._module'
  for model, name in ((Net(), 'Flax NNX'), (Tree(), 'Equinox')):
    with pytest.raises(errors.InputError, match=f'is a module of {name}'):
      gradient_flow.conv_names(model, (1, 8, 8, 1))
  with pytest.raises(errors.InputError, match='function is no Flax Linen'):
    gradient_flow.conv_names(objective, (1, 8, 8, 1))
