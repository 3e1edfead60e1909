"""Batches are pure functions of (seed, step); evaluation misses no pixel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import streams
from skipnet_jax.data import data_set
from skipnet_jax.data import normalisation
from skipnet_jax.data import pipeline as pipeline_lib

KEY = jax.random.key(3)


def make_data(shape=(10, 48, 40), dtype=np.uint8):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, shape).astype(dtype)
  label = rng.random(shape) < 0.8
  count = shape[0]
  return data_set.DataSet(
    'test', image, label, tuple(range(count - 2)), (count - 2, count - 1)
  )


def make(
  data,
  batch_size=4,
  crop=0,
  shards=1,
  slices=1,
  steps_per_epoch=0,
  **augment,
):
  config = config_lib.get_default()
  config.model.slices = slices
  config.train.batch_size = batch_size
  config.train.steps_per_epoch = steps_per_epoch
  config.data.crop = crop
  config.data.augment.update(augment)
  return pipeline_lib.make_pipeline(config, data, shards)


def still(data, **fields):
  return make(data, flip=False, rotation=0.0, shear=0.0, warp=0.0, **fields)


def test_an_epoch_sees_each_training_slice_once():
  pipe = make(make_data())
  assert pipe.steps_per_epoch == 2
  plan = jax.jit(pipe.plan)
  epochs = [
    [int(i) for s in (2 * e, 2 * e + 1) for i in plan(KEY, s)['index']]
    for e in range(4)
  ]
  assert all(sorted(epoch) == list(pipe.train) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1
  # The order of earlier versions, so that their runs can be resumed.
  assert epochs[:3] == [
    [6, 4, 2, 3, 0, 5, 7, 1],
    [5, 2, 3, 6, 1, 0, 4, 7],
    [7, 1, 0, 4, 3, 2, 5, 6],
  ]


@pytest.mark.parametrize('batch_size', [1, 3, 4, 6, 8, 12, 20])
def test_batches_go_through_permutations_of_the_slices(batch_size):
  """Whatever part of the 8 slices, or more than all of them, a batch holds."""
  pipe = make(make_data(), batch_size=batch_size)
  plan = jax.jit(pipe.plan)
  steps = -(-40 // batch_size)
  found = np.concatenate([plan(KEY, s)['index'] for s in range(steps)])
  orders = [
    jax.random.permutation(streams.key_at(KEY, 'order', n), 8)
    for n in range(len(found) // 8 + 1)
  ]
  assert found.tolist() == np.concatenate(orders)[: len(found)].tolist()
  # Positions that int32 cannot hold.
  number, at = divmod((2**31 - 1) * batch_size, 8)
  key = streams.key_at(KEY, 'order', number % 2**32)
  order = jax.random.permutation(key, 8)
  assert plan(KEY, 2**31 - 1)['index'][0] == order[at]


@pytest.mark.parametrize(
  ('batch_size', 'steps'), [(1, 8), (3, 2), (5, 1), (8, 1), (20, 1)]
)
def test_an_epoch_is_as_many_whole_batches_as_the_slices_fill(
  batch_size, steps
):
  assert make(make_data(), batch_size=batch_size).steps_per_epoch == steps


def test_an_epoch_is_as_many_steps_as_asked_for():
  pipe = make(make_data(), batch_size=3, steps_per_epoch=5)
  assert pipe.steps_per_epoch == 5
  # The slices go on from where the epoch before ended.
  seen = [i for s in range(8) for i in np.asarray(pipe.plan(KEY, s)['index'])]
  counts = np.unique(seen, return_counts=True)[1]
  assert counts.tolist() == [3] * 8


def test_a_plan_is_a_pure_function_of_key_and_step():
  pipe = make(make_data(), crop=16)
  plan = jax.jit(pipe.plan)

  def values(key, step):
    found = plan(key, step)
    return [
      np.asarray(found['index']),
      np.asarray(found['offset']),
      np.asarray(jax.random.key_data(found['key'])),
    ]

  for a, b in zip(values(KEY, 5), values(KEY, 5), strict=True):
    np.testing.assert_array_equal(a, b)
  for other in (values(KEY, 4), values(jax.random.key(4), 5)):
    assert not np.array_equal(values(KEY, 5)[2], other[2])
    assert not np.array_equal(values(KEY, 5)[1], other[1])


def test_crops_lie_inside_and_reach_both_ends():
  pipe = make(make_data(), crop=32)
  plan = jax.jit(pipe.plan)
  offsets = np.concatenate([plan(KEY, s)['offset'] for s in range(60)])
  assert offsets.min(0).tolist() == [0, 0]
  assert offsets.max(0).tolist() == [48 - 32, 40 - 32]


@pytest.mark.parametrize(
  ('crop', 'normalise'),
  [(0, 'slice'), (16, 'slice'), (16, 'range'), (16, 'local')],
)
def test_a_batch_is_the_normalised_window(crop, normalise):
  data = dataclasses.replace(make_data(), normalise=normalise)
  pipe = still(data, crop=crop)
  arrays = pipeline_lib.host_arrays(data)
  plan = pipe.plan(KEY, 1)
  batch = pipe.train_batch(
    pipe.read(arrays_on_device(arrays), plan), plan['key']
  )
  y, x = pipe.window
  for i, (top, left), image, label in zip(
    plan['index'], plan['offset'], batch['image'], batch['label'], strict=True
  ):
    page = data.image[i].astype(np.float64)
    expected = (page - page.mean()) / page.std()
    if normalise == 'range':
      expected = page / 127.5 - 1
    elif normalise == 'local':
      expected = normalisation.prepare(data.image, 'local')[0][i]
    expected = expected[top : top + y, left : left + x]
    np.testing.assert_allclose(image[..., 0], expected, atol=1e-5)
    np.testing.assert_array_equal(
      label[..., 0], data.label[i][top : top + y, left : left + x]
    )
  assert batch['mask'].shape == batch['image'].shape
  assert float(batch['mask'].min()) == 1


def arrays_on_device(arrays):
  return jax.tree.map(jnp.asarray, arrays)


def test_the_host_reads_what_the_device_reads():
  data = make_data()
  pipe = make(data, crop=16)
  arrays = pipeline_lib.host_arrays(data)
  plan = pipe.plan(KEY, 3)
  device = pipe.read(arrays_on_device(arrays), plan)
  host = pipe.read_host(arrays, plan)
  assert device.keys() == host.keys()
  for name in host:
    np.testing.assert_array_equal(host[name], device[name])
    assert host[name].dtype == device[name].dtype


@pytest.mark.parametrize('slices', [3, 5])
def test_an_example_of_several_slices(slices):
  """Each channel is what an example of that slice alone would be."""
  data = make_data((6, 48, 40))
  several, alone = (make(data, crop=32, slices=s) for s in (slices, 1))
  arrays = arrays_on_device(pipeline_lib.host_arrays(data))
  plan = several.plan(KEY, 2)
  raw = several.read(arrays, plan)
  host = several.read_host(pipeline_lib.host_arrays(data), plan)
  jax.tree.map(np.testing.assert_array_equal, raw, host)
  batch = several.train_batch(raw, plan['key'])
  assert batch['image'].shape == (4, 32, 32, slices)
  for channel in range(slices):
    # Slice -1 is 1, slice -2 is 2, and so at the other end.
    mirrored = [4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    other = [mirrored[4 + i + channel - slices // 2] for i in plan['index']]
    other = plan | {'index': jnp.asarray(other)}
    single = alone.train_batch(alone.read(arrays, other), plan['key'])
    np.testing.assert_allclose(
      batch['image'][..., channel], single['image'][..., 0], atol=1e-5
    )
  middle = alone.train_batch(alone.read(arrays, plan), plan['key'])
  np.testing.assert_array_equal(batch['label'], middle['label'])


def test_more_slices_than_the_stack_has_are_refused():
  with pytest.raises(errors.InputError, match=r'model.slices is 7.* has 6'):
    make(make_data((6, 48, 40)), slices=7)


def test_integer_and_float_stacks_give_the_same_input():
  data = make_data()
  versions = [
    data,
    dataclasses.replace(data, image=data.image.astype(np.uint16) * 257),
    dataclasses.replace(data, image=data.image.astype(np.float32) / 255),
  ]
  batches = []
  for version in versions:
    pipe = make(version)
    arrays = arrays_on_device(pipeline_lib.host_arrays(version))
    assert arrays['image'].dtype == version.image.dtype
    plan = pipe.plan(KEY, 0)
    batches.append(pipe.train_batch(pipe.read(arrays, plan), plan['key']))
  for other in batches[1:]:
    np.testing.assert_allclose(other['image'], batches[0]['image'], atol=2e-4)
    np.testing.assert_array_equal(other['label'], batches[0]['label'])


@pytest.mark.parametrize(
  ('shape', 'crop'),
  [((6, 48, 40), 0), ((6, 48, 40), 32), ((6, 33, 50), 16), ((6, 32, 32), 32)],
)
@pytest.mark.parametrize('batch_size', [1, 3])
def test_evaluation_counts_every_pixel_once(shape, crop, batch_size):
  data = make_data(shape)
  pipe = still(data, crop=crop, batch_size=4)
  arrays = pipeline_lib.host_arrays(data)
  counted = np.zeros(shape, int)
  total = 0.0
  for plan in pipe.eval_plans(batch_size):
    assert plan['index'].shape == (batch_size,)
    raw = pipe.read_host(arrays, plan)
    batch = pipe.eval_batch(raw, jnp.asarray(plan['seen']))
    mask = np.asarray(batch['mask'])[..., 0].astype(int)
    total += float((batch['label'] * batch['mask']).sum())
    for i, (y, x), m in zip(plan['index'], plan['offset'], mask, strict=True):
      counted[i, y : y + pipe.window[0], x : x + pipe.window[1]] += m
  expected = np.zeros(shape, int)
  expected[list(data.valid)] = 1
  np.testing.assert_array_equal(counted, expected)
  assert total == data.label[list(data.valid)].sum()


def test_weights_move_with_labels():
  data = make_data((6, 48, 48))
  weighted = dataclasses.replace(
    data, weight=1 + 4 * data.label.astype(np.float32)
  )
  pipe = make(weighted, crop=32, rotation=0.0, shear=0.0, warp=0.0, rot90=True)
  arrays = pipeline_lib.host_arrays(weighted)
  plan = pipe.plan(KEY, 0)
  raw = pipe.read(arrays, plan)
  host = pipe.read_host(arrays, plan)
  assert set(host) == set(raw)
  np.testing.assert_array_equal(host['weight'], raw['weight'])
  batch = pipe.train_batch(raw, plan['key'])
  np.testing.assert_allclose(batch['weight'], 1 + 4 * batch['label'], atol=1e-4)
  seen = jnp.asarray(pipe.eval_plans(2)[0]['seen'])
  first = {name: x[:2] for name, x in raw.items()}
  batch = pipe.eval_batch(first, seen)
  np.testing.assert_array_equal(batch['weight'], 1 + 4 * batch['label'])
  assert 'weight' not in pipeline_lib.host_arrays(data)


def test_quarter_turns_want_square_examples():
  with pytest.raises(
    errors.InputError, match=r'48x40: set data.crop to at most'
  ):
    make(make_data(), rot90=True)
  make(make_data(), rot90=True, crop=40)


def test_feed_runs_ahead_in_order_and_stops():
  seen = []
  feed = pipeline_lib.read_ahead(lambda step: seen.append(step) or step, 7)
  assert [next(feed) for _ in range(5)] == [7, 8, 9, 10, 11]
  feed.close()
  count = len(seen)
  assert seen == list(range(7, 7 + count))
  assert count <= 5 + 4


def test_feed_raises_the_readers_error():
  def read(step):
    if step == 2:
      raise OSError('the disk went away')
    return step

  feed = pipeline_lib.read_ahead(read, 1)
  assert next(feed) == 1
  with pytest.raises(OSError, match='the disk went away'):
    next(feed)
  feed.close()


@pytest.mark.parametrize(
  ('batch_size', 'shards', 'words'),
  [
    (25, 8, 'among the 8 devices: give 24 or 32.'),
    (2, 4, 'among the 4 devices: give 4.'),
  ],
)
def test_a_batch_that_the_devices_do_not_divide_is_refused(
  batch_size, shards, words
):
  with pytest.raises(errors.InputError, match=words) as error:
    make(make_data(), batch_size=batch_size, shards=shards)
  assert f'train.batch_size is {batch_size}' in str(error.value)


def test_a_crop_larger_than_the_slices_is_refused():
  with pytest.raises(errors.InputError, match=r'data.crop is 64.*48x40'):
    make(make_data(), crop=64)


def test_pixels_that_are_not_finite_are_refused():
  image = np.ones((3, 4, 4), np.float32)
  image[1, 2, 3] = np.nan
  with pytest.raises(errors.InputError, match='slice 2 '):
    normalisation.statistics(image)


def test_an_empty_slice_becomes_zeros():
  stats = normalisation.statistics(np.full((1, 4, 4), 9, np.uint8))
  assert (stats['mean'][0], stats['std'][0]) == (9, 1)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_the_range_is_that_of_the_integer_type(dtype):
  largest = np.iinfo(dtype).max
  image = np.array([[[0, largest]], [[largest // 3, 9]]], dtype)
  stats = normalisation.statistics(image, 'range')
  mean, std = (stats[name][:, None, None] for name in ('mean', 'std'))
  # As (grey - grey's half range) / that half: -1, 1 and, of a third, -1/3.
  found = (image.astype(np.float32) - mean) / std
  np.testing.assert_allclose(found[..., 0].ravel(), [-1, -1 / 3], atol=1e-6)
  assert found[0, 0, 1] == 1


def locally_normalised(page):
  pages, stats = normalisation.prepare(page[None], 'local')
  assert pages.dtype == np.float32
  assert (stats['mean'].tolist(), stats['std'].tolist()) == ([0], [1])
  return pages[0]


def test_local_normalisation_depends_on_neighbours_alone():
  random = np.random.default_rng(0)
  page = random.normal(0, 50, (600, 400)).cumsum(0).astype(np.float32)
  whole = locally_normalised(page)
  # The same pixels, another field of view: those far from its border agree.
  part = locally_normalised(page[100:500])
  np.testing.assert_allclose(part[128:-128], whole[228:-228], atol=1e-4)
  assert not np.allclose(part[:64], whole[100:164], atol=1e-2)
  # Grey values in other units, or inverted and shifted.
  for scale, shift in ((0.25, 0), (3, 1000)):
    moved = locally_normalised((page * scale + shift).astype(np.float32))
    np.testing.assert_allclose(moved, whole, atol=2e-3)


def test_local_normalisation_is_by_mean_and_variance_of_a_triangle():
  page = np.random.default_rng(1).integers(0, 255, (300, 300)).astype('uint8')
  page[:, 150:] //= 3
  found = locally_normalised(page)[150, 120]
  line = np.convolve(np.ones(129), np.ones(129)) / 129**2
  weights = np.outer(line, line)
  near = page[150 - 128 : 150 + 129, :249][:, 120 - 120 :].astype(np.float64)
  near = np.pad(near, ((0, 0), (8, 0)), 'symmetric')
  mean = (weights * near).sum()
  std = np.sqrt((weights * near**2).sum() - mean**2)
  assert found == pytest.approx((page[150, 120] - mean) / std, abs=1e-4)


def test_local_normalisation_leaves_empty_regions_alone():
  page = np.zeros((40, 900), np.float32)
  page[:, :300] = np.random.default_rng(2).normal(0, 100, (40, 300))
  page[:, 300:] += np.random.default_rng(3).normal(0, 1, (40, 600))
  found = locally_normalised(page)
  assert found[:, :150].std() == pytest.approx(1, abs=0.2)
  assert abs(found[:, 600:]).max() < 0.3
  assert not locally_normalised(np.full((8, 8), 7, np.uint8)).any()
