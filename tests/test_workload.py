"""What is built for a cell computes what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import equations_of

from skipnet_jax import errors
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.timing import flops

QUICK = {
  'model.repetitions': (1,) * 7,
  'model.base_width': 2,
  'model.dropout': 0.0,
  'optim.name': 'sgd',
}
TRAIN = plan.Cell('train', 'compute', 'jit', 1, 'float32', 4)
EVAL = dataclasses.replace(TRAIN, call='eval')


@pytest.fixture(scope='module')
def bench(smoke, drawn):
  return workload.Bench(smoke(QUICK))


def start(bench, cell):
  work = bench.build(cell)
  return work, work.start(work.jitted.lower(*work.arguments).compile())


def loss(metrics):
  return float(np.ravel(metrics['loss'])[0])


def test_a_step_is_repeated_on_the_same_batch_in_each_mode(bench):
  losses = {}
  for mode, devices in (('jit', 1), ('pmap', 2), ('sharded', 2)):
    cell = dataclasses.replace(TRAIN, mode=mode, devices=devices)
    work, call = start(bench, cell)
    losses[mode] = []
    for count in (1, 2, 3):
      state, metrics = call()
      assert int(np.ravel(state.step)[0]) == count
      assert len(state.step.devices()) == devices
      # The record that train keeps is part of the step.
      assert metrics['flow'].shape[-2] == 4
      losses[mode].append(work.loss((state, metrics)))
    assert losses[mode][2] < losses[mode][0]
  for mode in ('pmap', 'sharded'):
    np.testing.assert_allclose(losses[mode], losses['jit'], rtol=1e-4)


@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
def test_the_batch_of_compute_lies_on_the_devices(bench, mode):
  cell = dataclasses.replace(TRAIN, mode=mode, devices=4)
  _, batch = bench.build(cell).arguments
  for array in batch.values():
    shards = array.addressable_shards
    assert {shard.device for shard in shards} == set(jax.devices()[:4])
    assert all(shard.data.size == array.size // 4 for shard in shards)


def test_an_epoch_is_as_many_steps_as_it_says(bench):
  augment, call = start(bench, dataclasses.replace(TRAIN, feed='augment'))
  state, first = call()
  assert int(state.step) == augment.steps == 1
  second_result = call()
  _, second = second_result
  assert augment.loss(second_result) == pytest.approx(loss(second))
  work = bench.build(dataclasses.replace(TRAIN, feed='end_to_end'))
  # Eight slices by four: two steps, one by one on a CPU.
  assert work.steps == 2
  assert work.program == augment.program
  call = work.start(work.jitted.lower(*work.arguments).compile())
  state, done = call()
  assert int(state.step) == done.sums['steps'] == 2
  # The mean of its steps.
  assert work.loss((state, done)) == pytest.approx(done.sums['loss'] / 2)
  # The same batches as two calls with augmentation inside.
  np.testing.assert_allclose(
    done.sums['loss'], loss(first) + loss(second), rtol=1e-5
  )


def test_a_batch_may_be_larger_than_the_data_set(bench):
  for batch, steps in ((1, 8), (3, 2), (8, 1), (20, 1)):
    pipeline = bench.pipeline(batch)
    assert pipeline.batch_size == batch
    assert pipeline.steps_per_epoch == steps
  cell = dataclasses.replace(TRAIN, batch=20)
  _, batch = bench.build(cell).arguments
  assert batch['image'].shape == (20, 64, 64, 1)
  np.testing.assert_array_equal(batch['image'][16:], batch['image'][:4])
  assert len(np.unique(batch['image'][:8], axis=0)) == 8


def test_an_evaluation_step_sees_each_window_once(bench):
  # Two validation slices; the rest of the batch is padding.
  work, call = start(bench, EVAL)
  found = call()
  assert float(found['pixels']) == 2 * 64 * 64
  sharded = dataclasses.replace(EVAL, mode='sharded', devices=2, batch=2)
  _, call = start(bench, sharded)
  np.testing.assert_allclose(call()['bce'], found['bce'], rtol=1e-5)
  assert work.flops == 4 * flops.forward(bench.table)


def test_the_dtype_is_that_of_the_cell(bench):
  products = {
    dtype: {
      eqn.outvars[0].aval.dtype
      for eqn in _equations(bench, dataclasses.replace(EVAL, dtype=dtype))
      if eqn.primitive.name == 'conv_general_dilated'
    }
    for dtype in ('float32', 'bfloat16')
  }
  assert products['float32'] == {jnp.dtype('float32')}
  assert products['bfloat16'] == {jnp.dtype('bfloat16')}


def _equations(bench, cell):
  work = bench.build(cell)
  # Flax's BatchNorm promotes by itself.
  with jax.numpy_dtype_promotion('standard'):
    return equations_of(jax.make_jaxpr(work.jitted)(*work.arguments))


def test_a_tiled_prediction_is_of_four_slices(bench):
  cell = plan.Cell('inference', 'end_to_end', 'jit', 1, 'float32', 4)
  work = bench.build(cell)
  mean, _ = work.start(None)()
  assert mean.shape == (128, 128)
  assert mean.min() >= 0
  assert mean.max() <= 1
  # Tiles of 64 that overlap by 16 start at multiples of 32: three by three.
  assert work.executions_per_batch == 9
  assert work.flops == 9 * flops.forward(bench.table)


def test_the_flops_are_those_of_the_batch(bench):
  one, four = (
    bench.build(dataclasses.replace(TRAIN, batch=n)).flops for n in (1, 4)
  )
  assert four == 4 * one == 4 * flops.training(bench.table)


def test_more_devices_than_there_are(bench):
  with pytest.raises(errors.InputError, match='give at most 8'):
    bench.build(dataclasses.replace(TRAIN, mode='pmap', devices=64, batch=64))


def test_what_is_measured_is_described(bench, smoke):
  found = bench.describe()
  assert found['image_size'] == [64, 64]
  assert found['dataset'].startswith('synthetic 10x64x64')
  assert found['optimizer'] == 'sgd'
  variables = jax.eval_shape(lambda: bench._first.params.tree())
  sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
  assert found['parameters'] == sum(sizes)


def test_a_slice_that_no_network_takes(smoke):
  with pytest.raises(errors.InputError, match='multiples of 32'):
    workload.Bench(smoke(QUICK | {'data.size': 72}))


@pytest.mark.parametrize('side', [8, 24, 32, 36, 48, 64, 96, 256, 512])
def test_the_tiles_of_a_prediction_weigh_every_pixel(side):
  # A network that takes any side, and one of multiples of 8.
  for multiple in {1, 8 if side % 8 == 0 else 1}:
    tiling = workload.tile_by((side, 2 * side), (32, multiple))
    size = 2 * side, 4 * side
    weights = np.zeros(tiling.padded(size))
    for y, x in tiling.starts(size):
      where = slice(y, y + side), slice(x, x + 2 * side)
      weights[where] += tiling.weight((y, x), size)
    assert np.all(weights[: size[0], : size[1]] > 0)
    assert tiling.overlap == side // 4 or side <= 36


def test_a_batch_that_the_machine_cannot_make_is_refused(bench, monkeypatch):
  y, x = bench.window
  # An image and its label, float32.
  each = 2 * 4 * y * x
  monkeypatch.setattr(
    workload.parallel_lib, 'machine_memory', lambda: 10 * each
  )
  bench.check_memory((0, 1, 10))
  with pytest.raises(
    errors.InputError, match=r'benchmark\.batches gives a row of 11 images'
  ):
    bench.check_memory((1, 11))
