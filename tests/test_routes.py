"""The gradient by kind of skip and by path length, against closed forms."""

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import routes


def make_routes(**fields):
  model, variables = small_networks.make_net(**fields)
  return routes.Routes(
    model, variables, small_networks.make_batch(), small_networks.bce
  )


@pytest.fixture(scope='module')
def both():
  """Of a network with both kinds of skip; the tests share its compilation."""
  return make_routes()


@pytest.fixture(scope='module')
def short_only():
  return make_routes(long_skips=False)


@pytest.fixture(scope='module')
def long_only():
  return make_routes(short_skips=False)


@pytest.fixture(scope='module')
def plain():
  return make_routes(short_skips=False, long_skips=False)


def chain_routes(weights):
  params = {
    f'dense_{i}': {'kernel': jnp.full((1, 1), w)} for i, w in enumerate(weights)
  }
  return routes.Routes(
    small_networks.LinearChain(len(weights)),
    {'params': params},
    {'image': jnp.full((1, 1), 3.0)},
    lambda outputs, _: jnp.sum(outputs['logits']),
  )


def test_routes_add_up_to_the_gradient(both):
  model, variables = small_networks.make_net()
  whole = gradient_flow.layer_gradients(
    model, variables, small_networks.make_batch(), small_networks.bce
  )
  assert list(both.whole()) == list(both.layers) == list(whole)
  parts = both.by_skip()
  assert tuple(parts) == routes.ROUTES
  assert all(list(part) == list(whole) for part in parts.values())
  for name, g in whole.items():
    total = sum(parts[route][name] for route in parts)
    scale = max(np.abs(parts[r][name]).max() for r in parts)
    np.testing.assert_allclose(total, g, atol=1e-5 * scale)
    np.testing.assert_allclose(both.whole()[name], g, atol=1e-5 * scale)
  # The encoder's gradient does come through every route.
  for route in parts:
    assert np.abs(parts[route]['down_1']).max() > 0


@pytest.mark.parametrize(
  ('network', 'absent'),
  [
    ('long_only', ('short', 'both')),
    ('short_only', ('long', 'both')),
    ('plain', ('long', 'short', 'both')),
  ],
)
def test_a_network_without_a_skip_has_no_gradient_through_it(
  network, absent, request
):
  found = request.getfixturevalue(network)
  parts = found.by_skip()
  for route in absent:
    assert all(not np.any(g) for g in parts[route].values())
  assert np.any(parts['neither']['down_1'])
  # Without residual sums one real backward pass is enough.
  shapes = [g.shape for g in found._backward(True, True, 1 + 0j)]
  assert {shape[0] for shape in shapes} == {1 + bool(found.branches)}


class Sum(nn.Module):
  """Adds a filtered `skipped` to `path`."""

  skip_kind: str

  @nn.compact
  def __call__(self, path, skipped):
    return path + nn.Conv(2, (1, 1), name='projection')(skipped)


class Stopping(nn.Module):
  """A block before a long skip and one inside; stops the kinds in `stopped`."""

  stopped: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, x, train):
    del train

    def add(kind, name, path, skipped):
      if kind in self.stopped:
        skipped = lax.stop_gradient(skipped)
      return Sum(kind, name=name)(path, skipped)

    def block(x, name):
      path = nn.Conv(2, (3, 3), name=name)(jnp.tanh(x))
      return add('short', f'short_{name}', path, x)

    before = block(nn.Conv(2, (3, 3), name='first')(x), 'before')
    x = add('long', 'outer', block(before, 'inside'), before)
    return {'logits': nn.Conv(1, (1, 1), name='classifier')(jnp.tanh(x))}


def test_stopped_gradients_make_the_same_routes():
  batch = small_networks.make_batch(8)
  variables = Stopping().init(jax.random.key(0), batch['image'], train=True)

  def g(*stopped):
    def loss(params):
      outputs = Stopping(stopped).apply(
        {'params': params}, batch['image'], True
      )
      return small_networks.bce(outputs, batch)

    return jax.grad(loss)(variables['params'])

  none, long, short, whole = g('long', 'short'), g('short'), g('long'), g()

  def sub(a, b):
    return jax.tree.map(jnp.subtract, a, b)

  expected = {
    'neither': none,
    'long': sub(long, none),
    'short': sub(short, none),
    'both': sub(sub(whole, short), sub(long, none)),
  }
  found = routes.Routes(Stopping(), variables, batch, small_networks.bce)
  parts = found.by_skip()
  for route in routes.ROUTES:
    assert len(parts[route]) == len(found.layers) == 7
    for name, part in parts[route].items():
      tree = expected[route]
      for key in name.split('/'):
        tree = tree[key]
      np.testing.assert_allclose(part, tree['kernel'], rtol=1e-4, atol=1e-7)
    assert np.abs(parts[route]['first']).max() > 1e-3


def test_linear_chain_in_closed_form():
  weights = [0.5, -0.25, 2.0, 0.1]
  parts = chain_routes(weights).by_skip()
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


def test_equal_weights_give_the_binomial_distribution():
  # Behind layer i lie the sum of its own block, always passed through the
  # branch, and n - 1 - i sums where both ways are open.
  n, w = 6, 0.5
  found = chain_routes([w] * n).by_length()
  for i in range(n):
    rest = np.poly1d([w / (1 + w), 1 / (1 + w)]) ** (n - 1 - i)
    expected = np.zeros(n + 1)
    expected[1 : n - i + 1] = rest.coeffs[::-1]
    np.testing.assert_allclose(found.shares[i], expected, atol=1e-6)
  assert 0 < found.rounding < 1e-6
  assert found.mean_length()[0] == pytest.approx(1 + (n - 1) / 3, rel=1e-5)


def test_any_weights_give_the_product_polynomial():
  weights = [0.3, -0.2, 1.5, 0.7]
  found = chain_routes(weights).by_length()
  polynomial = np.poly1d([1.0])
  for w in weights[1:]:
    polynomial *= np.poly1d([w, 1.0])
  expected = polynomial.coeffs[::-1] / polynomial(1.0)
  np.testing.assert_allclose(found.shares[0, 1:], expected, atol=1e-6)
  assert found.shares[0, 0] == pytest.approx(0, abs=1e-6)


def test_shares_of_a_network_add_up_and_long_skips_shorten_paths(
  both, short_only
):
  for network in (both, short_only):
    found = network.by_length()
    assert found.shares.dtype == np.float64
    np.testing.assert_allclose(found.shares.sum(1), 1, atol=1e-4)
    assert found.shares.shape == (len(found.layers), 8 + 2 + 1)
    # Nothing but the classifier lies behind itself.
    assert found.layers[-1] == 'classifier'
    assert found.shares[-1, 0] == pytest.approx(1, abs=1e-5)
    assert 0 < found.rounding < 1e-3
  first = both.layers.index('down_1')
  # Over the sum around up_5, the gradient reaches down_1 through no branch.
  over_none = abs(both.by_length().shares[first, 0])
  assert over_none > 1e-3
  assert abs(short_only.by_length().shares[first, 0]) < over_none


def test_branches_come_in_call_order(both, long_only):
  assert len(both.branches) == 8 + 2
  assert both.branches[0] == 'down_2/block_1/short_skip'
  assert both.branches[-1] == 'up_4/block_1/short_skip'
  assert long_only.branches == ()


def test_a_network_without_short_skips_is_refused(long_only):
  with pytest.raises(errors.InputError, match='no short skips'):
    long_only.by_length()


def test_all_methods_share_one_compilation_and_no_pass_runs_twice():
  weights = [0.3, -0.2, 1.5, 0.7]
  found = chain_routes(weights)
  backward, calls = found._backward, []

  def counted(*args):
    calls.append(args)
    return backward(*args)

  found._backward = counted
  found.whole()
  found.by_skip()
  found.by_skip()
  # Long skips are absent: whether short ones pass makes the only two passes.
  assert len(calls) == len(set(calls)) == 2
  found.by_length()
  # Of six roots of unity, 1 was at hand and two are conjugates.
  assert len(calls) == len(set(calls)) == 5
  assert found._gradients._cache_size() == 1


def test_another_point_is_another_gradient_and_no_compilation():
  weights = [0.3, -0.2, 1.5]
  found = chain_routes(weights)
  found.by_skip()
  fresh = chain_routes([2 * w for w in weights])
  moved = found.at(fresh._point[0])
  for name, g in fresh.whole().items():
    np.testing.assert_allclose(moved.whole()[name], g, rtol=1e-6)
    assert not np.array_equal(found.whole()[name], g)
  assert found._gradients._cache_size() == 1


def test_names_at_hand_are_not_traced_again(monkeypatch):
  given = chain_routes([0.3, 0.4])

  def refuse(*args):
    raise AssertionError(args)

  monkeypatch.setattr(gradient_flow, 'conv_names', refuse)
  found = routes.Routes(
    small_networks.LinearChain(2),
    {'params': {f'dense_{i}': {'kernel': jnp.ones((1, 1))} for i in range(2)}},
    {'image': jnp.ones((1, 1))},
    lambda outputs, _: jnp.sum(outputs['logits']),
    layers=given.layers,
  )
  assert list(found.whole()) == ['dense_0', 'dense_1']


def test_the_forward_pass_is_unchanged():
  x = jnp.arange(4.0)
  assert (routes._multiply_gradient(x, jnp.array([0.0, 1.0])) == x).all()
  assert (routes._scale_gradient(x, jnp.float32(0)) == x).all()
  z = jnp.array([0.6, 0.8])
  grad = jax.grad(lambda x, seed: seed * routes._multiply_gradient(x, z))
  g = jax.vmap(grad, in_axes=(None, 0), axis_name='parts')(
    2.0, jnp.array([1.0, 0.0])
  )
  np.testing.assert_allclose(g, [0.6, 0.8])
