"""What must not grow with the length of a run."""

import os
import threading

import jax

from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import run_log
from skipnet_jax.training import loop

COMPILED = '/jax/core/compile/backend_compile_duration'


def test_nothing_is_compiled_or_left_open_after_the_first_epoch(
  smoke, drawn, tmp_path, monkeypatch
):
  compiled, seen = [], []
  write, save = run_log.RunLog.write, checkpoint.Checkpoints.save

  def save_whole(self, *args, **kwargs):
    # In the background it would have files and threads of its own.
    save(self, *args, **kwargs)
    self.wait()

  def note(self, record):
    write(self, record)
    files = [
      os.readlink(f'/proc/self/fd/{fd}')
      for fd in os.listdir('/proc/self/fd')
      if os.path.exists(f'/proc/self/fd/{fd}')
    ]
    seen.append((len(compiled), len(files), threading.active_count()))

  monkeypatch.setattr(checkpoint.Checkpoints, 'save', save_whole)
  monkeypatch.setattr(run_log.RunLog, 'write', note)

  def listen(event, duration, **_):
    del duration
    if event == COMPILED:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    # A program that no test has compiled before: it shows that they are heard.
    jax.jit(lambda x: x + 0.125 * len(compiled)).lower(1.0).compile()
    heard = len(compiled)
    loop.train_and_evaluate(smoke({'train.epochs': 10}), tmp_path / 'run')
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert heard == 1
  compilations, files, threads = zip(*seen[1:], strict=True)
  assert len(set(compilations)) == 1, compilations
  assert min(files[5:]) <= min(files[:5]), files
  assert min(threads[5:]) <= min(threads[:5]), threads
