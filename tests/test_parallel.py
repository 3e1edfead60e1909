"""The three ways to run a step give the same parameters.

Plain SGD throughout: an adaptive optimizer would hide a wrong scale of the
gradient.
"""

import contextlib
import functools

import jax
import numpy as np
import pytest
import small_networks

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.step import build
from skipnet_jax.step import calls
from skipnet_jax.step import flat
from skipnet_jax.step import parallel as parallel_lib

STEPS = 5
# Measured: up to 1.3e-7 of the parameters and 1e-5 of their change.
OF_PARAMETERS, OF_CHANGE = 1e-6, 1e-4


def _config(**changes):
  config = config_lib.get_default()
  config.model = models.model_config(
    'fc_resnet', **small_networks.SMALL | {'dropout': 0.1}
  )
  # A batch of 8 spans up to three permutations of the five training slices.
  config.data.update(source='synthetic', slices=8, size=64, valid='5-7')
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

  def make(self, mode, devices):
    config = self.config
    config.parallel.update(mode=mode, devices=devices)
    parallel = parallel_lib.make_parallel(config.parallel)
    pipeline = pipeline_lib.make_pipeline(config, self.data, devices)
    # What is recorded of each layer is compared like all other metrics. From
    # the second step on, auxiliary outputs have another weight.
    training = build.build(config, pipeline.window, 1, parallel.axis_name)
    call = calls.make_train_call(training.train_step, pipeline, parallel, 1)
    return parallel, pipeline, call, self.state(training), training

  def state(self, training):
    """Before the first step: of every mode, so made once."""
    if self._state is None:
      state = training.create_state(self.config.seed).replace(key=None)
      state = jax.tree.map(np.asarray, state)
      params = self.begin(state.params.tree())
      self._state = state.replace(params=flat.join(params))
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
      # None later; none at all where another test ran the same step.
      assert len(compiled) <= (len(history) == 1)
    state = state.replace(key=None)
    state = parallel_lib.to_host(parallel.unreplicate(state))
    return state, history, begin


@pytest.fixture(scope='module')
def bce():
  return Setting(_config())


@pytest.fixture(scope='module')
def dice():
  config = _config(**{'train.loss': 'dice', 'data.size': 32})
  config.data.augment.update(rotation=0.0, shear=0.0, warp=0.0)
  # What is asked is of the loss, not of the network.
  config.model = models.model_config('cumedvision', base_width=2)
  return Setting(config)


def _norm(tree):
  squares = [np.sum(np.square(x), dtype=float) for x in jax.tree.leaves(tree)]
  return np.sqrt(sum(squares))


def _distance(a, b):
  return _norm(jax.tree.map(np.subtract, a, b))


def _compare(setting, mode, devices):
  one, history, begin = setting.train('jit', 1)
  many, other, _ = setting.train(mode, devices)
  distance = _distance(one.params, many.params)
  assert distance <= OF_PARAMETERS * _norm(one.params)
  assert distance <= OF_CHANGE * _distance(one.params, begin)
  stats = _distance(one.batch_stats, many.batch_stats)
  assert stats <= 1e-5 * _norm(one.batch_stats)
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
  tolerance = OF_PARAMETERS * _norm(one.params)
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


@functools.partial(jax.jit, static_argnums=0)
def _plain(model, variables, image):
  return model.apply(variables, image, train=False)


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'sharded'])
def test_evaluation_sums_are_those_of_one_device(bce, mode):
  devices = 1 if mode == 'jit' else 2
  # Of three slices: the fourth example of the batch must not count.
  parallel, pipeline, _, state, training = bce.make(mode, devices)
  call = calls.make_eval_call(training.eval_step, pipeline, parallel)
  arrays = pipeline_lib.host_arrays(bce.data)
  (plan,) = pipeline.eval_plans(4)
  raw = pipeline.read_host(arrays, plan)
  metrics = call(
    parallel.replicate(state), *parallel.place_batch((raw, plan['seen']))
  )
  got = parallel_lib.to_host(parallel.unreplicate(metrics))
  assert got['pixels'] == 3 * 64 * 64
  assert got['batches'] == 1
  # The plain way: the model on the three slices, sums in numpy.
  image = bce.data.image[5:8].astype(np.float32)
  image -= image.mean((1, 2), keepdims=True)
  image /= image.std((1, 2), keepdims=True)
  logits = _plain(
    models.build_model(bce.config.model),
    state.variables(),
    image[..., None],
  )['logits']
  z = np.asarray(logits[..., 0], np.float64)
  label = bce.data.label[5:8]
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
