"""Optimizers against hand-written loops, schedules at chosen epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax.step import optim

PARAMS = {
  'conv': {
    'kernel': jnp.array([[0.5, -2.0], [1.0, 3.0]]),
    'bias': jnp.array([0.25, -0.5]),
  },
  'norm': {'scale': jnp.array([1.5]), 'bias': jnp.array([0.1])},
}


@pytest.fixture(autouse=True)
def _standard_promotion():
  # adam and MultiSteps mix integers and floats inside optax.
  with jax.numpy_dtype_promotion('standard'):
    yield


def settings(**fields):
  config = config_lib.get_default().optim
  config.update(fields)
  return config


def run(config, gradients, params=PARAMS, steps_per_epoch=5):
  schedule = optim.make_schedule(config, steps_per_epoch, 10)
  optimizer = optim.make_optimizer(config, schedule)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for g in gradients:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def gradients_of(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS
    )
    for _ in range(count)
  ]


def test_rmsprop_with_l2_on_kernels_only():
  rate, decay, eps, l2 = 1e-2, 0.9, 1e-8, 0.05
  gradients = gradients_of(4)
  found, _ = run(
    settings(learning_rate=rate, decay=decay, eps=eps, l2=l2), gradients
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(PARAMS):
    keys = [p.key for p in path]
    w = np.asarray(leaf, np.float64)
    square = np.zeros_like(w)
    for g in gradients:
      g = np.asarray(g[keys[0]][keys[1]], np.float64)
      if keys[1] == 'kernel':
        g = g + 2 * l2 * w
      square = decay * square + (1 - decay) * g**2
      w = w - rate * g / (np.sqrt(square) + eps)
    np.testing.assert_allclose(found[keys[0]][keys[1]], w, rtol=2e-5)


def test_l2_penalty_has_the_gradient_that_is_added():
  penalty = jax.grad(
    lambda params: optim.l2_penalty(optim.squares(params), 0.05)
  )(PARAMS)
  np.testing.assert_allclose(
    penalty['conv']['kernel'], 0.1 * PARAMS['conv']['kernel'], rtol=1e-6
  )
  assert not np.any(penalty['conv']['bias'])
  assert not np.any(penalty['norm']['scale'])


def test_sgd_steps_by_the_gradient():
  g = gradients_of(1)
  found, _ = run(settings(name='sgd', learning_rate=0.1, l2=0.0), g)
  expected = jax.tree.map(lambda w, d: w - 0.1 * d, PARAMS, g[0])
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_adam_starts_with_steps_of_the_learning_rate():
  found, _ = run(
    settings(name='adam', learning_rate=0.1, momentum=0.5, decay=0.999, l2=0.0),
    gradients_of(1),
  )
  change = jax.tree.map(lambda a, b: jnp.abs(a - b), found, PARAMS)
  for leaf in jax.tree.leaves(change):
    np.testing.assert_allclose(leaf, 0.1, rtol=1e-4)


def test_adamw_decays_kernels_without_gradient():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  found, _ = run(settings(name='adamw', learning_rate=0.1, l2=0.5), [zero])
  np.testing.assert_allclose(
    found['conv']['kernel'], 0.95 * PARAMS['conv']['kernel'], rtol=1e-6
  )
  np.testing.assert_array_equal(found['conv']['bias'], PARAMS['conv']['bias'])


def test_accumulation_averages_gradients():
  g = gradients_of(2)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *g)
  once, _ = run(settings(name='sgd', learning_rate=0.1), [mean])
  twice, _ = run(settings(name='sgd', learning_rate=0.1, accumulate=2), g)
  for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_ema_averages_the_parameters(accumulate):
  decay = 0.5
  gradients = gradients_of(6)
  config = settings(
    name='sgd', learning_rate=0.1, ema=decay, accumulate=accumulate
  )
  params, state = run(config, gradients)
  average = np.asarray(PARAMS['norm']['scale'], np.float64)
  w = average.copy()
  for n in range(6 // accumulate):
    part = gradients[n * accumulate : (n + 1) * accumulate]
    g = np.mean([np.asarray(p['norm']['scale']) for p in part], axis=0)
    w = w - 0.1 * g
    rate = min(decay, (1 + n) / (10 + n))
    average = rate * average + (1 - rate) * w
  found = optim.eval_params(params, state)
  np.testing.assert_allclose(found['norm']['scale'], average, rtol=1e-5)
  np.testing.assert_allclose(params['norm']['scale'], w, rtol=1e-5)


def test_without_ema_evaluation_uses_the_parameters():
  params, state = run(settings(), gradients_of(1))
  assert optim.eval_params(params, state) is params


def test_step_schedule_falls_at_its_epochs():
  config = settings(
    schedule='step', step_epochs=2, step_factor=0.1, learning_rate=1.0
  )
  schedule = optim.make_schedule(config, 5, 6)
  rates = [float(schedule(n)) for n in (0, 9, 10, 19, 20)]
  np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01], rtol=1e-5)


def test_step_schedule_falls_at_the_epochs_named():
  config = settings(schedule='step', step_at=(2, 3), learning_rate=1.0)
  schedule = optim.make_schedule(config, 5, 99)
  rates = [float(schedule(n)) for n in (0, 9, 10, 14, 15, 400)]
  np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_cosine_schedule_ends_at_zero_and_warm_up_is_linear():
  config = settings(schedule='cosine', learning_rate=1.0)
  schedule = optim.make_schedule(config, 5, 4)
  np.testing.assert_allclose(
    [float(schedule(n)) for n in (0, 10, 20)], [1, 0.5, 0], atol=1e-6
  )
  warm = optim.make_schedule(settings(warmup_epochs=2, learning_rate=1.0), 5, 9)
  np.testing.assert_allclose(
    [float(warm(n)) for n in (0, 4, 9, 30)], [0.1, 0.5, 1, 1], rtol=1e-6
  )


def test_a_cooldown_falls_to_zero_over_the_last_epochs():
  config = settings(cooldown_epochs=2, warmup_epochs=1, learning_rate=1.0)
  schedule = optim.make_schedule(config, 5, 6)
  np.testing.assert_allclose(
    [float(schedule(n)) for n in (0, 4, 20, 21, 25, 29, 30, 31)],
    [0.2, 1, 1, 0.9, 0.5, 0.1, 0, 0],
    rtol=1e-6,
  )


def test_schedules_count_updates_not_batches():
  config = settings(
    schedule='step',
    step_epochs=2,
    step_factor=0.1,
    learning_rate=1.0,
    accumulate=5,
  )
  schedule = optim.make_schedule(config, 5, 6)
  assert float(schedule(1)) == 1
  assert float(schedule(2)) == pytest.approx(0.1)


def test_steps_of_a_schedule_on_one_update_are_all_taken():
  config = settings(
    schedule='step', step_at=(5, 6, 7), learning_rate=1.0, accumulate=8
  )
  schedule = optim.make_schedule(config, 2, 9)
  # Epochs 5, 6 and 7 are the batches 10, 12 and 14 of 8 to an update.
  rates = [float(schedule(n)) for n in (0, 1, 2)]
  np.testing.assert_allclose(rates, [1, 1e-3, 1e-3], rtol=1e-5)


@pytest.mark.parametrize('field', ['warmup_epochs', 'cooldown_epochs'])
def test_a_ramp_without_an_update_is_refused(field):
  config = settings(accumulate=4, **{field: 1})
  with pytest.raises(errors.InputError, match=f'optim.{field} is 1, but with'):
    optim.make_schedule(config, 2, 9)
  optim.make_schedule(config, 4, 9)
