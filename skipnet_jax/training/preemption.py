"""Stopping when told to: SIGTERM, by which schedulers and clouds preempt."""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

SIGNAL = signal.SIGTERM


class Preemption:
  """Whether this run was told to stop; all its processes agree on when.

  While a `with` block lasts, SIGTERM ends no process: `reached` says when to
  write a checkpoint and stop. Inside `nothing_to_lose` it ends the process with
  exit code 0 at once, also while XLA compiles and no Python runs.

  In several processes JAX itself takes the signal, in whichever process, and
  has them all stop after the same call. In a thread other than the main one,
  where Python takes no signals, nothing is done.
  """

  reason = 'by SIGTERM'

  def __init__(self):
    self._told = threading.Event()
    self._idle = False
    self._calls = 0
    # Held by whoever acts upon `_told` and `_idle`.
    self._lock = threading.Lock()

  def __enter__(self) -> 'Preemption':
    self._undo = contextlib.ExitStack()
    main = threading.current_thread() is threading.main_thread()
    if main and jax.process_count() == 1:
      self._listen()
    return self

  def __exit__(self, *_) -> None:
    self._undo.close()

  def _listen(self) -> None:
    # Python's own handlers wait for the interpreter, which a compilation keeps
    # waiting for minutes; this pipe is written to at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=self._watch, args=(read,), daemon=True)
    watcher.start()
    old_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    old = signal.signal(SIGNAL, lambda *_: None)

    def stop():
      signal.signal(SIGNAL, old)
      signal.set_wakeup_fd(old_fd)
      os.close(write)
      watcher.join()
      os.close(read)

    self._undo.callback(stop)

  def _watch(self, read: int) -> None:
    while received := os.read(read, 64):
      if SIGNAL in received:
        with self._lock:
          self._told.set()
          if self._idle:
            self._leave()

  def _leave(self) -> None:
    print('Stopped by SIGTERM; nothing is lost.', flush=True)
    sys.stderr.flush()
    os._exit(0)

  @contextlib.contextmanager
  def nothing_to_lose(self) -> Iterator[None]:
    """Within, all that was trained is on the disk."""
    with self._lock:
      if self._told.is_set():
        self._leave()
      self._idle = True
    try:
      yield
    finally:
      with self._lock:
        self._idle = False

  def reached(self) -> bool:
    """Whether to write a checkpoint and stop now.

    To be asked after each call, as often in every process.
    """
    self._calls += 1
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(self._calls)
    return self._told.is_set()
