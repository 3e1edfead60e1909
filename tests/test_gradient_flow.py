"""Gradients by layer and by kind of skip, against finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax.analysis import gradient_flow


@pytest.fixture(scope='module')
def net():
  return small_networks.make_net()


class Chain(nn.Module):
  """Dense layers whose names sort in the reverse of their call order."""

  @nn.compact
  def __call__(self, x, train):
    del train
    for name in ('c', 'b', 'a'):
      x = nn.Conv(2, (3, 3), name=name)(x)
    return {'logits': x}


def test_layers_come_in_call_order():
  model = Chain()
  variables = model.init(
    jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
  )
  grads = gradient_flow.layer_gradients(
    model,
    variables,
    {'image': jnp.ones((1, 8, 8, 1))},
    lambda outputs, _: jnp.sum(outputs['logits']),
  )
  assert list(grads) == ['c', 'b', 'a']
  assert grads['c'].shape == (3, 3, 1, 2)


def test_squares_over_layers_make_the_gradient_norm(net):
  model, variables = net
  batch = small_networks.make_batch()
  grads = gradient_flow.layer_gradients(
    model, variables, batch, small_networks.bce
  )

  def objective(params):
    outputs, _ = model.apply(
      variables | {'params': params},
      batch['image'],
      train=True,
      mutable=['batch_stats'],
    )
    return small_networks.bce(outputs, batch)

  whole = jax.grad(objective)(variables['params'])
  expected = sum(
    float(jnp.sum(leaf**2))
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole)
    if path[-1].key == 'kernel'
  )
  found = sum(float(jnp.sum(g**2)) for g in grads.values())
  assert found == pytest.approx(expected, rel=1e-5)
  assert expected > 0


def test_against_finite_differences_in_float64():
  with jax.enable_x64(True):
    model = Chain()
    variables = jax.tree.map(
      lambda x: x.astype(jnp.float64),
      model.init(
        jax.random.key(0), jnp.zeros((1, 6, 6, 1), jnp.float32), train=False
      ),
    )
    batch = {'image': small_networks.make_batch(6, jnp.float64)['image']}

    def loss(outputs, _):
      return jnp.mean(jnp.tanh(outputs['logits']) ** 2)

    grads = gradient_flow.layer_gradients(model, variables, batch, loss)
    rng = np.random.default_rng(0)
    step = 1e-5
    for name, g in grads.items():
      index = tuple(rng.integers(s) for s in g.shape)

      def at(delta, name=name, index=index):
        params = jax.tree.map(lambda x: x, variables['params'])
        params[name]['kernel'] = params[name]['kernel'].at[index].add(delta)
        outputs = model.apply({'params': params}, batch['image'], train=True)
        return float(loss(outputs, batch))

      numeric = (at(step) - at(-step)) / (2 * step)
      assert float(g[index]) == pytest.approx(numeric, rel=1e-7, abs=1e-12)


def test_routes_add_up_to_the_gradient(net):
  model, variables = net
  batch = small_networks.make_batch()
  whole = gradient_flow.layer_gradients(
    model, variables, batch, small_networks.bce
  )
  parts = gradient_flow.split_by_skip(
    model, variables, batch, small_networks.bce
  )
  assert tuple(parts) == gradient_flow.ROUTES
  for name, g in whole.items():
    total = sum(np.asarray(parts[route][name]) for route in parts)
    scale = max(float(jnp.max(jnp.abs(parts[r][name]))) for r in parts)
    np.testing.assert_allclose(total, g, atol=1e-5 * scale)
  # The encoder's gradient does come through every route.
  for route in parts:
    assert float(jnp.max(jnp.abs(parts[route]['down_1']))) > 0


@pytest.mark.parametrize(
  ('fields', 'absent'),
  [
    ({'short_skips': False}, ('short', 'both')),
    ({'long_skips': False}, ('long', 'both')),
    ({'short_skips': False, 'long_skips': False}, ('long', 'short', 'both')),
  ],
)
def test_a_network_without_a_skip_has_no_gradient_through_it(fields, absent):
  model, variables = small_networks.make_net(**fields)
  parts = gradient_flow.split_by_skip(
    model, variables, small_networks.make_batch(), small_networks.bce
  )
  for route in absent:
    assert all(not np.any(g) for g in parts[route].values())
  assert np.any(parts['neither']['down_1'])


def test_linear_chain_in_closed_form():
  weights = [0.5, -0.25, 2.0, 0.1]
  params = {
    f'dense_{i}': {'kernel': jnp.full((1, 1), w)} for i, w in enumerate(weights)
  }
  parts = gradient_flow.split_by_skip(
    small_networks.LinearChain(len(weights)),
    {'params': params},
    {'image': jnp.full((1, 1), 3.0)},
    lambda outputs, _: jnp.sum(outputs['logits']),
  )
  for i in range(len(weights)):
    # The layer's input is the same whatever the gradient's route.
    x = 3.0 * np.prod([1 + w for w in weights[:i]])
    whole = x * np.prod([1 + w for w in weights[i + 1 :]])
    neither = x * np.prod(weights[i + 1 :])
    name = f'dense_{i}'
    assert parts['neither'][name].item() == pytest.approx(neither, rel=1e-6)
    assert parts['short'][name].item() == pytest.approx(
      whole - neither, rel=1e-5, abs=1e-6
    )
    assert parts['long'][name].item() == 0


def test_a_model_without_convolutions_is_refused():
  class Bias(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      del train
      return x + self.param('bias', nn.initializers.zeros_init(), (1, 1, 1, 1))

  model = Bias()
  image = jnp.zeros((1, 8, 8, 1))
  with pytest.raises(errors.InputError, match='no layer with a kernel'):
    gradient_flow.layer_gradients(
      model,
      model.init(jax.random.key(0), image, train=False),
      {'image': image},
      lambda outputs, _: jnp.sum(outputs),
    )
