"""SIGTERM: a run keeps all it trained, and exits with 0."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

from conftest import ROOT
from conftest import SHORT
import jax
import numpy as np
import pytest
from test_resume import assert_same
from test_resume import last_state
from test_resume import records

from skipnet_jax import errors
from skipnet_jax.runs import flow_file
from skipnet_jax.training import epoch
from skipnet_jax.training import loop
from skipnet_jax.training import preemption

EPOCHS = 6
# What one process compiled, however small, the next ones need not.
KEEP_ALL = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


def start(folder):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'skipnet_jax.train',
      '--config=experiments/long_short.py:smoke',
      f'--workdir={folder}',
      f'--config.train.epochs={EPOCHS}',
      *(f'--config.{name}={value}' for name, value in SHORT.items()),
    ],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)} | KEEP_ALL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


class After(preemption.StopSignal):
  """Stops after so many calls."""

  def __init__(self, calls):
    super().__init__()
    self.left = calls

  def should_stop(self):
    self.left -= 1
    return self.left == 0


def cut_short(config, folder, calls):
  with pytest.raises(errors.Stopped, match='Stopped by SIGTERM') as stopped:
    loop.train_and_evaluate(config, folder, After(calls))
  return str(stopped.value)


@pytest.mark.parametrize(
  ('calls', 'where'),
  [
    (1, 'after epoch 0 and 1 steps'),
    (2, 'after epoch 0 and 2 steps'),
    (9, 'after epoch 4 and 1 steps'),
  ],
)
def test_an_interrupted_epoch_resumes_bit_for_bit(
  finished, tmp_path, capsys, calls, where
):
  whole, config, summary = finished
  folder = tmp_path / 'run'
  assert where in cut_short(config, folder, calls)
  # A crash cuts the end of the last line off.
  path = folder / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-20])
  capsys.readouterr()
  again = loop.train_and_evaluate(config, folder)
  assert f'Resuming {where}.' in capsys.readouterr().out
  assert_same(last_state(config, folder)[0], last_state(config, whole)[0])
  assert records(folder) == records(whole)
  names = [f / 'gradient_flow.npz' for f in (folder, whole)]
  (_, found), (_, want) = map(flow_file.read, names)
  assert_same(found, want)
  found, want = map(flow_file.read_first_steps, names)
  assert len(want) == summary['epochs'] * 2
  np.testing.assert_array_equal(found, want)
  for value in (again, summary := dict(summary)):
    del value['seconds'], value['images_per_second'], value['goodput']
  assert again == summary


def test_a_run_on_eight_then_four_then_one_device_equals_one_on_one(
  smoke, tmp_path, capsys
):
  changes = {
    # A batch divides neither the 19 training slices nor the 3 others.
    'data.slices': 22,
    'data.valid': '19-21',
    'train.batch_size': 8,
    'train.epochs': 3,
    'optim.name': 'sgd',
    'optim.learning_rate': 0.1,
    'optim.momentum': 0.9,
    'model.base_width': 2,
    'model.repetitions': (1,) * 7,
  }
  folder, alone, cut = (tmp_path / name for name in ('run', 'alone', 'cut'))
  pmap = {'parallel.mode': 'pmap', 'parallel.devices': 8}
  sharded = {
    'parallel.mode': 'sharded',
    'parallel.devices': 4,
    'data.device_share': 1e-9,
  }
  cut_short(smoke(changes | pmap), folder, 1)
  cut_short(smoke(changes | sharded), folder, 2)
  assert 'The data set stays on the host' in capsys.readouterr().out
  # Two steps a call would jump over the epoch's end.
  loop.train_and_evaluate(smoke(changes | {'train.steps_per_call': 2}), folder)
  config = smoke(changes)
  loop.train_and_evaluate(config, alone)
  (state, _), (want, _) = last_state(config, folder), last_state(config, alone)
  assert int(state.step) == int(want.step) == 6
  # On the same device, bit for bit: a permutation goes on in the next epoch.
  cut_short(config, cut, 3)
  loop.train_and_evaluate(config, cut)
  assert_same(last_state(config, cut)[0], want)
  assert records(cut) == records(alone)
  for row, other in zip(records(folder), records(alone), strict=True):
    for name, value in row.items():
      np.testing.assert_allclose(other[name], value, 1e-3, err_msg=name)
  for line in (alone / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    images = row['images_per_second'] * row['seconds']
    assert images == pytest.approx(2 * 8, rel=1e-2)

  def norm(tree):
    return np.sqrt(
      sum(np.sum(x**2, dtype=float) for x in jax.tree.leaves(tree))
    )

  distance = norm(jax.tree.map(np.subtract, state.params, want.params))
  assert 0 < distance <= 1e-6 * norm(want.params)
  flows = [flow_file.read(f / 'gradient_flow.npz')[1] for f in (folder, alone)]
  for name, value in flows[0].items():
    np.testing.assert_allclose(value, flows[1][name], rtol=1e-3, err_msg=name)


def test_progress_is_read_back_exactly():
  progress = epoch.Part(
    3, {'loss': np.float64(1) / 3, 'flow': np.ones((4, 2)) / 7}, 0.1
  )
  text = json.dumps(progress.to_json())
  again = epoch.Part.from_json(json.loads(text))
  assert again.steps == 3
  assert again.seconds == 0.1
  assert_same(again.sums, progress.sums)


def wait_for(process, condition):
  end = time.monotonic() + 240
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_process_with_sigterm_exits_with_0_at_once(finished, tmp_path):
  whole, config, _ = finished
  folder = tmp_path / 'run'
  process = start(folder)
  # Its banner is written, and the step not compiled.
  wait_for(process, (folder / 'metrics.jsonl').exists)
  begin = time.monotonic()
  process.send_signal(signal.SIGTERM)
  out = process.communicate(timeout=60)[0]
  assert process.returncode == 0, out
  assert 'Stopped by SIGTERM; nothing is lost.' in out
  assert time.monotonic() < begin + 10
  process = start(folder)
  wait_for(process, lambda: (folder / 'metrics.jsonl').stat().st_size > 10)
  begin = time.monotonic()
  process.send_signal(signal.SIGTERM)
  out = process.communicate(timeout=60)[0]
  assert process.returncode == 0, out
  assert 'Stopped by SIGTERM' in out
  assert time.monotonic() < begin + 20
  last = start(folder)
  out = last.communicate(timeout=240)[0]
  assert last.returncode == 0, out
  assert_same(last_state(config, folder)[0], last_state(config, whole)[0])
  assert records(folder) == records(whole)


def test_sigterm_ends_a_process_that_runs_no_python(tmp_path):
  code = """
    import hashlib, os, signal, threading, time
    from skipnet_jax.training import preemption
    with preemption.StopSignal() as stop, stop.exit_at_once_on_sigterm():
      kill = lambda: os.kill(os.getpid(), signal.SIGTERM)
      threading.Timer(0.2, kill).start()
      # Minutes in C, as a compilation is.
      hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)
    """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    timeout=60,
    check=False,
  )
  assert done.returncode == 0
  assert b'nothing is lost' in done.stdout


def test_sigterm_outside_exit_at_once_asks_to_stop():
  before = signal.getsignal(signal.SIGTERM)
  with preemption.StopSignal() as stop_signal:
    assert not stop_signal.should_stop()
    signal.raise_signal(signal.SIGTERM)
    end = time.monotonic() + 10
    while not stop_signal.should_stop():
      assert time.monotonic() < end
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_lost_terminal_does_not_end_a_training():
  before = signal.getsignal(signal.SIGHUP)
  with preemption.StopSignal() as stop_signal:
    signal.raise_signal(signal.SIGHUP)
    assert not stop_signal.should_stop()
  assert signal.getsignal(signal.SIGHUP) == before
