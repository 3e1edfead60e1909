"""Comparing two benchmarks: what is slower, and what only seems so."""

import copy

import made_benchmarks
from made_benchmarks import report
from made_benchmarks import row
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.reporting import compare

# Medians of three processes that lie within 2 % and 5 %.
TWO = (0.99, 1.0, 1.01)
FIVE = (0.975, 1.0, 1.025)


def only(comparison):
  (one,) = comparison.rows
  return one


def test_equal_reports_are_equal():
  made = report(row(deviation=0.01), row(feed='augment'))
  found = compare.compare(made, copy.deepcopy(made))
  assert [r.ratio for r in found.rows] == [1.0, 1.0]
  assert not found.slower
  assert not any(r.faster for r in found.rows)
  assert (found.only_old, found.only_new, found.differences) == ((), (), ())
  # Also without any spread at all.
  assert found.rows[1].spread == 0


def test_a_slowdown_of_30_percent_with_2_percent_spread_is_found():
  old = report(row(processes=TWO))
  new = report(row(median=0.13, processes=TWO))
  found = compare.compare(old, new)
  assert found.slower
  assert only(found).ratio == pytest.approx(1.3)
  # Each side: a range of 2 %, and a median deviation of 1 %.
  assert only(found).spread == pytest.approx(0.001**0.5)
  # Read the other way round it is a gain.
  back = only(compare.compare(new, old))
  assert back.faster
  assert not back.slower


def test_a_slowdown_of_3_percent_with_5_percent_spread_is_not():
  old, new = row(processes=FIVE), row(median=0.103, processes=FIVE)
  for a, b in ((old, new), (new, old)):
    found = compare.compare(report(a), report(b))
    assert not found.slower
    assert not only(found).faster


def test_one_restless_side_is_enough_to_doubt():
  old, new = row(), row(median=0.103)
  assert compare.compare(report(old), report(new)).slower
  old = row(processes=FIVE)
  assert not compare.compare(report(old), report(new)).slower


def test_deviation_within_a_process_counts_as_well():
  one = (1.0, 1.0, 1.0)
  old, new = row(processes=one), row(median=0.103, processes=one)
  assert compare.compare(report(old), report(new)).slower
  # Of -4 %, 0, 4 %, 0 the median distance is 2 %.
  restless = row(median=0.103, processes=one, deviation=0.04)
  assert compare.spread(restless) == pytest.approx(0.02)
  old = row(processes=one, deviation=0.06)
  assert not compare.compare(report(old), report(restless)).slower


@pytest.mark.parametrize(
  ('between', 'within'), [(0.01, 0.0), (0.01, 0.01), (0.001, 0.02)]
)
def test_chance_is_seldom_taken_for_a_slowdown(between, within):
  random = np.random.default_rng(0)
  rows = [
    made_benchmarks.noisy(random, between, within) | {'batch': i}
    for i in range(1000)
  ]
  old = report(*rows[:500])
  for i, one in enumerate(rows[500:]):
    one['batch'] = i
  found = compare.compare(old, report(*rows[500:]))
  assert sum(r.slower for r in found.rows) <= 15


def test_another_workload_is_refused_by_its_field():
  old, new = report(row()), report(row())
  new['workload']['image_size'] = [256, 256]
  with pytest.raises(errors.InputError) as error:
    compare.compare(old, new)
  assert 'workload.image_size ([512, 512], now [256, 256])' in str(error.value)
  assert 'dataset' not in str(error.value)


def test_rows_are_matched_by_what_they_ran():
  old = report(row(), row(batch=16), row(mode='pmap', devices=4))
  new = report(row(mode='pmap', devices=4), row(batch=32), row())
  found = compare.compare(old, new)
  assert [r.row['mode'] for r in found.rows] == ['pmap', 'jit']
  assert [r['batch'] for r in found.only_old] == [16]
  assert [r['batch'] for r in found.only_new] == [32]
  text = compare.format(found)
  assert 'Only in the older report: train compute jit 1 bf16 16' in text
  assert 'Only in the newer report: train compute jit 1 bf16 32' in text


def test_a_row_twice_in_a_report_is_refused():
  with pytest.raises(errors.InputError, match=r'newer .* 8 default twice'):
    compare.compare(report(row()), report(row(), row()))


def test_a_row_that_fails_now_is_worse_and_one_that_failed_then_is_better():
  works, fails = report(row()), report(row(error='Out of memory.'))
  worse = compare.compare(works, fails)
  assert worse.slower
  assert only(worse).ratio is None
  better = compare.compare(fails, works)
  assert not better.slower
  assert only(better).faster
  assert not compare.compare(fails, fails).slower
  assert 'failed' in compare.format(worse)


def test_what_may_explain_a_ratio_is_named():
  old, new = report(row()), report(row())
  new['software']['jax'] = '0.12.0'
  new['hardware']['device_kind'] = 'Another GPU'
  new['identity']['git'] = 'abc'
  # Different in any two runs.
  new['identity']['date'] = 'later'
  new['hardware']['load_average'] = [9.0, 9.0, 9.0]
  found = compare.compare(old, new)
  assert found.differences == (
    "identity.git ('dfc8d5b', now 'abc')",
    "software.jax ('0.11.2', now '0.12.0')",
    "hardware.device_kind ('Some GPU', now 'Another GPU')",
  )
  lines = compare.format(found).splitlines()
  assert lines[0].startswith(
    "What differs: identity.git ('dfc8d5b', now 'abc')"
  )


def test_the_table_shows_ratio_spread_and_verdict():
  old = report(
    row(processes=TWO), row(batch=16), row(call='inference', mode='sharded')
  )
  new = report(
    row(median=0.13, processes=TWO),
    row(median=0.05, batch=16),
    row(call='inference', mode='sharded', processes=FIVE),
  )
  lines = compare.format(compare.compare(old, new)).splitlines()
  assert lines[0].split()[-1] == 'verdict'
  words = ' '.join(lines[2].split())
  assert words == 'train compute jit 1 bf16 8 100 130 1.300 3.2 slower'
  assert lines[3].split()[-3:] == ['0.500', '0.0', 'faster']
  # A range of 5 %, a median deviation of 2.5 %.
  assert lines[4].split()[-2:] == ['1.000', '5.6']
  assert lines[5] == (
    '3 rows in both: 1 slower, 1 faster, by more than the spread; 0 undecided.'
  )
  assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize('processes', [(1.0,), (1.0, 1.0)])
def test_fewer_than_three_processes_decide_nothing(processes):
  several, few = report(row()), report(row(median=0.2, processes=processes))
  for a, b in ((several, few), (few, several)):
    found = compare.compare(a, b)
    assert only(found).undecided
    assert not found.slower
    assert not only(found).faster
    text = compare.format(found)
    assert text.splitlines()[2].endswith(' undecided')
    assert '0 slower, 0 faster, by more than the spread; 1 undecided' in text
    assert 'fewer than 3 processes' in text


def test_a_machine_with_more_processes_than_cores_decides_nothing():
  old, new = report(row()), report(row(median=0.2))
  assert compare.compare(old, new).slower
  new['hardware'] |= {'load_average': [16.5, 0.0, 0.0], 'cores': 16}
  assert only(compare.compare(old, new)).undecided
  assert only(compare.compare(new, old)).undecided
  new['hardware']['load_average'] = [16.0, 20.0, 20.0]
  assert compare.compare(old, new).slower


def test_a_failure_in_one_process_decides_nothing():
  works, fails = report(row()), report(row(error='Out of memory.'))
  fails['results'][0]['processes'] = 1
  found = compare.compare(works, fails)
  assert only(found).undecided
  assert not found.slower
  assert not only(compare.compare(fails, works)).faster
  assert not only(compare.compare(fails, fails)).undecided


def test_reports_without_a_row_in_both_are_refused():
  with pytest.raises(errors.InputError) as error:
    compare.compare(
      report(row()), report(*(row(batch=b) for b in (1, 2, 4, 16)))
    )
  assert str(error.value) == (
    'The two reports have no row in common: the older one has 1 row(s) (train '
    'compute jit 1 bf16 8), the newer one 4 row(s) (train compute jit 1 bf16 '
    '1, train compute jit 1 bf16 2, train compute jit 1 bf16 4, 1 more). '
    'Measure both with the same fields of config.benchmark.'
  )


def test_a_report_without_rows_is_refused():
  for old, new, words in (
    (report(row()), report(), 'the newer one 0 row(s). Measure'),
    (report(), report(row()), 'the older one has 0 row(s), the'),
    (report(), report(), 'the older one has 0 row(s), the newer one 0 row(s)'),
  ):
    with pytest.raises(errors.InputError) as error:
      compare.compare(old, new)
    assert words in str(error.value)
