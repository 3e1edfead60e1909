"""Predictions for a slice: the search, the report and the refusals."""

import json

import conftest
import jax
import made_hlo
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.aot import aot
from skipnet_jax.benchmarking.aot import sharded_step
from skipnet_jax.benchmarking.aot import slices
from skipnet_jax.benchmarking.hlo import kernels
from skipnet_jax.benchmarking.timing import peaks

# 1e12 FLOPs, 1e10 bytes of memory and 1e9 bytes of links a second.
PEAK = peaks.Peak(1, None, 10, 16, 1, 'made up')


def searched(limit, start, guesses, attempts):
  """What the search says and tries where `limit` is the largest that fits."""
  tried, guesses = [], iter(guesses)

  def fits(number):
    tried.append(number)
    return number <= limit

  return aot.search(fits, start, lambda: next(guesses), attempts), tried


@pytest.mark.parametrize(
  ('limit', 'start', 'guesses', 'tried'),
  [
    (11, 8, [14], [8, 14, 11, 12]),
    (14, 8, [11, 15], [8, 11, 15, 13, 14]),
    (8, 8, [9], [8, 9]),
    (3, 8, [], [8, 4, 2, 3]),
    (0, 2, [], [2, 1]),
  ],
)
def test_the_largest_is_found_by_guesses_and_bisection(
  limit, start, guesses, tried
):
  assert searched(limit, start, guesses, 9) == ((limit, limit + 1), tried)


def test_a_guess_of_little_more_ends_the_search():
  assert searched(11, 8, [11, 11], 9) == ((11, None), [8, 11])
  assert searched(99, 8, [3], 9) == ((8, None), [8])


def test_a_search_that_is_cut_short_says_between_what_the_limit_lies():
  assert searched(11, 4, [16], 2) == ((10, 16), [4, 16, 10])
  assert searched(99, 4, [9, 20], 2) == ((20, None), [4, 9, 20])
  assert searched(0, 8, [], 0) == ((0, 8), [8])


def row_of(per_device, devices, limit):
  """What a step says that has room for `limit` images."""
  fits = per_device <= limit
  return {
    'batch': per_device * devices,
    'batch_per_device': per_device,
    'error': None if fits else f'{per_device} GiB of {limit} GiB',
    'model_flops': per_device * 10**9,
    'compile': fits and {'compile_s': 60.0 * per_device},
    'hlo_flops': per_device * 2e9,
    'hlo_bytes': per_device * 1e8,
    # A line that reaches 0.98 of 16 GiB between five and six images.
    'memory': fits
    and {
      'peak': (3 + 23 * per_device) * 2**30 // 10,
      'arguments': 2**20,
      'temporaries': 2**29,
    },
    'collectives': {'all-reduce': {'count': 7, 'bytes': 4 * 10**6}},
    'min_bytes': per_device * 10**7,
    'kernels': kernels.count(
      [
        {
          'kind': 'dot',
          'task': 't',
          'bytes': per_device * 10**6,
          'hbm_bytes': per_device * 10**5,
          'runs': 20,
        }
      ]
    ),
    'kernels_s': None,
    'floors': {
      'compute_s': per_device * 0.002,
      'memory_s': per_device * 0.01,
      'collective_s': 0.006,
      'launch_s': None,
      'step_s': per_device * 0.01,
      'bound': 'memory',
    },
    'mfu_limit': 0.1,
  }


@pytest.fixture
def cpu_slice(monkeypatch):
  """Has a slice consist of CPU devices, each with room for five images."""

  def devices(topology):
    return jax.devices()[: slices.chips(topology)]

  def compile_(step, per_device):
    del step
    return row_of(per_device, 4, limit=5)

  monkeypatch.setitem(peaks.PEAKS, 'cpu', PEAK)
  monkeypatch.setattr(aot, 'SEARCH', 3)
  monkeypatch.setattr(slices, 'devices', devices)
  monkeypatch.setattr(sharded_step.Step, 'compile', compile_)


def test_a_report_has_the_batch_asked_for_and_the_largest_that_fits(
  smoke, cpu_slice
):
  said = []
  config = smoke({'train.batch_size': 8})
  report = aot.predict(config, 'v5e:2x2', say=said.append)
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  assert report['what'].startswith('prediction')
  assert [row['batch_per_device'] for row in report['rows']] == [2, 5]
  assert report['search']['largest_per_device'] == 5
  assert report['search']['too_large_per_device'] == 6
  tried = [a['batch_per_device'] for a in report['search']['attempts']]
  assert tried == [2, 6, 4, 5]
  assert len(said) == 4
  # Of 50 ms on one device; 4 MB to the other one take 4 ms more.
  assert report['weak_scaling'][1]['efficiency'] == pytest.approx(50 / 54)
  assert report['workload']['image_size'] == [64, 64]
  assert report['topology']['peak']['source'] == 'made up'


def test_the_table_shows_what_the_report_holds(smoke, cpu_slice):
  config = smoke({'train.batch_size': 8})
  table = aot.format_table(aot.predict(config, 'v5e:2x2', say=lambda _: None))
  cells = {line[:40].strip(): line[40:].split() for line in table.splitlines()}
  assert cells['images on each device'] == ['2', '5']
  assert cells['compile, s'] == ['120.000', '300.000']
  assert cells['HLO GFLOPs'] == ['4.000', '10.000']
  assert cells['peak memory, GiB'] == ['4.900', '11.800']
  assert cells['memory floor, ms'] == ['20.000', '50.000']
  assert cells['of it in HBM, not on the chip'] == ['0.004', '0.010']
  assert cells["HBM's bytes over them"] == ['0.20', '0.20']
  # Of the batch that was asked for.
  kernel = [line.split() for line in table.splitlines() if 'dot' in line]
  assert kernel == [['20', '0', '0.040', '100.0%', 'dot']]
  assert '6 images on each device do not fit: 6 GiB of 5 GiB' in table
  assert 'predictions: compiled ahead of time' in table
  assert 'bound of weak scaling' in table
  assert 'images/s at most' in table
  assert max(map(len, table.splitlines())) <= 100


def test_one_device_says_nothing_of_what_several_would_send(smoke, cpu_slice):
  report = aot.predict(smoke(), 'h100:1', say=lambda _: None)
  assert report['search']['largest_per_device'] == 5
  assert report['weak_scaling'] == []


def test_what_jax_does_not_use_by_default_must_be_asked_for(
  smoke, cpu_slice, monkeypatch
):
  def compile_(step, per_device):
    row = row_of(per_device, 1, limit=9)
    row['floors']['launch_s'] = 0.001
    return row

  monkeypatch.setattr(sharded_step.Step, 'compile', compile_)
  monkeypatch.setattr(aot, 'SEARCH', 0)

  def table(images):
    config = smoke({'train.batch_size': images})
    return aot.format_table(aot.predict(config, 'h100:1', say=lambda _: None))

  # 11.8 and 14.1 of 16 GiB.
  assert 'MEM_FRACTION' not in table(5)
  text = ' '.join(table(6).split())
  assert 'for 14.10 GiB, set XLA_PYTHON_CLIENT_MEM_FRACTION to at least' in text
  assert 'to at least 0.89.' in text


def test_a_folder_gets_the_program_and_its_kernels_without_a_search(
  smoke, cpu_slice, monkeypatch, tmp_path
):
  def compile_(step, per_device):
    step.hlo = made_hlo.GPU_HLO
    return row_of(per_device, 4, limit=5)

  monkeypatch.setattr(sharded_step.Step, 'compile', compile_)
  config, folder = smoke({'train.batch_size': 8}), tmp_path / 'new'
  report = aot.predict(config, 'v5e:2x2', say=lambda _: None, folder=folder)
  assert len(report['search']['attempts']) == 1
  assert (folder / 'program.hlo.txt').read_text() == made_hlo.GPU_HLO
  lines = (folder / 'kernels.csv').read_text().splitlines()
  assert lines[0].split(',')[:4] == ['name', 'opcode', 'kind', 'task']
  assert len(lines) == 1 + 9


def test_where_nothing_fits_the_report_says_why(smoke, cpu_slice, monkeypatch):
  monkeypatch.setattr(
    sharded_step.Step, 'compile', lambda _, number: row_of(number, 4, limit=0)
  )
  config = smoke({'train.batch_size': 8})
  report = aot.predict(config, 'v5e:2x2', say=lambda _: None)
  assert report['search']['largest_per_device'] is None
  assert report['search']['too_large_per_device'] == 1
  assert report['weak_scaling'] == []
  table = aot.format_table(report)
  assert '2 images on each device do not fit: 2 GiB of 0 GiB' in table
  assert 'no batch fits' in table


def fields(value, path=''):
  """Paths of all fields, those of a list's objects once."""
  if isinstance(value, list) and value and isinstance(value[0], dict):
    value, path = value[0], path.rstrip('.') + '.'
  if isinstance(value, dict) and path not in WHOLE:
    for key, each in value.items():
      yield path + key
      yield from fields(each, f'{path}{key}.')


# Of these the page names no fields, or names them in a sentence.
WHOLE = {'identity.', 'software.', 'host.', 'rows.collectives.'}
WHOLE |= {'rows.kernels.kinds.', 'rows.kernels.tasks.'}


def test_the_page_explains_every_field_and_no_other(smoke, cpu_slice):
  config = smoke({'train.batch_size': 8})
  report = aot.predict(config, 'v5e:2x2', say=lambda _: None)
  # Rows as a compiler made them.
  folder = conftest.ROOT / 'experiments/results/benchmark'
  committed = folder / 'aot_h100_1_long_short_pallas.json'
  report['rows'] = json.loads(committed.read_text())['rows']
  explained = conftest.explained_fields('prediction_report.md')
  assert explained == sorted(fields(report))


@pytest.mark.parametrize(
  ('changes', 'topology', 'said'),
  [
    ({}, 'v9:2x2', 'v4, v5e, v5p, v6e'),
    ({'train.batch_size': 6}, 'h100:4', 'give a multiple of 4'),
    ({'train.batch_size': 6}, 'v5e:2x2', 'give a multiple of 4'),
    ({'data.source': 'stack', 'data.size': 0}, 'v5e:2x2', 'data.crop'),
  ],
)
def test_what_cannot_be_predicted_is_refused(
  smoke, cpu_slice, changes, topology, said
):
  with pytest.raises(errors.InputError, match=said):
    aot.predict(smoke(changes), topology, say=pytest.fail)


def test_whole_slices_of_the_challenge_need_not_be_read(smoke, cpu_slice):
  # Refused for its network, after the window was known.
  config = smoke({'data.size': 0, 'model.scan': True})
  with pytest.raises(errors.InputError, match=r'model\.scan'):
    aot.predict(config, 'v5e:2x2', say=pytest.fail)
