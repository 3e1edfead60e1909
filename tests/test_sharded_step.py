"""The step compiled ahead of time, here for CPU devices: what a row says."""

import types

import conftest
import jax
import pytest

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.benchmarking.aot import sharded_step
from skipnet_jax.benchmarking.aot import slices
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.models import layer_table
from skipnet_jax.step import flat

# 1e12 FLOPs, 1e10 bytes of memory and 1e9 bytes of links a second.
PEAK = peaks.Peak(1, None, 10, 16, 1, 'made up')


@pytest.fixture
def known(monkeypatch):
  monkeypatch.setitem(peaks.PEAKS, 'cpu', PEAK)


@pytest.fixture(scope='module')
def compiled(smoke):
  """A row for four CPU devices, and the layers of its network."""
  config = smoke({'model.dropout': 0.0})
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(peaks.PEAKS, 'cpu', PEAK)
    step = sharded_step.Step(config, (32, 32), jax.devices()[:4])
    row = step.compile(2)
  model = models.build_model(config.model)
  return row, layer_table.layer_table(model, (1, 32, 32, 1))


def test_the_model_flops_are_those_of_one_device(compiled):
  row, table = compiled
  assert (row['batch'], row['batch_per_device']) == (8, 2)
  assert row['model_flops'] == 2 * flops.training(table)


def test_xla_counts_about_as_many_flops_for_a_device(compiled):
  row, _ = compiled
  # More, for the rest of the step; less, for the edges of the images.
  assert 0.7 < row['hlo_flops'] / row['model_flops'] < 3


def test_gradients_and_batch_statistics_are_summed_over_the_devices(compiled):
  row, table = compiled
  assert set(row['collectives']) == {'all-reduce'}
  summed = row['collectives']['all-reduce']['bytes']
  gradients = 4 * sum(layer.parameters for layer in table)
  # Of BatchNorm, scale and bias: sums forward and backward are as many each.
  normed = 4 * sum(r.parameters for r in table if not r.flops)
  assert gradients + normed <= summed <= gradients + 3 * normed + 200


def test_a_device_holds_the_state_and_its_part_of_the_batch(compiled):
  row, table = compiled
  parameters = 4 * sum(layer.parameters for layer in table)
  images = 3 * 4 * 2 * 32 * 32
  statistics = 4 * sum(r.parameters for r in table if not r.flops)
  # Each kernel is filled up to whole rows; a convolution has a bias beside it.
  kernels = [r.parameters - r.shape[-1] for r in table if r.flops]
  gaps = 4 * sum(-size % flat.ROW for size in kernels)
  # Parameters and RMSProp's mean squares, running statistics, counters.
  state = 2 * (parameters + gaps) + statistics
  assert 0 <= row['memory']['arguments'] - state - images < 4096
  # The new state takes the old one's place.
  assert row['memory']['aliased'] >= state


def test_the_floors_are_those_of_what_was_counted(compiled):
  row, _ = compiled
  floors = row['floors']
  assert floors['compute_s'] == pytest.approx(row['hlo_flops'] / 1e12)
  counted = row['kernels']['hbm_bytes']
  assert floors['memory_s'] == pytest.approx(counted / 1e10)
  # Our count is of kernels, XLA's of instructions, calls among them.
  assert counted == pytest.approx(row['hlo_bytes'], rel=0.1)
  sent = 1.5 * row['collectives']['all-reduce']['bytes']
  assert floors['collective_s'] == pytest.approx(sent / 1e9)
  ideal = row['model_flops'] / 1e12
  assert row['mfu_limit'] == pytest.approx(ideal / floors['step_s'])


def test_a_batch_that_does_not_fit_says_so(smoke, known, monkeypatch):
  def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Ran out of memory (20.00G) of (15.75G). '
      'HLO module: jit_step.\nSee elsewhere.'
    )

  step = sharded_step.Step(smoke(), (64, 64), jax.devices()[:2])
  monkeypatch.setattr(sharded_step.measure, 'compile_phases', exhausted)
  row = step.compile(3)
  assert row['error'] == (
    'RESOURCE_EXHAUSTED: Ran out of memory (20.00G) of (15.75G)'
  )
  assert row['batch'] == 6
  assert row['floors'] is row['memory'] is row['compile'] is None


def test_any_other_failure_of_the_compiler_is_not_hidden(
  smoke, known, monkeypatch
):
  def broken(*_, **__):
    raise jax.errors.JaxRuntimeError('INTERNAL: broken')

  step = sharded_step.Step(smoke(), (64, 64), jax.devices()[:2])
  monkeypatch.setattr(sharded_step.measure, 'compile_phases', broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    step.compile(1)


@pytest.mark.parametrize(
  ('changes', 'window', 'said'),
  [
    ({'model.scan': True}, (64, 64), 'model.scan=False'),
    ({}, (64, 40), 'multiples of 32'),
    ({'model.dtype': 'float16'}, (64, 64), 'float32 or bfloat16'),
  ],
)
def test_a_network_that_cannot_be_judged_is_refused(
  smoke, known, changes, window, said
):
  with pytest.raises(errors.InputError, match=said):
    sharded_step.Step(smoke(changes), window, jax.devices()[:2])


@pytest.mark.parametrize(
  ('name', 'changes', 'channels', 'weighted'),
  [
    ('fcn_lstm', {}, 3, False),
    ('long_short', {'model.slices': 3}, 3, False),
    ('unet', {'data.border_weight': 10.0}, 1, True),
    ('addn', {}, 1, False),
  ],
)
def test_the_batch_is_that_of_the_run(known, name, changes, channels, weighted):
  config = conftest.experiment(name).get_config('smoke')
  config.update_from_flattened_dict(changes)
  step = sharded_step.Step(config, (64, 64), jax.devices()[:2])
  # Adam and optax's schedules mix dtypes.
  with jax.numpy_dtype_promotion('standard'):
    lowered = step.call.lower(step._state, step._batch(4))
  ((_, batch), _) = lowered.in_avals
  assert batch['image'].shape == (4, 64, 64, channels)
  assert batch['label'].shape == batch['mask'].shape == (4, 64, 64, 1)
  assert ('weight' in batch) == weighted
  assert step.describe()['parameters'] == sum(
    x.size for x in jax.tree.leaves(step._state.params.tree())
  )


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ('name', 'changes'),
  [('fcn_lstm', {}), ('long_short', {'model.slices': 3})],
)
def test_a_network_of_several_slices_is_compiled_for_a_tpu(name, changes):
  devices = slices.devices('v5e:2x2')
  config = conftest.experiment(name).get_config('smoke')
  config.update_from_flattened_dict(changes)
  with jax.numpy_dtype_promotion('standard'):
    row = sharded_step.Step(config, (64, 64), devices).compile(1)
  assert row['error'] is None
  # XLA counts the rest of the step too, paddings, and products with zero.
  assert 0.7 < row['hlo_flops'] / row['model_flops'] < 5


@pytest.mark.gpu_compiler
def test_a_small_network_is_compiled_for_gpus_of_two_hosts(smoke):
  devices = slices.devices('h100:2x2')
  assert [d.process_index for d in devices] == [0, 0, 1, 1]
  config = smoke({'model.dropout': 0.0, 'optim.name': 'sgd'})
  row = sharded_step.Step(config, (32, 32), devices).compile(1)
  assert row['error'] is None
  assert row['collectives']['all-reduce']['count'] > 0
  found = row['kernels']
  assert found['tasks']['convolutions']['kernels'] > 20
  assert found['kernels'] == found['small'] > 200
  assert row['min_bytes'] < found['bytes'] < 100 * row['min_bytes']
  assert row['floors']['launch_s'] == pytest.approx(2e-6 * found['kernels'])
  assert 0 < row['memory']['peak'] < 2**30
  # What lies between the hosts is not known.
  assert row['floors']['collective_s'] is None


def test_a_batch_that_no_gpu_holds_does_not_fit(smoke, known, monkeypatch):
  step = sharded_step.Step(smoke(), (64, 64), jax.devices()[:2])
  step.gpu = True
  memory = types.SimpleNamespace(
    **{f'{part}_size_in_bytes': 0 for part in ('argument', 'output', 'temp')},
    alias_size_in_bytes=0,
    generated_code_size_in_bytes=0,
    peak_memory_in_bytes=15.75 * 2**30,
  )
  compiled = types.SimpleNamespace(memory_analysis=lambda: memory)
  monkeypatch.setattr(
    sharded_step.measure, 'compile_phases', lambda *_, **__: (compiled, {})
  )
  row = step.compile(3)
  assert row['error'] == 'It needs 15.75 GiB of 16 GiB'
  assert row['floors'] is row['kernels'] is None


@pytest.mark.tpu_compiler
def test_a_small_network_is_compiled_for_a_tpu(smoke):
  devices = slices.devices('v5e:2x2')
  row = sharded_step.Step(smoke(), (64, 64), devices).compile(1)
  assert row['error'] is None
  assert row['collectives']['all-reduce']['count'] > 0
  assert 0 < row['memory']['peak'] < 2**30
  assert row['floors']['bound'] == 'memory'
