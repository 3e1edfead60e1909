"""An epoch's last batches estimate statistics, however they reach devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
from test_resume import assert_same

from skipnet_jax import config as config_lib
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import step as step_lib
from skipnet_jax.training import epoch as epoch_lib

STEPS = 4


def count(state, batch):
  """A training step that trains nothing."""
  del batch
  zero = jnp.zeros(())
  metrics = {'loss': zero, 'steps': zero + 1, 'nonfinite': zero}
  return state.replace(step=state.step + 1), metrics


@pytest.fixture(scope='module')
def config():
  config = config_lib.get_default()
  config.data.update(source='synthetic', slices=9, size=32, crop=16, valid='8')
  config.data.augment.update(rotation=0.0, shear=0.0, warp=0.0)
  config.train.batch_size = 2
  return config


@functools.cache
def first_state():
  """After two epochs, without its key."""
  state, _ = small_networks.averaging_state(small_networks.Normalised())
  state = state.replace(step=jnp.int32(2 * STEPS), key=None)
  # Calls reuse the buffers of JAX's arrays.
  return jax.tree.map(np.asarray, state)


def make(config, mode='jit', devices=1, steps=0, share=0.25, **more):
  """An epoch, its devices and a function that makes a state for them."""
  config = config.copy_and_resolve_references()
  config.parallel.update(mode=mode, devices=devices)
  config.train.steps_per_call = steps
  config.data.device_share = share
  parallel = parallel_lib.make_parallel(config.parallel)
  data = sources.load(config)
  pipeline = pipeline_lib.make_pipeline(config, data, devices)
  assert pipeline.steps_per_epoch == STEPS
  model = small_networks.Normalised(axis_name=parallel.axis_name)
  train = epoch_lib.Epoch(
    config,
    count,
    pipeline,
    parallel,
    pipeline_lib.host_arrays(data),
    log=lambda _: None,
    advance=lambda *_: None,
    on_nonfinite=lambda _: None,
    estimate_step=step_lib.make_estimate_step(model, STEPS),
    **more,
  )

  def begin():
    key = jax.random.key(config.seed)
    return parallel.replicate(first_state().replace(key=key))

  return train, parallel, begin


def statistics(parallel, state):
  assert int(parallel_lib.to_host(parallel.unreplicate(state.step))) == 12
  return parallel_lib.to_host(parallel.unreplicate(state.averaged_stats)).tree()


@pytest.fixture(scope='module')
def expected(config):
  """The statistics of batches 10 and 11."""
  data = sources.load(config)
  pipeline = pipeline_lib.make_pipeline(config, data, 1)

  @jax.jit
  def draw(arrays, step):
    plan = pipeline.plan(jax.random.key(config.seed), step)
    return pipeline.train_batch(pipeline.read(arrays, plan), plan['key'])

  arrays = pipeline_lib.host_arrays(data)
  _, averaged = small_networks.averaging_state(small_networks.Normalised())
  return small_networks.batch_statistics(
    averaged.tree(), [draw(arrays, step) for step in (10, 11)]
  )


@pytest.mark.parametrize(
  ('mode', 'devices', 'steps', 'share'),
  [('jit', 1, 2, 0.25), ('pmap', 2, 1, 0.25), ('sharded', 2, 1, 1e-9)],
)
def test_statistics_are_those_of_the_last_batches(
  config, expected, mode, devices, steps, share, monkeypatch
):
  monkeypatch.setattr(step_lib, '_ESTIMATE_BATCHES', 2)
  train, parallel, begin = make(config, mode, devices, steps, share)
  assert train.on_device == (share == 0.25)
  assert train.steps_per_call == steps
  state, part = train(begin())
  assert part.steps == part.sums['steps'] == STEPS
  for a, b in zip(
    jax.tree.leaves(statistics(parallel, state)),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, 1e-4, 1e-6)


def test_an_epoch_that_is_stopped_estimates_when_it_resumes(config):
  answers = []
  train, parallel, begin = make(
    config, should_stop=lambda: bool(answers) and answers.pop()
  )
  want = statistics(parallel, train(begin())[0])
  for calls in (1, STEPS):
    answers += [True, *[False] * (calls - 1)]
    state, part = train(begin())
    assert part.stopped
    assert_same(state.averaged_stats, first_state().averaged_stats)
    part = epoch_lib.Part.from_json(part.to_json())
    state, _ = train(state, part)
    assert_same(statistics(parallel, state), want)
