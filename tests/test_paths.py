"""Path lengths against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax.analysis import paths


def chain_lengths(weights):
  params = {
    f'dense_{i}': {'kernel': jnp.full((1, 1), w)} for i, w in enumerate(weights)
  }
  return paths.path_lengths(
    small_networks.LinearChain(len(weights)),
    {'params': params},
    {'image': jnp.full((1, 1), 3.0)},
    lambda outputs, _: jnp.sum(outputs['logits']),
  )


def test_equal_weights_give_the_binomial_distribution():
  # Behind layer i lie the sum of its own block, always passed through the
  # branch, and n - 1 - i sums where both ways are open.
  n, w = 6, 0.5
  found = chain_lengths([w] * n)
  for i in range(n):
    rest = np.poly1d([w / (1 + w), 1 / (1 + w)]) ** (n - 1 - i)
    expected = np.zeros(n + 1)
    expected[1 : n - i + 1] = rest.coeffs[::-1]
    np.testing.assert_allclose(found.shares[i], expected, atol=1e-6)
  assert found.rounding < 1e-6
  assert found.mean_length()[0] == pytest.approx(1 + (n - 1) / 3, rel=1e-5)


def test_any_weights_give_the_product_polynomial():
  weights = [0.3, -0.2, 1.5, 0.7]
  found = chain_lengths(weights)
  polynomial = np.poly1d([1.0])
  for w in weights[1:]:
    polynomial *= np.poly1d([w, 1.0])
  expected = polynomial.coeffs[::-1] / polynomial(1.0)
  np.testing.assert_allclose(found.shares[0, 1:], expected, atol=1e-6)
  assert found.shares[0, 0] == pytest.approx(0, abs=1e-6)


def test_shares_of_a_network_add_up_and_long_skips_shorten_paths():
  batch = small_networks.make_batch()
  lengths = {}
  for long_skips in (True, False):
    model, variables = small_networks.make_net(long_skips=long_skips)
    found = paths.path_lengths(model, variables, batch, small_networks.bce)
    np.testing.assert_allclose(found.shares.sum(1), 1, atol=1e-4)
    assert found.shares.shape == (len(found.layers), 8 + 2 + 1)
    lengths[long_skips] = found
    # Nothing but the classifier lies behind itself.
    assert found.layers[-1] == 'classifier'
    assert found.shares[-1, 0] == pytest.approx(1, abs=1e-5)
    assert found.rounding < 1e-3
  first = lengths[True].layers.index('down_1')
  # Over the sum around up_5, the gradient reaches down_1 through no branch.
  assert abs(lengths[True].shares[first, 0]) > 1e-3
  assert abs(lengths[False].shares[first, 0]) < abs(
    lengths[True].shares[first, 0]
  )


def test_a_network_without_short_skips_is_refused():
  model, variables = small_networks.make_net(short_skips=False)
  with pytest.raises(errors.InputError, match='no short skips'):
    paths.path_lengths(
      model, variables, small_networks.make_batch(), small_networks.bce
    )


def test_the_forward_pass_is_unchanged():
  x = jnp.arange(4.0)
  assert (paths._multiply_gradient(x, jnp.array([0.0, 1.0])) == x).all()
  z = jnp.array([0.6, 0.8])
  grad = jax.grad(lambda x, seed: seed * paths._multiply_gradient(x, z))
  g = jax.vmap(grad, in_axes=(None, 0), axis_name='parts')(
    2.0, jnp.array([1.0, 0.0])
  )
  np.testing.assert_allclose(g, [0.6, 0.8])
