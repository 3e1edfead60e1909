"""Which rows a plan has, and the plans that are refused."""

import conftest
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax.benchmarking import plan


def make(**changes):
  section = plan.get_default()
  section.update({'batches': (8,), 'dtypes': ('float32',)} | changes)
  return section


def rows(section, counts, *, searched=False):
  return [
    cell
    for call, dtype, batch in plan.groups(section)
    for cell in plan.cells(
      section, call, dtype, batch, counts, searched=searched
    )
  ]


def test_the_first_mode_measures_everything_the_others_the_step():
  found = [
    (c.call, c.feed, c.mode, c.devices, c.batch) for c in rows(make(), (1, 4))
  ]
  assert found == [
    ('train', 'compute', 'jit', 1, 8),
    ('train', 'augment', 'jit', 1, 8),
    ('train', 'end_to_end', 'jit', 1, 8),
    *[
      ('train', 'compute', mode, devices, batch)
      for mode in ('pmap', 'sharded')
      for devices, batch in ((1, 8), (4, 32), (4, 8))
    ],
    ('eval', 'compute', 'jit', 1, 8),
    ('inference', 'end_to_end', 'jit', 1, 4),
  ]


def test_a_mode_alone_measures_every_feed_on_all_counts():
  section = make(modes=('sharded',), calls=('train', 'eval'), scaling=())
  found = [(c.feed, c.devices, c.batch) for c in rows(section, (2, 4))]
  feeds = ('compute', 'augment', 'end_to_end')
  train = [(feed, n, 8) for n in (2, 4) for feed in feeds]
  assert found == [*train, ('compute', 2, 8), ('compute', 4, 8)]


@pytest.mark.parametrize(
  ('given', 'platform', 'again'),
  [
    ('', 'gpu', True),
    ('', 'cpu', False),
    ('reuse', 'gpu', False),
    ('anew', 'cpu', True),
  ],
)
def test_programs_are_compiled_anew_on_a_gpu(given, platform, again):
  section = make(processes_compile=given)
  assert plan.compile_again(section, platform) is again


def test_each_dtype_and_batch_has_its_rows():
  section = make(
    dtypes=('float32', 'bfloat16'),
    batches=(2, 4),
    modes=('jit',),
    feeds=('augment',),
    calls=('train', 'inference'),
  )
  assert [(c.call, c.dtype, c.batch) for c in rows(section, (1,))] == [
    (call, dtype, batch)
    for dtype in ('float32', 'bfloat16')
    for call, batch in (('train', 2), ('train', 4), ('inference', 4))
  ]


def test_a_searched_batch_is_rounded_for_strong_scaling():
  section = make(modes=('pmap',), calls=('train',), feeds=('compute',))
  cells = plan.cells(section, 'train', 'float32', 11, (1, 2, 4), searched=True)
  assert [(c.devices, c.batch) for c in cells] == [
    (1, 11),
    (2, 22),
    (4, 44),
    (1, 8),
    (2, 8),
    (4, 8),
  ]
  # Three images cannot be divided among four devices.
  cells = plan.cells(section, 'train', 'float32', 3, (1, 4), searched=True)
  assert [(c.devices, c.batch) for c in cells] == [(1, 3), (4, 12)]


def test_the_search_uses_the_feed_that_needs_most_memory():
  found = plan.trial(make(), 'train', 'float32')
  assert found == plan.Cell('train', 'augment', 'jit', 1, 'float32', 1)
  found = plan.trial(make(feeds=('compute',)), 'train', 'float32')
  assert found.feed == 'compute'
  assert plan.trial(make(), 'eval', 'float32').feed == 'compute'


@pytest.mark.parametrize(
  ('wanted', 'available', 'hosts', 'counts'),
  [
    ((), 8, 1, (1, 2, 4, 8)),
    ((), 6, 1, (1, 2, 4, 6)),
    ((), 1, 1, (1,)),
    ((1, 0), 8, 1, (1, 8)),
    ((1, 0), 1, 1, (1,)),
    ((), 8, 2, (8,)),
    ((0,), 8, 2, (8,)),
  ],
)
def test_numbers_of_devices(wanted, available, hosts, counts):
  section = make(devices=wanted)
  assert plan.device_counts(section, available, hosts, 'cpu') == counts


def test_numbers_of_devices_that_are_not_there():
  with pytest.raises(errors.InputError, match='has 16, but there are 8 cpu'):
    plan.device_counts(make(devices=(1, 16)), 8, 1, 'cpu')
  with pytest.raises(errors.InputError, match='2 processes have 8 devices'):
    plan.device_counts(make(devices=(1, 8)), 8, 2, 'cpu')


def test_a_batch_that_devices_do_not_divide():
  section = make(modes=('sharded',))
  with pytest.raises(errors.InputError, match='give multiples of 12'):
    plan.cells(section, 'train', 'float32', 8, (1, 4, 6), searched=False)
  section.scaling = ('weak',)
  cells = plan.cells(section, 'eval', 'float32', 8, (1, 4, 6), searched=False)
  assert [c.batch for c in cells] == [8, 32, 48]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'calls': ('training',)}, 'benchmark.calls is .* among train, eval'),
    ({'calls': ()}, 'benchmark.calls is empty'),
    ({'feeds': ('disk',)}, 'benchmark.feeds'),
    ({'dtypes': ('float16',)}, 'among float32, bfloat16'),
    ({'modes': ('tpu',)}, 'among jit, pmap, sharded'),
    ({'scaling': ('linear',)}, 'among weak, strong'),
    ({'repetitions': 0}, 'benchmark.repetitions is 0; .* and at least 1'),
    ({'repetitions': 2.5}, r'repetitions is 2\.5; it must be a whole number'),
    ({'warmup': 0}, 'benchmark.warmup is 0'),
    ({'processes': 0}, 'benchmark.processes is 0'),
    ({'batches': ()}, 'benchmark.batches is empty'),
    ({'batches': (8, -1)}, 'benchmark.batches is -1'),
    ({'batches': ('8',)}, "batches is '8'; it must be a whole number"),
    ({'batches': 8}, 'batches is 8; it must be a tuple of whole numbers'),
    ({'devices': (-2,)}, 'benchmark.devices is -2'),
    ({'modes': ('pmap',)}, 'inference, which runs on one device: leave it out'),
  ],
)
def test_plans_that_cannot_be_carried_out(smoke, changes, words):
  config = smoke()
  with config.unlocked():
    config.benchmark = changes
  with pytest.raises(errors.InputError, match=words):
    plan.split(config)


def test_an_unknown_field_is_named_with_the_nearest(smoke):
  config = smoke()
  with config.unlocked():
    config.benchmark = {'repetition': 3}
  with pytest.raises(errors.InputError, match="did you mean 'repetitions'"):
    plan.split(config)


def test_an_experiment_that_says_nothing_of_benchmarks(smoke):
  with pytest.raises(errors.InputError, match='give --config=benchmark'):
    plan.split(smoke())


def test_several_hosts_processes_are_sharded_at_given_batches(smoke):
  def split(**changes):
    config = smoke(
      {
        'parallel.coordinator': 'localhost:1',
        'parallel.num_processes': 2,
        'parallel.process_id': 0,
      }
    )
    with config.unlocked():
      config.benchmark = make(**changes)
    return plan.split(config)

  with pytest.raises(errors.InputError, match='modes'):
    split()
  sharded = {'modes': ('sharded',), 'calls': ('train', 'eval')}
  with pytest.raises(errors.InputError, match='batches has 0'):
    split(**sharded, batches=(0,))
  bare, section = split(**sharded)
  assert 'benchmark' not in bare
  assert tuple(section.batches) == (8,)


def test_the_presets_can_be_carried_out():
  for preset in ('full', 'cpu', 'smoke'):
    config = config_lib.load_experiment(
      conftest.ROOT / 'experiments/benchmark.py', preset
    )
    bare, section = plan.split(config)
    assert bare.model.name == 'fc_resnet'
    for call, dtype, batch in plan.groups(section):
      assert plan.cells(
        section, call, dtype, batch or 8, (1, 2, 4, 8), searched=not batch
      )


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('model.dtype', 'bfloat16', "bfloat16', but benchmark.dtypes says"),
    ('parallel.mode', 'pmap', "pmap', but benchmark.modes says"),
    ('parallel.devices', 99, '99, but benchmark.devices says'),
  ],
)
def test_a_field_that_the_benchmark_would_ignore_is_refused(
  smoke, field, value, words
):
  config = smoke({field: value})
  with config.unlocked():
    config.benchmark = {'dtypes': ('float32',), 'modes': ('jit',)}
  _, section = plan.split(config)
  with pytest.raises(errors.InputError, match=words):
    plan.check_measured(config, section)
  with config.unlocked():
    config.benchmark = {
      'dtypes': ('float32', 'bfloat16'),
      'modes': ('jit', 'pmap'),
      'devices': (99,),
    }
  plan.check_measured(config, plan.split(config)[1])


@pytest.mark.parametrize(
  ('field', 'value'),
  [('mode', 'pmap'), ('devices', 4), ('coordinator', 'localhost:1')],
)
def test_a_prediction_refuses_other_devices(smoke, field, value):
  plan.check_predicted(smoke({'parallel.mode': 'sharded'}))
  with pytest.raises(errors.InputError, match=rf'parallel\.{field} is .*aot'):
    plan.check_predicted(smoke({f'parallel.{field}': value}))
