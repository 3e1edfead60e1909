"""Two processes of four devices each train what one device trains."""

import os
import socket
import subprocess
import sys
import time

from conftest import ROOT
from conftest import SHORT
import jax
import numpy as np
import pytest
from test_resume import last_state
from test_resume import records

from skipnet_jax.training import loop

CHANGES = {
  'optim.name': 'sgd',
  'optim.learning_rate': 0.1,
  'optim.momentum': 0.9,
  'data.train': '0-7',
  'train.batch_size': 8,
  'train.epochs': 5,
}


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def environment():
  """Of one of several processes, with four devices of its own."""
  flags = os.environ['XLA_FLAGS'].replace('count=8', 'count=4')
  return os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags}


def start(folder, port, process, count, output):
  """One of several processes."""
  fields = (
    SHORT
    | CHANGES
    | {
      'parallel.mode': 'sharded',
      'parallel.coordinator': f'127.0.0.1:{port}',
      'parallel.num_processes': count,
      'parallel.process_id': process,
    }
  )
  with output.open('w') as file:
    return subprocess.Popen(
      [
        sys.executable,
        '-m',
        'skipnet_jax.train',
        '--config=experiments/long_short.py:smoke',
        f'--workdir={folder}',
        *(f'--config.{name}={value}' for name, value in fields.items()),
      ],
      cwd=ROOT,
      env=environment(),
      stdout=file,
      stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """The folder of a run of two processes, and what each printed."""
  home = tmp_path_factory.mktemp('both')
  folder, port = home / 'run', free_port()
  outputs = [home / f'{i}.txt' for i in range(2)]
  started = [start(folder, port, i, 2, outputs[i]) for i in range(2)]
  end = time.monotonic() + 240
  try:
    # One that fails leaves the other waiting.
    while any(process.poll() is None for process in started):
      assert not any(process.poll() for process in started)
      assert time.monotonic() < end, 'the processes wait for each other'
      time.sleep(0.1)
  finally:
    for process in started:
      process.kill()
      process.wait()
    outs = [output.read_text() for output in outputs]
    print(*outs, sep='\n')
  assert [process.returncode for process in started] == [0, 0]
  return folder, outs


def _distance(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return np.sqrt(sum(np.sum((x - y) ** 2, dtype=float) for x, y in pairs))


def test_two_processes_equal_one_device(both, smoke, tmp_path):
  folder, _ = both
  alone = tmp_path / 'alone'
  config = smoke(CHANGES)
  loop.train_and_evaluate(config, alone)
  (state, meta), (want, want_meta) = (
    last_state(config, folder),
    last_state(config, alone),
  )
  assert int(state.step) == int(want.step) == 5
  zero = jax.tree.map(np.zeros_like, want.params)
  distance = _distance(state.params, want.params)
  assert distance <= 1e-6 * _distance(want.params, zero)
  assert distance > 0  # Otherwise one process trained, or read the other's.
  for a, b in zip(records(folder), records(alone), strict=True):
    assert a.keys() == b.keys()
    for name, value in a.items():
      np.testing.assert_allclose(value, b[name], rtol=1e-4, err_msg=name)
  assert meta['best_epoch'] == want_meta['best_epoch']


def test_only_the_first_process_speaks_and_records(both):
  folder, (first, second) = both
  assert '8 x cpu, mode sharded, 2 processes' in first
  assert 'epoch    5' in first
  assert 'epoch' not in second
  assert [row['epoch'] for row in records(folder)] == [1, 2, 3, 4, 5]
