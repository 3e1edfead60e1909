"""Several processes train what one device trains, and end together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

from conftest import ROOT
from conftest import experiment
import jax
import numpy as np
import pytest
from test_resume import last_state
from test_resume import records

from skipnet_jax.data import pipeline
from skipnet_jax.data import sources
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.training import loop

# Of the networks, the one that compiles fastest: every process compiles it.
SYSTEM = 'cumedvision'
EPOCHS = 8
# What one process compiled, however small, the next ones need not.
KEEP_ALL = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
CHANGES = {
  'optim.name': 'sgd',
  'optim.learning_rate': 0.01,
  'optim.momentum': 0.9,
  'data.size': 32,
  'data.train': '0-7',
  'train.batch_size': 8,
  'train.epochs': EPOCHS,
  'log.progress': False,
  'log.tensorboard': False,
}


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def environment(devices):
  """Of one of several processes, with devices of its own."""
  flags = os.environ['XLA_FLAGS'].replace('count=8', f'count={devices}')
  changes = {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags} | KEEP_ALL
  return os.environ | changes


class Processes:
  """The same command in several processes of eight devices in all.

  Args:
    folder: of the run.
    count: how many processes.
    changes: fields of the config; by process, where it is a list.
  """

  def __init__(self, folder, count, changes=CHANGES):
    port = free_port()
    self.folder = folder
    self.outputs = [
      folder.with_name(f'{folder.name}_{port}_{i}.txt') for i in range(count)
    ]
    self.started = []
    for i, output in enumerate(self.outputs):
      fields = (changes[i] if isinstance(changes, list) else changes) | {
        'parallel.mode': 'sharded',
        'parallel.coordinator': f'127.0.0.1:{port}',
        'parallel.num_processes': count,
        'parallel.process_id': i,
      }
      with output.open('w') as file:
        self.started.append(
          subprocess.Popen(
            [
              sys.executable,
              '-m',
              'skipnet_jax.train',
              f'--config=experiments/{SYSTEM}.py:smoke',
              f'--workdir={folder}',
              *(f'--config.{name}={value}' for name, value in fields.items()),
            ],
            cwd=ROOT,
            env=environment(8 // count),
            stdout=file,
            stderr=subprocess.STDOUT,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.started:
      process.kill()
      process.wait()
    print(*self.texts(), sep='\n')

  def texts(self):
    return [output.read_text() for output in self.outputs]

  def wait_for_epoch(self, epoch):
    end = time.monotonic() + 240
    while f'epoch {epoch:4d}' not in self.outputs[0].read_text():
      assert all(process.poll() is None for process in self.started)
      assert time.monotonic() < end
      time.sleep(0.05)

  def codes(self, seconds):
    """Exit codes of all, which must end within so many seconds."""
    end = time.monotonic() + seconds
    for process in self.started:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, end - time.monotonic()))
    return [process.poll() for process in self.started]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The folder of the same run on one device, and its config."""
  folder = tmp_path_factory.mktemp('alone') / 'run'
  config = experiment(SYSTEM).get_config('smoke')
  config.update_from_flattened_dict(CHANGES)
  loop.train_and_evaluate(config, folder)
  return folder, config


def _distance(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return np.sqrt(sum(np.sum((x - y) ** 2, dtype=float) for x, y in pairs))


def assert_equal_runs(folder, alone):
  alone, config = alone
  (state, meta), (want, want_meta) = (
    last_state(config, folder),
    last_state(config, alone),
  )
  assert int(state.step) == int(want.step) == EPOCHS
  zero = jax.tree.map(np.zeros_like, want.params)
  distance = _distance(state.params, want.params)
  assert distance <= 1e-6 * _distance(want.params, zero)
  assert distance > 0  # Otherwise one process trained, or read the other's.
  for a, b in zip(records(folder), records(alone), strict=True):
    assert a.keys() == b.keys()
    for name, value in a.items():
      np.testing.assert_allclose(value, b[name], rtol=1e-4, err_msg=name)
  assert meta['best_epoch'] == want_meta['best_epoch']


def test_a_run_of_four_processes_survives_a_death_and_resumes_as_two(
  alone, tmp_path
):
  folder = tmp_path / 'run'
  with Processes(folder, 4) as run:
    # The checkpoint of the epoch before is on the disk.
    run.wait_for_epoch(2)
    run.started[2].kill()
    codes = run.codes(60)
    texts = run.texts()
  assert codes[2] == -signal.SIGKILL
  for i in (0, 1, 3):
    assert codes[i] == 1
    assert f'error: Process {i} of 4 lost another one' in texts[i]
    assert 'Traceback' not in texts[i]
  with Processes(folder, 2) as run:
    run.wait_for_epoch(3)
    run.started[1].terminate()
    assert run.codes(60) == [0, 0]
    texts = run.texts()
  assert 'Resuming after epoch' in texts[0]
  for text in texts:
    assert 'Stopped by SIGTERM after epoch' in text
  with Processes(folder, 2) as run:
    assert run.codes(240) == [0, 0]
    first, second = run.texts()
  # Only the first process speaks and records.
  assert '8 x cpu, mode sharded, 2 processes' in first
  assert f'epoch {EPOCHS:4d}' in first
  assert 'epoch' not in second
  assert [row['epoch'] for row in records(folder)] == list(range(1, EPOCHS + 1))
  assert_equal_runs(folder, alone)


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    (
      {'data.source': 'stack', 'data.image': '/no/i', 'data.label': '/no'},
      'there is no stack at /no/i',
    ),
    (
      {'optim.learning_rate': 0.5, 'log.tensorboard': True},
      'optim.learning_rate is 0.5, but 0.01 in process 0: start every process',
    ),
    (
      {'data.slices': 12, 'log.progress': True},
      'data.slices is 12, but 10 in process 0; fingerprint of the data is ',
    ),
  ],
)
def test_an_input_error_of_one_process_ends_all(changes, reason, tmp_path):
  folder = tmp_path / 'run'
  with Processes(folder, 2, [CHANGES, CHANGES | changes]) as run:
    assert run.codes(90) == [2, 2]
    first, second = run.texts()
  assert f'error: {reason}' in second
  assert f'error: Process 1 refuses: {reason}' in first
  # Process 0 makes the folder only once all have their data.
  written = [path.name for path in folder.glob('*')]
  assert written == ([] if 'data.image' in changes else ['.lock'])


def joined(port, count, process):
  """One of several processes that joins the others, and then sleeps."""
  code = f"""
    import time
    from skipnet_jax import config
    from skipnet_jax.training import heartbeat
    from skipnet_jax.training import processes
    heartbeat._INTERVAL, heartbeat._LIMIT = 0.5, 4
    c = config.get_default().parallel
    c.coordinator, c.num_processes = '127.0.0.1:{port}', {count}
    c.process_id = {process}
    processes.start(c)
    print('joined', flush=True)
    with processes.abort_together():
      time.sleep(60)
    """
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)],
    env=environment(1),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


# By signal to one of two processes: its exit code, and what the other one says
# where the lost one was process 0 and where it was process 1.
LOST = {
  signal.SIGSTOP: (
    1,
    ('process 0 did not answer for 4 s', 'process 1 did not answer for 4 s'),
  ),
  signal.SIGKILL: (
    -signal.SIGKILL,
    ('the reason is above', 'process 1 did not answer for 4 s'),
  ),
  signal.SIGINT: (
    130,
    (
      'process 0 ended because it was interrupted',
      'process 1 ended because it was interrupted',
    ),
  ),
}


def test_a_lost_process_ends_the_others():
  # Most of the time is waiting, so all pairs wait at once: for each signal, one
  # that loses process 0, and one that loses process 1.
  pairs, started = {}, []
  try:
    for event in LOST:
      pairs[event] = []
      for port in (free_port(), free_port()):
        pairs[event].append([joined(port, 2, i) for i in range(2)])
        started += pairs[event][-1]
      for process in started[-4:]:
        assert process.stdout.readline() == 'joined\n'
      for which, pair in enumerate(pairs[event]):
        pair[which].send_signal(event)
      if event == signal.SIGSTOP:
        stopped = time.monotonic()
    time.sleep(max(0, stopped + 8 - time.monotonic()))
    for which, pair in enumerate(pairs[signal.SIGSTOP]):
      pair[which].send_signal(signal.SIGCONT)
    texts = {process: process.communicate(timeout=30)[1] for process in started}
  finally:
    for process in started:
      process.kill()
  for event, (own, others) in LOST.items():
    for which, pair in enumerate(pairs[event]):
      lost, other = pair[which], pair[1 - which]
      assert lost.returncode == own
      assert other.returncode == 1
      last = texts[other].splitlines()[-1]
      assert last.startswith(
        f'error: Process {1 - which} of 2 lost another one ('
      )
      assert others[which] in last


def test_a_process_id_that_another_process_has_is_refused():
  port = free_port()
  # Process 0 never comes, so that the one which is not refused waits.
  started = [joined(port, 2, 1) for _ in range(2)]
  try:
    end = time.monotonic() + 60
    while all(process.poll() is None for process in started):
      assert time.monotonic() < end
      time.sleep(0.1)
    started.sort(key=lambda process: process.poll() is None)
    refused, waiting = started
    assert 'process_id is 1, but another process' in refused.communicate()[1]
    assert waiting.poll() is None
  finally:
    for process in started:
      process.kill()
      process.communicate()


@pytest.mark.parametrize('process', [0, 1])
def test_a_process_without_the_others_names_the_address(process):
  port = free_port()
  code = f"""
    from skipnet_jax import config
    from skipnet_jax.training import processes
    processes.JOIN, processes._NOTICE = 2, 1
    c = config.get_default().parallel
    c.update(
      coordinator='127.0.0.1:{port}', num_processes=2, process_id={process}
    )
    processes.start(c)
    """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    env=environment(1),
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 2
  waiting, error = done.stderr.splitlines()
  where = f'127.0.0.1:{port}'
  assert waiting == f'Waiting at {where}, as process {process} of 2.'
  assert error.startswith(f"error: parallel.coordinator is '{where}'")
  assert 'within 2 s' in error


def test_sigterm_ends_a_process_that_waits_for_the_others():
  code = f"""
    from skipnet_jax import config
    from skipnet_jax import signals
    from skipnet_jax.training import processes
    processes._NOTICE, signals._GRACE = 0.1, 0.1
    c = config.get_default().parallel
    c.update(coordinator='127.0.0.1:{free_port()}', num_processes=2)
    with signals.Interruption('run it again.'):
      processes.start(c)
    """
  with subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)],
    env=environment(1),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      assert process.stderr.readline().startswith('Waiting at')
      process.terminate()
      output, _ = process.communicate(timeout=30)
    finally:
      process.kill()
  assert process.returncode == 128 + signal.SIGTERM
  assert output == '\nStopped by SIGTERM; run it again.\n'


def test_the_devices_train_each_slice_once_an_epoch(smoke):
  config = smoke(
    {'data.slices': 18, 'data.valid': '16-17'} | {'train.batch_size': 8}
  )
  data = sources.load(config)
  found = pipeline.make_pipeline(config, data, 8)
  parallel = parallel_lib.make_parallel(
    smoke({'parallel.mode': 'sharded'}).parallel
  )
  seen = []
  for step in range(found.steps_per_epoch):
    plan = jax.jit(
      lambda step: parallel.divide(found.plan(jax.random.key(3), step))['index']
    )(step)
    parts = [shard.data.tolist() for shard in plan.addressable_shards]
    assert [len(part) for part in parts] == [1] * 8
    seen += [index for part in parts for index in part]
  assert sorted(seen) == list(data.train)
