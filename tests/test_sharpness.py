"""The largest eigenvalue against dense Hessians and a known quadratic."""

import conftest
import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skipnet_jax.analysis import measure
from skipnet_jax.analysis import sharpness
from skipnet_jax.analysis.page import comparison
from skipnet_jax.data import sources
from skipnet_jax.runs import recorded
from skipnet_jax.runs import trained


def test_a_quadratic_has_its_curvature():
  curvature = jnp.asarray([0.5, 3.0, -7.0, 2.0, 0.0], jnp.float32)

  def quadratic(params):
    x = jnp.concatenate([params['a'], params['b']])
    return 0.5 * jnp.sum(curvature * x**2)

  params = {'a': jnp.arange(2.0), 'b': jnp.ones(3)}
  found = sharpness.Hessian(quadratic).largest(params)
  # The largest, not the one of largest size.
  assert found.value == pytest.approx(3, rel=1e-5)
  assert found.error < 1e-4
  scale = jnp.asarray([1.0, 1.0, 1.0, 2.0, 1.0])
  scaled = sharpness.Hessian(quadratic).largest(params, scale)
  assert scaled.value == pytest.approx(8, rel=1e-5)


@pytest.fixture
def in_float64():
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture(scope='module')
def dense():
  """A network's loss, its parameters and its Hessian, in float64."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    rng = np.random.default_rng(0)
    shapes = {'a': (3, 5), 'b': (5, 4), 'c': (4, 1)}
    params = {
      name: {'kernel': jnp.asarray(rng.normal(size=shape))}
      for name, shape in shapes.items()
    }
    x, y = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.random((6, 1)))

    def value(params):
      hidden = x
      for name in shapes:
        hidden = jnp.tanh(hidden @ params[name]['kernel'])
      return jnp.mean((hidden - y) ** 2)

    objective = sharpness.training_objective(value, 1e-2)
    flat, unravel = flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda x: objective(unravel(x)))(flat)
    return objective, params, np.asarray(hessian)


def test_the_eigenvalue_is_that_of_the_dense_hessian(dense, in_float64):
  objective, params, hessian = dense
  found = sharpness.Hessian(objective).largest(params, products=60)
  expected = np.linalg.eigvalsh(hessian)[-1]
  assert found.value == pytest.approx(expected, rel=1e-6)
  assert abs(found.value - expected) <= found.error + 1e-9


def test_few_products_give_a_bound_from_below(dense, in_float64):
  objective, params, hessian = dense
  expected = np.linalg.eigvalsh(hessian)
  found = sharpness.Hessian(objective).largest(params, products=6)
  assert found.value <= expected[-1] + 1e-9
  assert np.abs(expected - found.value).min() <= found.error + 1e-9


def test_rmsprop_divides_by_its_running_average(dense, in_float64):
  objective, params, hessian = dense
  optimizer = optax.rmsprop(1e-3, 0.9, 1e-8, eps_in_sqrt=False)
  state = optimizer.init(params)
  assert sharpness.rmsprop_scale(state[0].nu, 1e-8) is None
  gradient = jax.grad(objective)(params)
  _, state = optimizer.update(gradient, state, params)
  scale = sharpness.rmsprop_scale(state[0].nu, 1e-3)
  found = sharpness.Hessian(objective).largest(params, scale, products=80)
  g = np.asarray(flatten_util.ravel_pytree(gradient)[0])
  root = 1 / np.sqrt(np.sqrt(0.1 * g**2) + 1e-3)
  expected = np.linalg.eigvalsh(root[:, None] * hessian * root)[-1]
  assert found.value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('rate', [1e-4, 0.1, 3.0, 700.0])
def test_the_critical_step_of_a_quadratic(rate):
  curvature, x = np.array([0.5, 3.0, 20.0]), np.array([4.0, -1.0, 0.3])
  gradient = curvature * x

  def loss(factor):
    return 0.5 * np.sum(curvature * (x - factor * rate * gradient) ** 2)

  found = 2 / (rate * sharpness.critical_factor(loss))
  along = gradient @ (curvature * gradient) / (gradient @ gradient)
  assert found == pytest.approx(along, rel=0.05)


def test_a_step_that_never_raises_the_loss_has_no_critical_length():
  assert sharpness.critical_factor(lambda factor: -factor) is None
  assert sharpness.critical_factor(lambda factor: factor) is None
  # A loss that is not finite counts as raised.
  cliff = sharpness.critical_factor(lambda f: np.nan if f > 3 else -f)
  assert cliff == pytest.approx(3, rel=0.05)


class NoHessian:
  """Says with which scale it was asked."""

  def __init__(self, objective):
    del objective

  def largest(self, params, scale=None, *, products):
    del params, products
    return scale is not None


@pytest.mark.parametrize(
  ('name', 'scaled'), [('long_short', True), ('addn', None)]
)
def test_the_running_average_of_a_single_optimizer(monkeypatch, name, scaled):
  monkeypatch.setattr(measure.sharpness_lib, 'Hessian', NoHessian)
  monkeypatch.setattr(
    measure.sharpness_lib, 'rmsprop_scale', lambda average, eps: average
  )
  config = conftest.experiment(name).get_config('smoke')
  config.optim.name = 'rmsprop'
  training = trained.build(config)
  states = {'initial': training.create_state(0)}
  found = measure.sharpness(config, training, states, None)
  assert found['initial'].plain is False
  assert found['initial'].preconditioned is scaled
  assert found['initial'].limit == 2 / config.optim.learning_rate


def test_the_limit_follows_the_runs_schedule(finished, monkeypatch):
  path, _, _ = finished
  run = recorded.open_run(path)
  run.config.optim.cooldown_epochs = run.config.train.epochs
  seen = []
  monkeypatch.setattr(
    comparison.measure, 'sharpness', lambda *args: seen.append(args)
  )
  monkeypatch.setattr(comparison.trained, 'open_states', lambda _: (None, None))
  data = sources.load(run.config)
  comparison._sharpness(run, data, measure.initial_variables(run.config))
  (_, training, _, _), last = seen[0], run.records[-1]['step']
  rates = [float(training.schedule(n)) for n in (0, last // 2, last)]
  whole = run.config.optim.learning_rate
  np.testing.assert_allclose(rates, [whole, whole / 2, 0], rtol=1e-6)
