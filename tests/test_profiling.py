"""Traces joined with HLO: a product of known bytes, and a written program."""

import csv
import pathlib

import conftest
import jax
import jax.numpy as jnp
import made_hlo
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.hlo import profiling
from skipnet_jax.benchmarking.hlo import program as program_lib


@pytest.fixture(scope='module')
def program():
  return program_lib.Program(made_hlo.HLO)


def test_a_fusion_is_of_the_layer_that_decides_its_kind(program):
  (row,) = profiling.table(program, [profiling.Event('out', 0, 1.0)], 1)
  assert row['layer'] == 'down_1/conv (gradient)'


def test_times_and_bytes_are_those_of_one_step(program):
  events = [profiling.Event('moved', t, 0.5) for t in range(6)]
  (row,) = profiling.table(program, events, 2)
  assert row['seconds'] == 1.5
  assert row['runs'] == 3
  assert row['bytes'] == 3 * 2 * made_hlo.IMAGE


def test_a_loop_does_not_count_beside_what_it_runs(program):
  loop = profiling.Event('loop', 0, 2.0)
  inner = profiling.Event('total', 0.5, 1.0)
  assert [r['name'] for r in profiling.table(program, [loop], 1)] == ['loop']
  both = profiling.table(program, [loop, inner], 1)
  assert [row['name'] for row in both] == ['total']


def test_time_in_which_two_run_is_covered_once():
  spans = [(0, 2), (1, 0.5), (1.5, 1), (4, 1)]
  events = [profiling.Event('x', start, length) for start, length in spans]
  assert profiling.covered(events) == pytest.approx(2.5 + 1)
  assert profiling.covered([]) == 0


def test_the_table_shows_shares_that_add_to_one(program):
  events = [
    profiling.Event('moved', 0, 0.003),
    profiling.Event('flip', 0.003, 0.001),
  ]
  rows = profiling.table(program, events, 1)
  text = profiling.format_table(rows, wall=0.008, busy=0.004)
  assert 'cover 50.0% of it' in text
  assert '75.0%' in text
  assert '25.0%' in text
  assert max(map(len, text.splitlines())) <= 100


def test_a_traced_product_is_found_with_its_bytes(tmp_path):
  m, k, n, steps = 256, 192, 320, 3
  left, right = jnp.ones((m, k)), jnp.ones((k, n))
  compiled = jax.jit(jnp.matmul).lower(left, right).compile()
  jax.block_until_ready(compiled(left, right))
  with jax.profiler.trace(str(tmp_path)):
    for _ in range(steps):
      jax.block_until_ready(compiled(left, right))
  (path,) = tmp_path.rglob('*.xplane.pb')
  program = program_lib.Program(compiled.as_text())
  events = profiling.read_events(path, program)
  rows = profiling.table(program, events, steps)
  (row,) = [row for row in rows if row['kind'] == 'dot']
  assert row['bytes'] == 4 * (m * k + k * n + m * n)
  assert row['runs'] == 1
  assert 0 < row['seconds'] < 1
  written = tmp_path / 'operations.csv'
  profiling.write_csv(written, rows)
  with written.open() as file:
    assert [r['name'] for r in csv.DictReader(file)] == [
      r['name'] for r in rows
    ]


def test_a_folder_that_cannot_be_made_is_refused_before_compiling(
  command, tmp_path
):
  (tmp_path / 'file').write_text('mine')
  config = f'--config={conftest.ROOT}/experiments/benchmark.py:smoke'
  for output in (tmp_path / 'file' / 'sub', pathlib.Path('/proc/sub')):
    done = command('tools/profile.py', config, f'--output={output}')
    assert done.code == 2
    assert f'The folder {output} cannot be written' in done.err
    assert 'compiling' not in done.out


def test_the_step_of_several_devices_is_not_profiled(command, tmp_path):
  config = f'--config={conftest.ROOT}/experiments/benchmark.py:smoke'
  mode, output = '--config.parallel.mode=pmap', f'--output={tmp_path}/a'
  done = command('tools/profile.py', config, mode, output)
  assert done.code == 2
  assert "parallel.mode is 'pmap', but the step of one device" in done.err


def test_a_profile_that_fails_leaves_no_folder(command, monkeypatch, tmp_path):
  def fail(*_):
    raise errors.RunError('Out of luck.')

  monkeypatch.setattr(workload.Bench, 'build', fail)
  config = f'--config={conftest.ROOT}/experiments/benchmark.py:smoke'
  done = command('tools/profile.py', config, f'--output={tmp_path}/a/b')
  assert (done.code, done.err) == (1, 'error: Out of luck.\n')
  assert list(tmp_path.rglob('*')) == [tmp_path / 'a']
