"""The command: it measures, compares, and refuses what it cannot use."""

import csv
import importlib.util
import json
import subprocess
import sys
import time

from conftest import ROOT
import made_benchmarks
import pytest
from test_processes import environment
from test_processes import free_port

from skipnet_jax.benchmarking.reporting import report as report_lib

EXPERIMENT = f'--config={ROOT}/experiments/benchmark.py'
SMOKE = f'{EXPERIMENT}:smoke'
# A network that is compiled in seconds.
TINY = (
  '--config.model.base_width=2',
  '--config.model.repetitions=(1, 1, 1, 1, 1, 1, 1)',
  '--config.model.batch_norm=False',
  '--config.model.dropout=0.0',
)


def fields(**values):
  return [f'--config.benchmark.{k}={v}' for k, v in values.items()]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('benchmark')


def test_a_report_on_eight_devices(command, folder):
  path = folder / 'b.json'
  done = command(
    'benchmark',
    SMOKE,
    *TINY,
    *fields(
      feeds="('augment', 'end_to_end')",
      modes="('jit', 'sharded')",
      repetitions=2,
      processes=2,
    ),
    f'--output={path}',
  )
  assert done.code == 0, done
  report = report_lib.read(path)
  keys = [
    (r['call'], r['feed'], r['mode'], r['devices'], r['batch'])
    for r in report['results']
  ]
  assert keys == [
    ('train', 'augment', 'jit', 1, 8),
    ('train', 'end_to_end', 'jit', 1, 8),
    ('train', 'augment', 'sharded', 1, 8),
    ('train', 'augment', 'sharded', 8, 64),
    ('eval', 'compute', 'jit', 1, 8),
    ('inference', 'end_to_end', 'jit', 1, 4),
  ]
  for row in report['results']:
    assert row['error'] is None
    assert row['processes'] == len(row['process_p50']) == 2
    assert row['timing']['n'] == 4
    rate = row['batch'] / row['timing']['mean']
    assert row['images_per_second'] == pytest.approx(rate)
    assert row['roofline']['fraction'] > 0
    assert row['compile']['warm_compile_s'] > 0
    assert 'cpu' in row['mfu_reason']
  by_key = dict(zip(keys, report['results'], strict=True))
  step = by_key['train', 'augment', 'jit', 1, 8]
  wide = by_key['train', 'augment', 'sharded', 8, 64]
  assert wide['model_flops'] == 8 * step['model_flops']
  assert [(e['kind'], e['devices']) for e in report['scaling']] == [
    ('weak', 1),
    ('weak', 8),
  ]
  assert report['hardware']['device_count'] == 8
  assert report['workload']['model'] == 'fc_resnet'
  assert report['identity']['experiment'] == 'benchmark'
  with path.with_suffix('.csv').open() as file:
    raw = list(csv.DictReader(file))
  assert len(raw) == 4 * len(keys)
  # What is measured is said before, what came out after it, then the table.
  assert 'Process 2 of 2' in done.out
  assert '[1/6] train augment jit x1 float32 batch 8' in done.out
  assert 'No MFU' in done.out
  assert 'efficiency' in done.out
  assert done.err == ''


@pytest.fixture(scope='module')
def reports(folder):
  """Two reports; in the second, the only row takes twice as long."""
  paths = []
  for name, factor in (('old', 1), ('new', 2)):
    report = made_benchmarks.report(made_benchmarks.row())
    for row in report['results']:
      for key in row['timing']:
        if key not in ('n', 'warmup'):
          row['timing'][key] *= factor
      row['process_p50'] = [factor * p for p in row['process_p50']]
    paths.append(folder / f'{name}.json')
    report_lib.write(paths[-1], report, [])
  return paths


def test_a_slowdown_ends_with_code_1(command, reports):
  old, new = map(str, reports)
  done = command('benchmark', '--compare', old, new)
  assert done.code == 1
  assert '1 slower' in done.out
  assert done.err == ''
  done = command('benchmark', f'--compare={new}', old)
  assert done.code == 0
  assert '1 faster' in done.out
  assert command('benchmark', '--compare', old, old).code == 0


def test_one_process_never_ends_with_code_1(command, reports, folder):
  one = json.loads(reports[1].read_text())
  one['results'][0]['processes'] = 1
  path = folder / 'one.json'
  path.write_text(json.dumps(one))
  done = command('benchmark', '--compare', str(reports[0]), str(path))
  assert done.code == 0
  assert '1 undecided' in done.out


def test_describe_prints_layers_and_rows_and_measures_nothing(command):
  done = command('benchmark', SMOKE, '--describe')
  assert done.code == 0, done
  assert 'up_1/block_1/' in done.out
  lines = done.out.splitlines()
  start = lines.index(
    'Measured in 3 new process(es), each row 5 times after 1 untimed calls:'
  )
  assert lines[start + 1] == '  train compute jit x1 float32 batch 8'
  assert '  train compute sharded x8 float32 batch 64' in lines
  done = command(
    'benchmark', SMOKE, '--describe', '--config.benchmark.batches=(0,)'
  )
  assert 'train compute jit x1 float32 batch: the largest that fits' in done.out
  # Any other experiment has its layers.
  done = command(
    'benchmark', f'--config={ROOT}/experiments/unet.py', '--describe'
  )
  assert done.code == 0
  assert done.out.splitlines()[-1].startswith('23 convolutions')


def test_reports_of_other_workloads_are_not_compared(command, reports, folder):
  other = json.loads(reports[0].read_text())
  other['workload']['model'] = 'unet'
  path = folder / 'other.json'
  path.write_text(json.dumps(other))
  done = command('benchmark', '--compare', str(reports[0]), str(path))
  assert done.code == 2
  assert 'workload.model' in done.err


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ((), 'No experiment given: use, for example, --config=benchmark.'),
    ((SMOKE,), 'No --output given; give one: JSON file'),
    ((f'{EXPERIMENT}:fast', '--output=o.json'), 'full, cpu, smoke'),
    ((SMOKE, '--output=o.txt'), '.json'),
    ((SMOKE, '--output=o.json', '--until_bce=0'), '--until_bce is 0; give'),
    ((SMOKE, '--output=o.json', '--until_bce=nan'), '--until_bce is nan; give'),
    ((SMOKE, '--output=o.json', '--until_bce=x'), "is 'x'; give a number."),
    (('--compare',), '--compare is given without a value'),
    (('--compare', '--overwrite'), '--compare is given without a value'),
    ((SMOKE, '--output=no/o.json'), 'missing or cannot'),
    (('--compare', 'a.json'), '--compare names 1 report'),
    (('--compare', 'a.json', 'b.json'), 'a.json does not exist'),
    (('--compare', 'a.json', 'b.json', SMOKE), 'either --compare or'),
    ((SMOKE, '--output=o.json', 'stray'), "Unknown argument 'stray'"),
    ((SMOKE, '--output=o.json', '--peer=jax'), "--peer is 'jax'; give torch."),
    (
      (SMOKE, '--output=o.json', '--peer=torch', '--aot=v5e:2x2'),
      'either --aot',
    ),
    ((SMOKE, '--output=o.json', *fields(repetitions=0)), 'repetitions is 0'),
    (
      (SMOKE, '--output=o.json', *fields(repetition=1)),
      'mean benchmark.repetitions?',
    ),
    (
      (SMOKE, '--output=o.json', *fields(foo=1)),
      'field benchmark.foo: skipnet_jax/benchmarking/plan.py has all fields',
    ),
    (
      (SMOKE, '--output=o.json', *fields(matmul_precision='exact')),
      "one of 'default', 'high', 'highest'",
    ),
    (
      (SMOKE, '--output=o.json', *fields(modes="('gpu',)")),
      'among jit, pmap, sharded',
    ),
    (
      (f'--config={ROOT}/experiments/long_short.py', '--output=o.json'),
      'does not say what to measure',
    ),
    # Found by the first process, before it compiles anything.
    (
      (SMOKE, '--output=o.json', *fields(devices='(64,)')),
      'give at most 8',
    ),
    (
      (SMOKE, '--output=o.json', *fields(batches='(3,)', scaling='()')),
      'give multiples of 8',
    ),
  ],
)
def test_refusals(command, tmp_path, monkeypatch, arguments, words):
  monkeypatch.chdir(tmp_path)
  done = command('benchmark', *arguments)
  assert done.code == 2, done
  assert words in done.err
  assert done.err.startswith('error: ')
  assert done.err.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_a_report_is_replaced_only_if_told_so(command, tmp_path):
  path = tmp_path / 'b.json'
  path.write_text('mine')
  done = command('benchmark', SMOKE, f'--output={path}')
  assert done.code == 2
  assert 'pass --overwrite' in done.err
  assert path.read_text() == 'mine'


def test_an_extra_that_is_missing_is_named(command, tmp_path, monkeypatch):
  real = importlib.util.find_spec
  absent = ('torch', 'libtpu')
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name in absent else real(name, *rest),
  )
  output = f'--output={tmp_path / "b.json"}'
  done = command('benchmark', SMOKE, output, '--peer=torch')
  assert done.code == 2
  assert "'.[peer]'" in done.err
  # Ahead of time, any experiment is compiled.
  for experiment in (SMOKE, f'--config={ROOT}/experiments/fcn_lstm.py:smoke'):
    done = command(
      'benchmark',
      experiment,
      '--config.train.batch_size=4',
      output,
      '--aot=v5e:2x2',
    )
    assert done.code == 2
    assert 'libtpu' in done.err
  assert not list(tmp_path.iterdir())


def test_it_is_no_experiment_to_train(command, tmp_path):
  done = command('train', SMOKE, f'--workdir={tmp_path / "run"}')
  assert done.code == 2
  assert 'python -m skipnet_jax.benchmark' in done.err


def test_two_processes_measure_together(folder):
  path, port = folder / 'two.json', free_port()
  started = []
  for process in range(2):
    arguments = [
      SMOKE,
      *TINY,
      *fields(
        modes="('sharded',)",
        calls="('train',)",
        feeds="('compute',)",
        devices='()',
        scaling='()',
        repetitions=2,
      ),
      f'--config.parallel.coordinator=127.0.0.1:{port}',
      '--config.parallel.num_processes=2',
      f'--config.parallel.process_id={process}',
      f'--output={path}',
    ]
    started.append(
      subprocess.Popen(
        [sys.executable, '-m', 'skipnet_jax.benchmark', *arguments],
        cwd=ROOT,
        env=environment(4),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  end = time.monotonic() + 240
  try:
    while any(process.poll() is None for process in started):
      # One that fails leaves the other waiting.
      assert not any(process.poll() for process in started)
      assert time.monotonic() < end, 'the processes wait for each other'
      time.sleep(0.1)
  finally:
    for process in started:
      process.kill()
    outs = [process.communicate()[0] for process in started]
    print(*outs, sep='\n')
  assert [process.returncode for process in started] == [0, 0]
  report = report_lib.read(path)
  assert [(r['call'], r['feed']) for r in report['results']] == [
    ('train', 'compute'),
  ]
  for row in report['results']:
    assert (row['hosts'], row['devices'], row['processes']) == (2, 8, 1)
    assert row['error'] is None
  # Only the first one speaks and writes.
  assert 'train compute sharded x8' in outs[0]
  assert 'train' not in outs[1]
