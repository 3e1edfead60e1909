"""The rows of a plan, measured on work of a millisecond that may not fit."""

import json

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking import journal as journal_lib
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import rows
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.timing import roofline

RATES = {'copy_gb_s': 1.0, 'matrix_tflops': 1.0}
SECTION = {
  'calls': ('train',),
  'feeds': ('compute',),
  'dtypes': ('float32',),
  'modes': ('jit',),
  'batches': (8,),
  'warmup': 2,
  'repetitions': 3,
}


class Fake:
  """Work whose memory has room for `limit` examples on a device."""

  limit = 10**9
  loss = 0.25
  message = 'RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.'

  def __init__(self, config):
    self.built = []

  def describe(self):
    return {'model': 'fake'}

  def check_memory(self, batches):
    pass

  def build(self, cell):
    self.built.append(cell)

    def start(compiled):
      def call():
        if cell.batch > self.limit * cell.devices:
          raise jax.errors.JaxRuntimeError(self.message)
        return compiled(jnp.zeros(()))

      return call

    return workload.Work(
      program=(cell,),
      jitted=jax.jit(lambda x: x + 1),
      arguments=(jnp.zeros(()),),
      start=start,
      flops=7 * cell.batch,
      min_bytes=3 * cell.batch,
      steps=2,
      loss=lambda result: self.loss,
    )


@pytest.fixture
def measure(smoke, monkeypatch):
  """Measures a plan; gives the journal and what was said."""
  monkeypatch.setattr(workload, 'Bench', Fake)
  monkeypatch.setattr(roofline, 'measure_rates', lambda *_: RATES)

  def call(changes=None, limit=10**9, **fields):
    monkeypatch.setattr(Fake, 'limit', limit)
    config = smoke()
    with config.unlocked():
      config.benchmark = plan.get_default()
      config.benchmark.update(SECTION | (changes or {}))
    journal = journal_lib.Journal(None, config=json.loads(config.to_json()))
    vars(journal).update(fields)
    said = []
    rows.measure_all(journal, said.append)
    return journal, said

  return call


def test_the_memory_is_that_of_all_devices(measure, monkeypatch):
  refused = errors.InputError('too many')

  def check_memory(self, batches):
    assert batches == [4, 8, 16, 32]
    raise refused

  monkeypatch.setattr(Fake, 'check_memory', check_memory)
  with pytest.raises(errors.InputError, match='too many'):
    measure({'batches': (4,), 'modes': ('pmap',), 'scaling': ('weak',)})


def test_each_row_has_its_times_by_step(measure, tmp_path):
  journal, said = measure({'batches': (4, 8)}, cache=str(tmp_path))
  assert list(journal.rows) == [
    'train compute jit x1 float32 batch 4',
    'train compute jit x1 float32 batch 8',
  ]
  for row, batch in zip(journal.rows.values(), (4, 8), strict=True):
    assert row['error'] is None
    assert row['warmup'] == 2
    assert len(row['seconds']) == 3
    assert all(0 < s < 10 for s in row['seconds'])
    assert row['flops'] == 7 * batch
    # Two warm-up calls, three timed ones and three in a row, of two batches.
    assert row['loss'] == {'steps': 16, 'value': 0.25}
    # As many calls again, of two batches each.
    assert row['blocked']['batches'] == 6
    assert 0 < row['blocked']['host_seconds'] <= row['blocked']['seconds']
    assert row['joules'] is row['state'] is None
    assert row['compile']['compile_s'] > 0
    assert row['compile']['warm_compile_s'] > 0
  assert journal.about['workload'] == {'model': 'fake'}
  # Nobody waits in silence: what is measured, and what came out.
  assert said[1] == '[1/2] train compute jit x1 float32 batch 4'
  assert 'images/s' in said[2]


def test_products_have_the_precision_of_the_plan(measure, monkeypatch):
  seen = []

  def rates(*_):
    seen.append(jax.config.jax_default_matmul_precision)
    return RATES

  monkeypatch.setattr(roofline, 'measure_rates', rates)
  journal, _ = measure({'matmul_precision': 'highest'})
  assert seen == ['highest']
  assert list(journal.rows) == [
    'train compute jit x1 float32 highest batch 8',
  ]
  (row,) = journal.rows.values()
  assert row['cell']['matmul_precision'] == 'highest'
  assert jax.config.jax_default_matmul_precision is None


def test_a_speed_with_a_loss_that_is_not_finite_is_no_speed(
  measure, monkeypatch
):
  monkeypatch.setattr(Fake, 'loss', float('nan'))
  with pytest.raises(errors.RunError, match='is not finite: lower optim'):
    measure()


class Gpu:
  """A meter of devices that use 3 J."""

  def __init__(self, devices):
    self.readable, self.joules, self.state = True, 3.0, {'sm_mhz': 1755}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


def test_energy_is_counted_for_two_seconds(measure, monkeypatch):
  monkeypatch.setattr(rows.nvml, 'Meter', Gpu)
  half = rows.measure.Timing(0, (0.5, 0.25, 0.5))
  monkeypatch.setattr(rows.measure, 'time_calls', lambda *_, **__: half)
  journal, _ = measure()
  (row,) = journal.rows.values()
  # Eight calls of a quarter of a second; a call has two batches.
  assert row['blocked']['batches'] == 16
  assert row['joules'] == 3.0
  assert row['state'] == {'sm_mhz': 1755}


def test_without_a_cache_no_warm_compile_is_measured(measure):
  journal, _ = measure()
  (row,) = journal.rows.values()
  assert row['compile']['compile_s'] > 0
  assert row['compile']['warm_compile_s'] is None


def test_the_largest_batch_is_found_and_the_refused_one_reported(measure):
  journal, said = measure({'batches': (0,)}, limit=11)
  assert journal.largest == {'train float32': 11}
  assert [(r['cell']['batch'], r['error']) for r in journal.rows.values()] == [
    (
      12,
      'Batch 12 does not fit: out of memory: RESOURCE_EXHAUSTED: Out of memory '
      'allocating 7 bytes; the largest that fits is 11.',
    ),
    (11, None),
  ]
  assert any(line.strip() == 'batch 8 fits' for line in said)


def test_a_given_batch_that_does_not_fit_ends_in_a_search(measure):
  journal, _ = measure({'batches': (4, 64)}, limit=5)
  good, bad = journal.rows.values()
  assert good['error'] is None
  assert bad['error'].startswith('Batch 64 does not fit')
  assert bad['error'].endswith('the largest that fits is 5.')


def test_on_several_devices_batches_are_tried_that_they_divide(measure):
  journal, _ = measure(
    {'modes': ('sharded',), 'devices': (4,), 'batches': (64,), 'scaling': ()},
    limit=5,
  )
  (bad,) = journal.rows.values()
  assert bad['error'].endswith('the largest that fits is 20.')


def test_the_largest_batch_of_a_network_is_what_its_plan_says(
  smoke, monkeypatch
):
  room = 3_000_000
  monkeypatch.setattr(rows.largest, 'memory_limit', lambda _: room)
  monkeypatch.setattr(roofline, 'measure_rates', lambda *_: RATES)
  config = smoke(
    {
      'model.repetitions': (1,) * 7,
      'model.base_width': 2,
      'model.batch_norm': False,
    }
  )
  with config.unlocked():
    config.benchmark = plan.get_default()
    config.benchmark.update(SECTION | {'calls': ('eval',), 'batches': (0,)})
  journal = journal_lib.Journal(None, config=json.loads(config.to_json()))
  rows.measure_all(journal, print)
  refused, row = journal.rows.values()
  assert 'the compiled program needs 0.00' in refused['error']
  assert row['error'] is None
  batch, need = row['cell']['batch'], row['compile']['predicted_bytes']
  assert need <= room
  # One eighth more is refused: the memory is nearly proportional to the batch.
  assert need * (1 + 1 / 8 + 1 / batch) > 0.95 * room
  assert refused['cell']['batch'] - batch <= max(1, batch // 8)
  # Not each doubling was compiled.
  assert len(journal.trials) <= 6


def test_nothing_fits(measure):
  journal, _ = measure({'batches': (0,)}, limit=0)
  (row,) = journal.rows.values()
  assert row['error'].startswith('Batch 1 does not fit')
  assert row['error'].endswith('no smaller batch fits.')


def test_a_program_that_cannot_fit_is_not_run(measure, monkeypatch):
  monkeypatch.setattr(
    rows.largest, 'shortage', lambda *_: 'the compiled program needs more'
  )

  def never(*_):
    raise AssertionError('it was run')

  monkeypatch.setattr(rows.measure, 'time_calls', never)
  journal, _ = measure({'batches': (1,)})
  (row,) = journal.rows.values()
  assert 'the compiled program needs more' in row['error']


def test_what_a_process_died_of_is_not_tried_again(measure):
  name = 'train compute jit x1 float32 batch 8'
  journal, _ = measure(
    {'batches': (4, 8)}, trials={name: 'the process was killed'}
  )
  good, bad = journal.rows.values()
  assert good['error'] is None
  assert bad['error'].startswith('Batch 8 does not fit: the process was killed')
  assert bad['error'].endswith('the largest that fits is 7.')


def test_a_search_goes_on_after_what_a_process_died_of(measure):
  name = 'try train compute jit x1 float32 batch'
  trials = {f'{name} 1': '', f'{name} 2': '', f'{name} 4': 'killed'}
  journal, _ = measure({'batches': (0,)}, trials=trials)
  assert journal.largest == {'train float32': 3}


def test_rows_that_are_there_are_not_measured_again(measure):
  first, _ = measure()
  again, said = measure(rows=first.rows, about=first.about)
  assert again.rows == first.rows
  assert not said


def test_any_other_failure_ends_the_benchmark(measure, monkeypatch):
  monkeypatch.setattr(Fake, 'message', 'INTERNAL: the device is on fire')
  with pytest.raises(errors.RunError, match='the device is on fire'):
    measure(limit=0)


def test_a_plan_is_refused_before_anything_is_built(measure, monkeypatch):
  def never(*_):
    raise AssertionError('it was built')

  monkeypatch.setattr(workload, 'Bench', never)
  with pytest.raises(errors.InputError, match='there are 8 cpu'):
    measure({'modes': ('pmap',), 'devices': (16,)})
  with pytest.raises(errors.InputError, match='give multiples of 8'):
    measure({'modes': ('pmap',), 'batches': (0, 4)})


def test_a_journal_outlives_its_process(tmp_path):
  path = tmp_path / 'journal.json'
  journal = journal_lib.Journal(path, config={'seed': 1}, cache='here')
  journal.rows['a'] = {'seconds': [1.5]}
  journal.save()
  assert vars(journal_lib.Journal.read(path)) == vars(journal)
