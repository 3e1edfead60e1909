"""The three ways to run a step give the same parameters.

Plain SGD throughout: an adaptive optimizer would hide a wrong scale of the
gradient.
"""

import contextlib
import functools

import jax
import numpy as np
import optax
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.training import calls
from skipnet_jax.training import losses
from skipnet_jax.training import optim
from skipnet_jax.training import parallel as parallel_lib
from skipnet_jax.training import state as state_lib
from skipnet_jax.training import step as step_lib

STEPS = 5
# Measured: up to 1.3e-7 of the parameters and 1e-5 of their change.
OF_PARAMETERS, OF_CHANGE = 1e-6, 1e-4


def _config(**changes):
  config = config_lib.get_default()
  config.model = models.model_config(
    'fc_resnet',
    base_width=2,
    blocks='simple',
    repetitions=(1, 1, 1, 2, 1, 1, 1),
    dropout=0.1,
  )
  config.data.update(source='synthetic', slices=10, size=64, valid='8-9')
  config.train.update(auxiliary=(1.0, 0.5), auxiliary_at=(1,))
  config.optim.update(name='sgd', learning_rate=0.1, momentum=0.9)
  config.train.batch_size = 8
  config.update_from_flattened_dict(changes)
  return config


@contextlib.contextmanager
def compilations():
  """Lists their durations in seconds; one read from a cache is in it too."""
  found = []

  def listen(event, duration, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      found.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


class Setting:
  """A network, its data and its loss, to be run in any mode."""

  def __init__(self, config, begin=lambda params: params):
    self.config, self.begin, self._state = config, begin, None
    self.data = sources.load(config)
    self.loss = losses.LOSSES[config.train.loss]

  def make(self, mode, devices):
    config = self.config
    config.parallel.update(mode=mode, devices=devices)
    parallel = parallel_lib.make_parallel(config.parallel)
    pipeline = pipeline_lib.make_pipeline(config, self.data, devices)
    schedule = optim.make_schedule(config.optim, 1, STEPS)
    optimizer = optim.make_optimizer(config.optim, schedule)
    model = models.build_model(config.model, parallel.axis_name)
    step = step_lib.make_train_step(
      model,
      optimizer,
      self.loss,
      l2=config.optim.l2,
      # What is recorded of each layer is compared like all other metrics.
      record=gradient_flow.conv_names(
        models.build_model(config.model),
        models.input_shape(model, pipeline.window),
      ),
      axis_name=parallel.axis_name,
      # From the second step on, another weight of auxiliary outputs.
      terms=losses.make_terms(config.train, 1),
    )
    call = calls.make_train_call(step, pipeline, parallel, 1)
    return parallel, pipeline, call, self.state(model, optimizer), model

  def state(self, model, optimizer):
    """Before the first step: of every mode, so made once."""
    if self._state is None:
      state = state_lib.create_state(model, optimizer, self.config.seed)
      state = state.replace(params=self.begin(state.params), key=None)
      self._state = jax.tree.map(np.asarray, state)
    return self._state.replace(key=jax.random.key(self.config.seed))

  @functools.cache  # noqa: B019
  def train(self, mode, devices):
    """Parameters and all metrics after some steps, and the first parameters."""
    parallel, _, call, state, _ = self.make(mode, devices)
    begin = state.params
    state = parallel.replicate(state)
    data = parallel.replicate(pipeline_lib.host_arrays(self.data))
    history = []
    for _ in range(STEPS):
      with compilations() as compiled:
        state, metrics = call(state, data)
      history.append(parallel_lib.to_host(parallel.unreplicate(metrics)))
      assert len(compiled) == (len(history) == 1)
    state = state.replace(key=None)
    state = parallel_lib.to_host(parallel.unreplicate(state))
    return state, history, begin


@pytest.fixture(scope='module')
def bce():
  return Setting(_config())


@pytest.fixture(scope='module')
def dice():
  return Setting(_config(**{'train.loss': 'dice'}))


def _distance(a, b):
  return float(optax.tree.norm(jax.tree.map(np.subtract, a, b)))


def _compare(setting, mode, devices):
  one, history, begin = setting.train('jit', 1)
  many, other, _ = setting.train(mode, devices)
  distance = _distance(one.params, many.params)
  assert distance <= OF_PARAMETERS * float(optax.tree.norm(one.params))
  assert distance <= OF_CHANGE * _distance(one.params, begin)
  stats = _distance(one.batch_stats, many.batch_stats)
  assert stats <= 1e-5 * float(optax.tree.norm(one.batch_stats))
  assert int(many.step) == STEPS
  for mine, theirs in zip(history, other, strict=True):
    for name, value in mine.items():
      # Single layers' small gradients differ more by rounding: up to 1.1e-4.
      rtol = 1e-3 if name == 'flow' else 1e-4
      np.testing.assert_allclose(value, theirs[name], rtol, err_msg=name)


@pytest.mark.parametrize('devices', [2, 8])
@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
def test_modes_give_the_parameters_of_one_device(bce, mode, devices):
  _compare(bce, mode, devices)


@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
def test_modes_agree_with_a_loss_that_is_no_mean(dice, mode):
  # Dice couples all pixels of the batch: a mean of the devices' losses fails.
  _compare(dice, mode, 4)


def test_the_comparison_sees_a_change(bce):
  one, history, begin = bce.train('jit', 1)
  tolerance = OF_PARAMETERS * float(optax.tree.norm(one.params))
  assert _distance(one.params, begin) > 1000 * tolerance
  assert len({float(m['loss']) for m in history}) == STEPS
  assert all((m['flow'] > 0).all() for m in history)


@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
def test_each_device_holds_its_part_and_all_the_same_result(bce, mode):
  parallel, *_ = bce.make(mode, 4)
  batch = np.arange(8.0, dtype=np.float32)[:, None]
  total = parallel.compile(lambda x: x.sum() if mode == 'pmap' else x)
  parts = total(parallel.place_batch(batch))
  if mode == 'pmap':
    assert parts.tolist() == [1, 5, 9, 13]
  else:
    assert len(parts.sharding.device_set) == 4
    assert parallel.place_batch(batch).sharding.shard_shape((8, 1)) == (2, 1)
  whole = parallel.unreplicate(parallel.replicate({'x': batch}))['x']
  np.testing.assert_array_equal(parallel_lib.to_host(whole), batch)


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'sharded'])
def test_evaluation_sums_are_those_of_one_device(bce, mode):
  devices = 1 if mode == 'jit' else 2
  parallel, pipeline, _, state, model = bce.make(mode, devices)
  step = step_lib.make_eval_step(
    model, bce.loss, l2=1e-4, axis_name=parallel.axis_name
  )
  call = calls.make_eval_call(step, pipeline, parallel)
  arrays = pipeline_lib.host_arrays(bce.data)
  (plan,) = pipeline.eval_plans(2)
  raw = pipeline.read_host(arrays, plan)
  metrics = call(
    parallel.replicate(state), *parallel.place_batch((raw, plan['seen']))
  )
  got = parallel_lib.to_host(parallel.unreplicate(metrics))
  assert got['pixels'] == 2 * 64 * 64
  assert got['batches'] == 1
  # The plain way: the model on both slices, sums in numpy.
  image = bce.data.image[8:10].astype(np.float32)
  image -= image.mean((1, 2), keepdims=True)
  image /= image.std((1, 2), keepdims=True)
  logits = jax.jit(
    lambda v, x: models.build_model(bce.config.model).apply(v, x, train=False)
  )(
    {'params': state.params, 'batch_stats': state.batch_stats},
    image[..., None],
  )['logits']
  z = np.asarray(logits[..., 0], np.float64)
  label = bce.data.label[8:10]
  bce_sum = np.sum(np.logaddexp(0, z) - z * label)
  np.testing.assert_allclose(got['bce'], bce_sum, rtol=1e-4)
  np.testing.assert_allclose(got['correct'], np.sum((z > 0) == label), atol=2)


def test_more_devices_than_there_are_is_refused():
  config = _config(**{'parallel.mode': 'sharded', 'parallel.devices': 64})
  with pytest.raises(errors.InputError, match='give at most 8'):
    parallel_lib.make_parallel(config.parallel)


def test_jit_on_several_devices_is_refused():
  config = _config(**{'parallel.devices': 2})
  with pytest.raises(errors.InputError, match='pmap or sharded'):
    parallel_lib.make_parallel(config.parallel)
