"""One step: whatever times, races or compiles it ahead has the run's own."""

import ast

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
import systems

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import depth
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.aot import aot
from skipnet_jax.benchmarking.aot import sharded_step
from skipnet_jax.benchmarking.peer import race
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.step import build
from skipnet_jax.step import calls
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.training import loop
from skipnet_jax.training import prepare

# Experiments of one network, one of each system.
SYSTEMS = tuple(systems.EXPERIMENTS.values())
PRESETS = [
  (name, preset)
  for name in SYSTEMS
  for preset in conftest.experiment(name).PRESETS
]
BATCH = 4


def small(name, preset='smoke'):
  """A preset with the smoke preset's network and data."""
  module = conftest.experiment(name)
  config = module.get_config(preset)
  smoke = module.PRESETS['smoke']
  sizes = {k: v for k, v in smoke.items() if k.startswith('model.')}
  config.update_from_flattened_dict(config_lib.SMOKE | sizes)
  # Schedules are the preset's, not those of two epochs.
  config.train.epochs = module.get_config(preset).train.epochs
  config.log.update(progress=False, tensorboard=False)
  return config


def begin(config, folder):
  """What a run is made of, and its first state: all that is compiled."""
  with loop.open_run(config, folder) as run:
    return run.prepared, run.state


@pytest.fixture
def nothing_drawn(monkeypatch):
  """First states of zeros: compiling their random numbers takes longest."""

  def zeros(self, seed):
    del seed
    return jax.tree.map(
      lambda x: (
        jax.random.key(0)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else jnp.zeros(x.shape, x.dtype)
      ),
      self.abstract_state,
    )

  monkeypatch.setattr(build.Training, 'create_state', zeros)


def test_the_list_is_complete():
  found = {conftest.experiment(n).get_config().model.name for n in SYSTEMS}
  assert found == set(models.MODELS)


@pytest.mark.parametrize(('name', 'preset'), PRESETS)
def test_the_step_is_the_run_s(
  name, preset, nothing_drawn, monkeypatch, tmp_path
):
  config = small(name, preset)
  run, state = begin(config, tmp_path / 'run')
  step, window = run.training.train_step, run.pipeline.window
  on_devices = calls.make_step_call(step, run.parallel)
  fed = calls.make_train_call(step, run.pipeline, run.parallel, 1)

  # What the benchmark times, fed in each of its ways.
  monkeypatch.setattr(workload.Bench, '_batch', lambda self, size: blank(size))

  def blank(size):
    shapes = pipeline_lib.batch_shapes(config, window, size)
    return {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}

  bench = workload.Bench(config)
  dtype = config.model.dtype
  for feed, call in (
    ('compute', on_devices),
    ('augment', fed),
    ('end_to_end', fed),
  ):
    cell = plan.Cell('train', feed, 'jit', 1, dtype, BATCH)
    assert bench.build(cell).jitted is call
  described = bench.describe()

  # What is compiled ahead of time.
  peak = peaks.Peak(1, None, 10, 16, 1, 'made up')
  monkeypatch.setitem(peaks.PEAKS, 'cpu', peak)
  ahead = sharded_step.Step(
    config, window, jax.devices()[:2], aot._steps_per_epoch(config)
  )
  config.parallel.update(mode='sharded', devices=2)
  sharded = parallel_lib.make_parallel(config.parallel)
  assert ahead.call is calls.make_step_call(step, sharded)

  # One number of parameters.
  trained = sum(x.size for x in jax.tree.leaves(state.params.tree()))
  assert trained == described['parameters'] == run.training.parameters
  assert ahead.describe()['parameters'] == trained
  assert f'{trained:,}' in prepare.describe(small(name, preset))


@pytest.mark.parametrize('name', SYSTEMS)
def test_its_own_loss_and_optimizer_make_a_step(name):
  config = small(name)
  training = build.build(config, (64, 64), 2)
  shapes = pipeline_lib.batch_shapes(config, (64, 64), BATCH)
  batch = {k: jnp.zeros(shape) for k, shape in shapes.items()}
  # Adam mixes dtypes inside.
  with jax.numpy_dtype_promotion('standard'):
    new, metrics = jax.eval_shape(
      training.train_step, training.abstract_state, batch
    )
  like = jax.tree.map(lambda x: (x.shape, x.dtype), training.abstract_state)
  assert like == jax.tree.map(lambda x: (x.shape, x.dtype), new)
  assert metrics['flow'].shape == (4, len(training.kernels))
  assert {k for k in metrics if k.startswith('part/')} == {
    'addn': {f'part/judged_{k}' for k in ('real', 'fake', 'fooled')},
    'm2fcn': {'part/auxiliary'},
    'cumedvision': {'part/auxiliary'},
  }.get(name, set())


def test_the_race_ends_in_the_state_that_training_ends_in(tmp_path):
  # A network that is compiled in a second, with auxiliary outputs. That the
  # race's step is also PyTorch's, ADDN's judge included: test_torch_training.
  config = small('cumedvision')
  with conftest.numpy_draws():
    run, state = begin(config, tmp_path / 'run')
  plan = jax.jit(run.pipeline.plan)(state.key, state.step)
  raw = run.pipeline.read_host(run.arrays, plan)
  batch = jax.jit(run.pipeline.train_batch)(raw, plan['key'])
  raced = race._training(config, run.pipeline.window)
  train = calls.make_train_call(
    run.training.train_step, run.pipeline, run.parallel, 1
  )
  # Adam mixes dtypes inside.
  with jax.numpy_dtype_promotion('standard'):
    other, measured = jax.jit(raced.train_step)(state, batch)
    new, metrics = train(state, run.arrays)
  assert 'flow' not in measured
  for name, value in measured.items():
    np.testing.assert_allclose(value, metrics[name], rtol=1e-5, err_msg=name)
  assert 'part/auxiliary' in measured
  assert int(new.step) == int(other.step) == 1
  for a, b in zip(
    jax.tree.leaves((new.params, new.batch_stats)),
    jax.tree.leaves((other.params, other.batch_stats)),
    strict=True,
  ):
    # Adam's first step is the sign of a gradient, be it rounding; hence few.
    apart = np.abs(np.asarray(a) - np.asarray(b)) > 1e-5
    assert apart.mean() <= 0.02


def test_the_sweep_over_depth_trains_by_it(monkeypatch, tmp_path):
  config = conftest.experiment('depth_sweep').get_config('smoke')
  config.depths.update(repetitions=(1,), steps=1)
  asked = []
  real = calls.make_train_call

  def make(step, pipeline, *rest):
    asked.append((step, pipeline))
    return real(step, pipeline, *rest)

  monkeypatch.setattr(calls, 'make_train_call', make)
  for name in ('long_only', 'short_only', 'no_skips'):
    del config.variants[name]
  with conftest.numpy_draws():
    rows = depth.sweep(config, tmp_path, print)
  ((step, pipeline),) = asked
  whole = config_checks.variants(_without_depths(config))['long_short']
  whole.model.repetitions = (1,) * 7
  training = build.build(whole, pipeline.window, pipeline.steps_per_epoch)
  assert step is training.train_step
  assert rows[0]['parameters'] == training.parameters


def _without_depths(config):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    del config.depths
  return config


def test_nothing_else_puts_a_step_together():
  made = {'make_train_step', 'make_eval_step', 'make_optimizer', 'make_terms'}
  made |= {'make_schedule', 'create_state'}
  home = {'build.py', 'step.py', 'optim.py', 'losses.py', 'state.py'}
  for folder in ('skipnet_jax', 'tools', 'experiments'):
    for path in (conftest.ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and path.name not in home:
          name = ast.unparse(node.func)
          torch = 'torch_training' in name or 'peer' in path.parts
          own = name.startswith(('training.', 'self._training.'))
          assert name.split('.')[-1] not in made or torch or own, (
            f'{path} calls {name}'
          )


def test_equal_configs_share_one_step_and_others_do_not(smoke):
  one = build.build(smoke(), (64, 64), 2)
  assert build.build(smoke(), (64, 64), 2) is one
  # How long a run is changes nothing at a constant rate.
  assert build.build(smoke({'train.epochs': 9}), (64, 64), 2) is one
  for changes, window, steps, axis in (
    ({'train.epochs': 9, 'optim.schedule': 'cosine'}, (64, 64), 2, None),
    ({'optim.schedule': 'cosine'}, (64, 64), 2, None),
    ({'train.epochs': 9, 'optim.cooldown_epochs': 1}, (64, 64), 2, None),
    ({'optim.cooldown_epochs': 1}, (64, 64), 2, None),
    ({'optim.l2': 0.5}, (64, 64), 2, None),
    ({'train.loss': 'dice'}, (64, 64), 2, None),
    ({'train.auxiliary': (0.5,)}, (64, 64), 2, None),
    ({'model.dropout': 0.5}, (64, 64), 2, None),
    ({}, (32, 64), 2, None),
    ({}, (64, 64), 1, None),
    ({}, (64, 64), 2, 'data'),
  ):
    other = build.build(smoke(changes), window, steps, axis)
    assert other is not one
    assert other.train_step is not one.train_step


def test_kernels_of_our_own_are_for_gpus(smoke):
  config = smoke({'train.kernels': 'pallas'})
  assert build.build(config, (64, 64), 2, platform='gpu').form == 'pallas'
  for platform in ('cpu', 'tpu'):
    with pytest.raises(errors.InputError, match=f'runs on a {platform}.*xla'):
      build.build(config, (64, 64), 2, platform=platform)
  config.train.kernels = 'xla'
  for platform, form in {
    'cpu': 'plain',
    'tpu': 'tpu',
    'gpu': 'gpu',
  }.items():
    assert build.build(config, (64, 64), 2, platform=platform).form == form


def test_the_parts_are_those_of_the_config(smoke):
  config = smoke(
    {
      'train.loss': 'dice',
      'train.auxiliary': (1.0, 0.25),
      'train.auxiliary_at': (3,),
      'train.adversarial': 0.7,
      'train.epochs': 8,
      'optim.schedule': 'cosine',
      'optim.learning_rate': 0.5,
    }
  )
  found = build.build(config, (32, 64), 2)
  assert found.loss is losses.LOSSES['dice']
  assert found.terms.adversarial == 0.7
  # Three epochs of two steps.
  weights = [float(found.terms.auxiliary(jnp.int32(i))) for i in (0, 5, 6)]
  assert weights == [1, 1, 0.25]
  assert float(found.schedule(8)) == pytest.approx(0.25)
  assert float(found.schedule(16)) == pytest.approx(0, abs=1e-9)
  assert found.table[0].shape == (1, 32, 64, 4)
  state = found.create_state(3)
  like = found.abstract_state
  assert jax.tree.map(lambda x: (x.shape, x.dtype), like) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert optim.eval_params(state.params, state.opt_state) is state.params


def test_a_window_that_the_network_cannot_take_is_refused(smoke):
  with pytest.raises(errors.InputError, match='multiples of 32'):
    build.build(smoke(), (64, 40), 2)


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_batch_has_the_shapes_that_are_foretold(name, smoke, tmp_path):
  config = small(name)
  run = begin_pipeline(config)
  raw, key = jax.eval_shape(
    lambda data: (
      run.read(data, plan_ := run.plan(jax.random.key(0), 0)),
      plan_['key'],
    ),
    pipeline_lib.host_arrays(sources.load(config)),
  )
  batch = jax.eval_shape(run.train_batch, raw, key)
  shapes = pipeline_lib.batch_shapes(config, run.window, BATCH)
  assert {k: v.shape for k, v in batch.items()} == shapes
  assert ('weight' in shapes) == (name == 'unet')


def begin_pipeline(config):
  return pipeline_lib.make_pipeline(config, sources.load(config), 1)


def test_the_judge_counts_in_a_training_step_alone():
  config = small('addn')
  config.data.size = 32
  training = build.build(config, (32, 32), 1)
  assert all(r.name.startswith('generator/') for r in training.table)
  assert all(
    r.name.startswith('discriminator/') for r in training.discriminator
  )
  # Image and map, then widths 4 to 32, halved each time, and the classifier.
  sides, channels = (16, 8, 4, 2), (2, 4, 8, 16, 32)
  once = [
    2 * 9 * a * b * side**2
    for side, a, b in zip(sides, channels, channels[1:], strict=False)
  ]
  once.append(2 * 32 * 2**2)
  assert [row.flops for row in training.discriminator] == [2 * n for n in once]
  more = flops.training(
    training.table, training.discriminator
  ) - flops.training(training.table)
  # Forward three times, weights' gradients twice, inputs' three times but for
  # the image and the map of the two calls that teach the judge.
  assert more == 8 * sum(once) - 2 * once[0]
  assert training.parameters == sum(
    row.parameters for row in (*training.table, *training.discriminator)
  )
  assert build.build(small('unet'), (64, 64), 1).discriminator == ()


@pytest.mark.parametrize('name', ['long_short', 'addn'])
def test_norm_and_penalty_are_alike_with_and_without_the_record(name, drawn):
  config = small(name)
  config.optim.update(name='sgd', momentum=0.0, l2=0.01, learning_rate=1.0)
  config.optim.discriminator_learning_rate = 1.0
  batch = small_networks.make_batch()
  found = []
  for record in (False, True):
    training = build.build(config, (32, 32), 1, record=record)
    state = training.create_state(0)
    new, metrics = jax.jit(training.train_step)(state, batch)
    found.append({k: float(metrics[k]) for k in ('grad_norm', 'l2')})
    assert ('flow' in metrics) == record
  assert found[0] == pytest.approx(found[1], rel=1e-5)
  # By the update: the gradient of the loss, and of the penalty of the kernels.
  squared = penalty = 0.0
  old = jax.tree_util.tree_leaves_with_path(state.params.tree())
  found_now = jax.tree.leaves(new.params.tree())
  for (path, w), now in zip(old, found_now, strict=True):
    w, now = np.asarray(w, np.float64), np.asarray(now, np.float64)
    kernel = path[-1].key == 'kernel'
    squared += np.sum(np.square(w - now - 0.02 * kernel * w))
    penalty += 0.01 * kernel * np.sum(np.square(w))
  expected = {'grad_norm': squared**0.5, 'l2': penalty}
  assert found[1] == pytest.approx(expected, rel=1e-4)
