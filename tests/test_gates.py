"""Gates against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import gates

X = jax.random.normal(jax.random.key(0), (2, 8, 6, 16))


def apply(gate, change=lambda kernel: kernel):
  """The gate's result and mask on X, its kernels changed."""
  variables = gate.init(jax.random.key(1), X)
  assert set(variables) == {'params'}
  params = jax.tree.map(change, variables['params'])
  result, sown = gate.apply({'params': params}, X, mutable=['gates'])
  return result, sown['gates']['value'], jax.tree.map(np.asarray, params)


@pytest.mark.parametrize('gate', [gates.ChannelGate(), gates.PixelGate()])
def test_a_gate_of_zero_weights_lets_half_through(gate):
  result, mask, _ = apply(gate, jnp.zeros_like)
  np.testing.assert_array_equal(mask, np.full(mask.shape, 0.5))
  np.testing.assert_array_equal(result, X / 2)


def test_a_channel_gate_weighs_channels_by_their_means():
  result, mask, p = apply(gates.ChannelGate(), lambda k: k + 0.1)
  assert mask.shape == (2, 1, 1, 16)
  means = np.asarray(X, np.float64).mean((1, 2))
  hidden = means @ p['reduce']['kernel'][0, 0] + p['reduce']['bias']
  assert hidden.shape == (2, 2)
  out = np.maximum(hidden, 0) @ p['expand']['kernel'][0, 0]
  expected = 1 / (1 + np.exp(-(out + p['expand']['bias'])))
  np.testing.assert_allclose(mask[:, 0, 0], expected, rtol=1e-5)
  np.testing.assert_allclose(result, X * mask, rtol=1e-6)


def test_biases_of_a_channel_gate_start_as_in_pytorch():
  channels = 4096
  shape = jnp.zeros((1, 1, 1, channels))
  params = gates.ChannelGate().init(jax.random.key(1), shape)['params']
  for name, inputs in (('reduce', channels), ('expand', channels // 8)):
    limit, bias = inputs**-0.5, np.asarray(params[name]['bias'])
    assert limit >= np.abs(bias).max() > 0.98 * limit
    assert bias.mean() == pytest.approx(0, abs=0.1 * limit)
    assert bias.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)


def test_a_pixel_gate_weighs_pixels_by_their_neighbourhood():
  result, mask, p = apply(gates.PixelGate())
  assert mask.shape == (2, 8, 6, 1)
  assert list(p['conv']) == ['kernel']
  mean = np.pad(np.asarray(X, np.float64).mean(-1), ((0, 0), (1, 1), (1, 1)))
  kernel = np.asarray(p['conv']['kernel'])[..., 0, 0]
  out = sum(
    kernel[i, j] * mean[:, i : i + 8, j : j + 6]
    for i in range(3)
    for j in range(3)
  )
  expected = 1 / (1 + np.exp(-out))
  np.testing.assert_allclose(mask[..., 0], expected, rtol=1e-5)
  np.testing.assert_allclose(result, X * mask, rtol=1e-6)


def test_an_undecided_prediction_lets_everything_through():
  result, mask, _ = apply(gates.ConfidenceMask(), jnp.zeros_like)
  np.testing.assert_array_equal(mask, np.ones((2, 8, 6, 1)))
  np.testing.assert_array_equal(result, mask)


def test_a_decided_one_lets_nothing_through_and_has_a_finite_gradient():
  gate = gates.ConfidenceMask(gamma=1)
  ones = jnp.ones_like(X)
  params = {'conv': {'kernel': jnp.full((3, 3, 16, 1), 10.0)}}

  def total(params):
    return jnp.sum(gate.apply({'params': params}, ones))

  value, grads = jax.value_and_grad(total)(params)
  assert float(value) == 0
  assert np.isfinite(grads['conv']['kernel']).all()


@pytest.mark.parametrize('gamma', [1, 2, 4])
def test_gamma_is_the_exponent(gamma):
  _, plain, _ = apply(gates.ConfidenceMask(gamma=1))
  _, mask, _ = apply(gates.ConfidenceMask(gamma=gamma))
  assert 0 < float(mask.min()) < float(mask.max()) < 1
  np.testing.assert_allclose(mask, plain**gamma, rtol=1e-5)


def test_masks_cost_nothing_where_nobody_asks():
  gate = gates.PixelGate()
  variables = gate.init(jax.random.key(1), X)
  assert isinstance(gate.apply(variables, X), jax.Array)
  _, updated = gate.apply(variables, X, mutable=['batch_stats'])
  assert not updated
