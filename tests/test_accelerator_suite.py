"""The suite with pieces that take no time, and the parity piece."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

from conftest import ROOT
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking.suite import accelerator
from skipnet_jax.benchmarking.suite import device as device_lib
from skipnet_jax.benchmarking.suite import suite

WRITE = (
  "import json, sys; json.dump({'lines': ['fine']}, open(sys.argv[1], 'w'))"
)


def piece(name, log, code=WRITE):
  noted = f'open({str(log)!r}, "a").write({name + " "!r}); {code}'
  return suite.Piece(name, (sys.executable, '-c', noted))


@pytest.fixture
def run(tmp_path):
  def call(pieces, budget=60.0, identity=None, **more):
    return suite.run(
      pieces,
      tmp_path / 'out',
      budget=budget,
      identity=identity or {'code': 'a'},
      say=lambda text: None,
      **more,
    )

  return call


def statuses(summary):
  return [row['status'] for row in summary['pieces']]


def test_pieces_run_in_order_and_leave_a_file_each(run, tmp_path):
  log = tmp_path / 'log'
  summary = run([piece(name, log) for name in ('b', 'a', 'c')])
  assert log.read_text() == 'b a c '
  assert statuses(summary) == [suite.DONE] * 3
  names = {path.name for path in (tmp_path / 'out').iterdir()}
  assert names == {'a.json', 'b.json', 'c.json', 'summary.json', 'table.txt'}
  assert 'fine' in (tmp_path / 'out' / 'table.txt').read_text()


def test_a_finished_piece_is_skipped(run, tmp_path):
  log = tmp_path / 'log'
  run([piece('a', log)])
  summary = run([piece('a', log), piece('b', log)])
  assert log.read_text() == 'a b '
  assert statuses(summary) == [suite.DONE] * 2
  assert summary['pieces'][0]['lines'] == ['fine']


@pytest.mark.parametrize('code', [WRITE, 'sys = 1 / 0'])
def test_results_of_another_identity_are_kept(run, tmp_path, code):
  log, out = tmp_path / 'log', tmp_path / 'out'
  old = {'device_kind': 'cpu', 'config': {'seed': 0}}
  new = {'device_kind': 'Some GPU', 'config': {'seed': 1}, 'code': 'c'}
  run([piece('b', log, code)], identity=old)
  before = {path: path.read_bytes() for path in out.iterdir()}
  with pytest.raises(errors.InputError) as error:
    run([piece('a', log), piece('b', log)], identity=new)
  assert str(error.value) == (
    f"{out}/b.json was measured under other conditions: code (None, now 'c'), "
    "device_kind ('cpu', now 'Some GPU'), config.seed (0, now 1); choose "
    'another --output.'
  )
  assert before == {path: path.read_bytes() for path in out.iterdir()}
  assert log.read_text() == 'b '
  # The summary has results too.
  (out / 'b.json').unlink()
  with pytest.raises(errors.InputError, match=r'summary\.json was .* 3 more;'):
    run(
      [piece('b', log)], identity=new | {'versions': dict.fromkeys('wxyz', 1)}
    )


def test_a_failing_piece_is_recorded_and_the_next_goes_on(run, tmp_path):
  log = tmp_path / 'log'
  pieces = [piece('a', log, 'sys = 1 / 0'), piece('b', log)]
  summary = run(pieces)
  assert statuses(summary) == [suite.FAILED, suite.DONE]
  record = json.loads((tmp_path / 'out' / 'a.json').read_text())
  assert 'exit code 1: ZeroDivisionError' in record['error']
  run(pieces)
  assert log.read_text() == 'a b a '


def test_a_piece_that_writes_nothing_has_failed(run, tmp_path):
  summary = run([piece('a', tmp_path / 'log', 'pass')])
  assert summary['pieces'][0]['error'] == 'it wrote no result'


def test_a_spent_budget_stops_a_piece_and_keeps_what_it_found(run, tmp_path):
  log = tmp_path / 'log'
  slow = piece('a', log, f'exec({WRITE!r}); import time; time.sleep(60)')
  summary = run([slow, piece('b', log)], budget=2.0)
  assert statuses(summary) == [suite.FAILED, suite.LEFT]
  assert 'budget' in summary['pieces'][0]['error']
  assert summary['pieces'][0]['lines'] == ['fine']
  assert log.read_text() == 'a '


def test_a_piece_that_takes_too_long_leaves_time_for_the_next(run, tmp_path):
  log = tmp_path / 'log'
  slow = piece('a', log, f'exec({WRITE!r}); import time; time.sleep(60)')
  slow = dataclasses.replace(slow, limit=1.5)
  summary = run([slow, piece('b', log)])
  assert statuses(summary) == [suite.FAILED, suite.DONE]
  assert summary['pieces'][0]['error'] == 'stopped after 2 s, its limit'
  assert summary['pieces'][0]['lines'] == ['fine']


def test_an_interrupted_piece_keeps_what_it_found(run, tmp_path):
  log = tmp_path / 'log'
  # The suite is its parent.
  code = f'{WRITE}; import os, signal, time; '
  code += 'os.kill(os.getppid(), signal.SIGINT); time.sleep(60)'
  with pytest.raises(KeyboardInterrupt):
    run([piece('a', log), piece('b', log, code), piece('c', log)])
  assert log.read_text() == 'a b '
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert statuses(summary) == [suite.DONE, suite.FAILED, suite.LEFT]
  assert summary['pieces'][1]['error'] == suite.INTERRUPTED
  assert summary['pieces'][1]['lines'] == ['fine']


def test_two_suites_do_not_share_a_folder(run, tmp_path):
  (tmp_path / 'out').mkdir()
  with (
    suite._locked(tmp_path / 'out'),
    pytest.raises(errors.InputError, match='wait until it ends'),
  ):
    run([piece('a', tmp_path / 'log')])
  run([piece('a', tmp_path / 'log')])


def test_a_full_disk_is_found_before_anything_is_measured(
  run, tmp_path, monkeypatch
):
  def full(path, value):
    raise OSError(errno.ENOSPC, 'No space left on device', path)

  monkeypatch.setattr(suite.files, 'write_json', full)
  with pytest.raises(OSError, match='No space left'):
    run([piece('a', tmp_path / 'log')])
  assert not (tmp_path / 'log').exists()


def test_the_rest_is_marked_when_no_time_is_left(run, tmp_path):
  log = tmp_path / 'log'
  ticks = iter(range(0, 1000, 40))
  pieces = [piece(name, log) for name in 'abc']
  summary = run(pieces, budget=70.0, clock=lambda: next(ticks))
  assert statuses(summary) == [suite.DONE, suite.LEFT, suite.LEFT]
  assert not (tmp_path / 'out' / 'b.json').exists()


def test_a_piece_with_nothing_to_do_says_why(run, tmp_path):
  log = tmp_path / 'log'
  code = WRITE.replace("'lines': ['fine']", "'skipped': 'no torch'")
  row = run([piece('a', log, code)])['pieces'][0]
  assert (row['status'], row['error']) == (suite.SKIPPED, 'no torch')


def test_a_budget_of_nothing_is_refused(run):
  with pytest.raises(errors.InputError, match='0 minutes'):
    run([], budget=0.0)


def test_what_was_spent_before_counts(run, tmp_path):
  summary = run([piece('a', tmp_path / 'log')], budget=9.0, spent=9.0)
  assert statuses(summary) == [suite.LEFT]


@pytest.fixture
def jax_finds(monkeypatch):
  """Replaces the process that looks for the device."""

  def put(code=0, out='', err='', error=None):
    def run(command, env, **_):
      asked.append(env['JAX_PLATFORMS'])
      if error:
        raise error
      return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(device_lib.subprocess, 'run', run)

  asked = put.asked = []
  return put


def test_the_kind_of_the_device_is_what_jax_finds(jax_finds):
  jax_finds(out='a plugin speaks\n["gpu", "NVIDIA H200"]\n')
  assert device_lib.device_kind('gpu') == 'NVIDIA H200'
  jax_finds(out='["tpu", "TPU v5 lite"]\n')
  assert device_lib.device_kind('tpu') == 'TPU v5 lite'
  assert jax_finds.asked == ['cuda,cpu', 'tpu,cpu']
  assert device_lib.device_kind('cpu') == 'cpu'


@pytest.mark.parametrize(
  ('found', 'reason'),
  [
    ({'out': '["cpu", "cpu"]\n'}, 'JAX uses the CPU instead'),
    ({'code': 1, 'err': 'Traceback\nRuntimeError: no libtpu.\n'}, 'no libtpu'),
    ({'error': subprocess.TimeoutExpired('', 9)}, 'JAX did not answer within'),
  ],
)
def test_a_missing_device_is_refused(jax_finds, found, reason):
  jax_finds(**found)
  with pytest.raises(
    errors.InputError, match=rf'No TPU was found \(.*{reason}'
  ):
    device_lib.device_kind('tpu')


@pytest.mark.parametrize(
  'words', ['--budget_minutes=1', '--smoke --device=gpu']
)
def test_the_suite_does_not_measure_the_cpu_as_a_gpu(
  command, tmp_path, monkeypatch, words
):
  # Hides the GPU of this machine, if it has one.
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  for name in ('JAX_PLATFORMS', 'PYTHONPATH'):
    monkeypatch.setenv(name, os.environ.get(name, ''))
  out = tmp_path / 'out'
  done = command(
    'tools/accelerator_suite.py', f'--output={out}', *words.split()
  )
  assert done.code == 2
  assert done.err.startswith('error: No GPU was found (')
  assert done.err.endswith('or give --device=cpu.\n')
  assert done.err.count('\n') == 1
  assert not out.exists()


def test_the_kind_of_the_device_is_part_of_the_identity(
  command, tmp_path, monkeypatch
):
  for name in ('JAX_PLATFORMS', 'PYTHONPATH'):
    monkeypatch.setenv(name, os.environ.get(name, ''))
  identities = []

  def run(pieces, folder, *, identity, **_):
    identities.append(identity)
    return {'pieces': []}

  monkeypatch.setattr(suite, 'run', run)
  for kind in ('NVIDIA H100', 'NVIDIA H200'):
    monkeypatch.setattr(device_lib, 'device_kind', lambda device, k=kind: k)
    assert command('tools/accelerator_suite.py', '--output=out').code == 0
  a, b = identities
  assert config_identity.differences(a, b) == [
    "device_kind ('NVIDIA H100', now 'NVIDIA H200')"
  ]


@pytest.mark.parametrize('result', ['--result={}', '--result {}'])
def test_a_piece_names_the_command_of_the_suite(
  command, tmp_path, monkeypatch, result
):
  path = tmp_path / 'parity.json'

  def run(config, save):
    save({'command': environment.command()})

  monkeypatch.setitem(accelerator.PIECES, 'parity', accelerator.Piece(run, 9))
  words = f'--smoke --piece=parity {result.format(path)}'
  assert command('tools/accelerator_suite.py', *words.split()).code == 0
  expected = 'python tools/accelerator_suite.py --smoke'
  assert json.loads(path.read_text()) == {'command': expected}


def test_the_pieces_are_in_order_of_worth():
  names = list(accelerator.PIECES)
  limits = [piece.limit for piece in accelerator.PIECES.values()]
  # The first five fit into nine minutes.
  assert sum(limits[:5]) <= 500
  assert names == [
    'parity',
    'throughput',
    'nvidia_unet',
    'peer',
    'predictions',
    'scan',
    'systems',
    'epoch',
    'determinism',
  ]


def test_parity_of_a_device_with_itself(smoke):
  config = smoke()
  config.benchmark = plan.get_default()
  results = []
  accelerator.parity(config, results.append)
  found = results[-1]
  parts = {'logits', 'loss', 'gradient'}
  assert set(found['fc_resnet']) == parts | {'statistics'}
  assert set(found['unet']) == parts
  assert max(max(found[n].values()) for n in ('fc_resnet', 'unet')) == 0


def test_nvidias_unet_is_theirs_beside_their_rates(monkeypatch):
  config = accelerator.adapt(
    config_lib.load_experiment(ROOT / 'experiments/benchmark.py', 'full'), False
  )
  measured, results = [], []

  def run(one, say):
    measured.append(one)
    return {'results': []}, []

  monkeypatch.setattr(accelerator.sweep, 'run', run)
  monkeypatch.setattr(accelerator.report_lib, 'format_table', lambda _: 'table')
  accelerator.nvidia_unet(config, results.append)
  rows = [(c.benchmark.batches, c.benchmark.dtypes) for c in measured]
  dtypes = ('bfloat16', 'float32')
  assert rows == [((b,), (d,)) for d in dtypes for b in (8, 1)]
  one = measured[0]
  # 388 pixels of 572, cross-entropy and Dice, Adam.
  assert (one.model.up_kernel, one.data.crop) == (3, 388)
  assert (one.train.loss, one.optim.name) == ('bce_dice', 'adam')
  assert one.data.border_weight == 0
  assert '  A100 40GB, TF32, batch 8: 46.26 images/s' in results[-1]['lines']
  assert results[-1]['lines'].count('table') == 4


def test_a_committed_prediction_is_found_by_its_device():
  config = config_lib.load_experiment(
    ROOT / 'experiments/long_short.py', 'paper'
  )
  config.model.dtype, config.train.batch_size = 'bfloat16', 8
  folder = ROOT / 'experiments/results/benchmark'
  for kernels, end in (('xla', ''), ('pallas', '_pallas')):
    config.train.kernels = kernels
    for card in ('h100', 'h200', 'b200'):
      path = folder / f'aot_{card}_1_long_short{end}.json'
      committed = json.loads(path.read_text())
      kind = committed['topology']['device_kind']
      assert accelerator._predicted(kind, config) == committed['rows'][0]
  assert accelerator._predicted('NVIDIA A100-SXM4-80GB', config) is None
  config.train.batch_size = 4
  assert accelerator._predicted('NVIDIA H100 80GB HBM3', config) is None
