"""The training step: its gradient, its sums, and what it refuses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.step import flat
from skipnet_jax.step import losses
from skipnet_jax.step import metrics as metrics_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib

make_batch, make_model = small_networks.make_batch, small_networks.make_model
# What overfits is also what is asked for steps that are refused.
RMSPROP = optax.rmsprop(3e-3, 0.9, 1e-8)


@functools.cache
def rmsprop_step():
  """A network, its compiled step and the state before the first one."""
  model = make_model(base_width=4)
  step = step_lib.make_train_step(model, RMSPROP, losses.LOSSES['bce'])
  return jax.jit(step), small_networks.make_state(model, RMSPROP)


def test_a_step_overfits_one_batch():
  step, state = rmsprop_step()
  batch, curve = make_batch(), []
  for _ in range(150):
    state, metrics = step(state, batch)
    curve.append(float(metrics['loss']))
  assert curve[0] > 0.5
  assert min(curve[-10:]) < 0.2
  assert int(state.step) == 150


def test_the_step_takes_the_gradient_of_finite_differences():
  model = make_model()
  # Flax's BatchNorm mixes dtypes for any compute dtype but float32.
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    optimizer = optax.sgd(1.0)
    state = state_lib.create_state(model, optimizer, 0)
    state = state.replace(
      params=jax.tree.map(lambda x: x.astype(jnp.float64), state.params),
      batch_stats=jax.tree.map(
        lambda x: x.astype(jnp.float64), state.batch_stats
      ),
    )
    # The module computes in the dtype it is told.
    model = model.clone(dtype='float64')
    batch = make_batch(dtype=jnp.float64)
    loss = losses.LOSSES['bce']
    step = jax.jit(step_lib.make_train_step(model, optimizer, loss))
    new, _ = step(state, batch)

    @jax.jit
    def value(params):
      outputs, _ = model.apply(
        state.variables() | {'params': params},
        batch['image'],
        train=True,
        mutable=['batch_stats'],
      )
      return loss.value(loss.sums(outputs, batch))

    leaves = jax.tree_util.tree_leaves_with_path(state.params.tree())
    moved = dict(jax.tree_util.tree_leaves_with_path(new.params.tree()))
    compared = 0
    for path, leaf in leaves[:: max(1, len(leaves) // 12)]:
      change = np.asarray(leaf - moved[path])
      # The largest entry: there is something to compare.
      index = np.unravel_index(np.abs(change).argmax(), change.shape)

      def at(delta, path=path, index=index):
        params = jax.tree_util.tree_map_with_path(
          lambda p, x: x.at[index].add(delta) if p == path else x,
          state.params.tree(),
        )
        return float(value(params))

      analytic = float(change[index])
      numeric = (at(1e-4) - at(-1e-4)) / 2e-4
      # The logits are float32: 1e-8 of noise in a loss of one.
      assert analytic == pytest.approx(numeric, rel=0.02, abs=2e-4)
      compared += abs(numeric) > 0.01
    assert compared >= 3


def test_metrics_are_sums_with_counts():
  model, optimizer = make_model(), optax.sgd(0.1)
  loss = losses.LOSSES['dice']
  step = jax.jit(
    step_lib.make_train_step(model, optimizer, loss, l2=0.5, record=('down_1',))
  )
  state = small_networks.make_state(model, optimizer)
  batch = make_batch()
  batch['mask'] = batch['mask'].at[0].set(0.0)
  _, metrics = step(state, batch)
  outputs, _ = jax.jit(
    lambda variables, image: model.apply(
      variables, image, train=True, mutable=['batch_stats']
    )
  )(
    state.variables(),
    batch['image'],
  )
  expected = loss.value(loss.sums(outputs, batch))
  assert float(metrics['loss']) == pytest.approx(float(expected), rel=1e-5)
  assert float(metrics['pixels']) == 32 * 32
  assert float(metrics['steps']) == 1
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params.tree())
    if path[-1].key == 'kernel'
  ]
  squares = sum(float(np.sum(np.square(k))) for k in kernels)
  assert float(metrics['l2']) == pytest.approx(0.5 * squares, rel=1e-5)
  assert metrics['flow'].shape == (4, 1)
  divided = metrics_lib.divide({k: np.asarray(v) for k, v in metrics.items()})
  assert divided['loss_with_l2'] == pytest.approx(
    float(metrics['loss'] + metrics['l2']), rel=1e-6
  )
  assert divided['accuracy'] <= 1


@pytest.mark.parametrize('broken', ['image', 'params'])
def test_a_step_that_is_not_finite_changes_nothing(broken):
  step, state = rmsprop_step()
  batch = make_batch()
  if broken == 'image':
    batch['image'] = batch['image'].at[0, 3, 4, 0].set(jnp.nan)
  else:
    params = state.params.tree()
    kernel = params['down_1']['kernel']
    params['down_1']['kernel'] = jnp.full_like(kernel, jnp.inf)
    state = state.replace(params=flat.join(params))
  new, metrics = step(state, batch)
  assert float(metrics['nonfinite']) == 1
  assert int(new.step) == 0
  for a, b in zip(
    jax.tree.leaves((new.params, new.batch_stats, new.opt_state)),
    jax.tree.leaves((state.params, state.batch_stats, state.opt_state)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_evaluation_uses_running_statistics_and_adds_up():
  model, optimizer = make_model(dropout=0.5), optax.sgd(0.1)
  loss = losses.LOSSES['bce']
  step = jax.jit(step_lib.make_eval_step(model, loss, l2=0.1))
  state = small_networks.make_state(model, optimizer)
  batch = make_batch(count=4)
  whole = step(state, batch)
  parts = [
    step(state, jax.tree.map(lambda x, i=i: x[i : i + 2], batch))
    for i in (0, 2)
  ]
  for name in whole:
    if name in ('l2', 'batches'):
      continue
    assert float(whole[name]) == pytest.approx(
      float(parts[0][name] + parts[1][name]), rel=1e-5
    )
  added = {k: float(parts[0][k] + parts[1][k]) for k in whole}
  found = metrics_lib.divide_eval(added, loss)
  assert found['loss'] == pytest.approx(found['bce'], rel=1e-6)
  assert found['loss_with_l2'] == pytest.approx(
    found['loss'] + float(whole['l2']), rel=1e-5
  )


class Dropped(network.Network):
  """A convolution of which half is dropped."""

  @nn.compact
  def __call__(self, image, train, sample=False):
    x = layers.Conv(1)(image)
    return {'logits': layers.Dropout(0.5)(x, train)}


def test_each_step_drops_other_units():
  model, optimizer = Dropped(), optax.sgd(0.0)
  step = jax.jit(
    step_lib.make_train_step(model, optimizer, losses.LOSSES['bce'])
  )
  state, batch = small_networks.make_state(model, optimizer), make_batch()
  seen = []
  for _ in range(3):
    state, metrics = step(state, batch)
    seen.append(float(metrics['loss']))
  # Nothing learns: the losses differ by what is dropped.
  assert len(set(seen)) == 3
  again, metrics = step(state.replace(step=jnp.int32(1)), batch)
  assert float(metrics['loss']) == seen[1]
  assert int(again.step) == 2


def test_statistics_are_estimated_for_the_averaged_parameters(monkeypatch):
  model, loss = small_networks.Normalised(), losses.LOSSES['bce']
  state, averaged = small_networks.averaging_state(model)
  # Of the second epoch of five steps, the last three.
  monkeypatch.setattr(step_lib, '_ESTIMATE_BATCHES', 3)
  estimate = jax.jit(step_lib.make_estimate_step(model, 5))
  batches = [make_batch(noise=0.2 + 0.4 * i) for i in range(3)]
  new = state.replace(step=jnp.int32(7))
  for batch in batches:
    new, metrics = estimate(new, batch)
    assert not metrics
  expected = small_networks.batch_statistics(averaged.tree(), batches)
  for a, b in zip(
    jax.tree.leaves(new.averaged_stats.tree()),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, 1e-4, 1e-6)
  # Nothing else changes.
  assert int(new.step) == 10
  back = new.replace(step=state.step, averaged_stats=state.averaged_stats)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
    assert jnp.array_equal(a, b)
  # Evaluation uses them.
  evaluate = jax.jit(step_lib.make_eval_step(model, loss))
  plain = new.replace(
    opt_state=(),
    averaged_stats=flat.join({}),
    params=averaged,
    batch_stats=new.averaged_stats,
  )
  bce = float(evaluate(new, batches[0])['bce'])
  assert bce == pytest.approx(float(evaluate(plain, batches[0])['bce']))
  assert abs(bce - float(evaluate(state, batches[0])['bce'])) > 0.01 * bce


def test_bfloat16_trains_with_float32_parameters():
  model, optimizer = (
    make_model(dtype='bfloat16', base_width=4),
    optax.adam(1e-2),
  )
  batch, curve = make_batch(), []
  # Flax's BatchNorm mixes dtypes for any compute dtype but float32.
  with jax.numpy_dtype_promotion('standard'):
    step = jax.jit(
      step_lib.make_train_step(model, optimizer, losses.LOSSES['bce'])
    )
    state = small_networks.make_state(model, optimizer)
    for _ in range(40):
      state, metrics = step(state, batch)
      curve.append(float(metrics['loss']))
  assert curve[-1] < 0.6 * curve[0]
  for leaf in jax.tree.leaves((state.params, state.batch_stats)):
    assert leaf.dtype == jnp.float32
