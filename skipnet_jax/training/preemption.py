"""Stops a run at SIGTERM, the signal by which schedulers and clouds preempt."""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """Says when a run has to stop; all its processes agree on the step.

  Inside a `with` block, SIGTERM ends no process: `should_stop` becomes True.
  Inside `exit_at_once_on_sigterm`, SIGTERM ends the process immediately with
  exit code 0, even while XLA compiles and no Python code runs.

  With several processes, JAX itself receives the signal, in any of them, and
  stops all of them after the same call. In a thread other than the main one,
  where Python receives no signals, SIGTERM keeps its usual effect.
  """

  reason = 'by SIGTERM'

  def __init__(self):
    self._received = threading.Event()
    self._exit_at_once = False
    self._calls = 0
    # Held while `_received` and `_exit_at_once` are read or changed together.
    self._lock = threading.Lock()
    self._undo = contextlib.ExitStack()

  def __enter__(self) -> 'StopSignal':
    main = threading.current_thread() is threading.main_thread()
    if not main or jax.process_count() > 1:
      return self
    undo = self._undo.callback
    # Python's own handlers wait for the interpreter, and a compilation keeps it
    # busy for minutes; a byte in this pipe arrives immediately.
    read, write = os.pipe()
    undo(os.close, read)
    os.set_blocking(write, False)
    watcher = threading.Thread(target=self._watch, args=(read,), daemon=True)
    watcher.start()
    undo(watcher.join)
    undo(os.close, write)
    old_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    undo(signal.set_wakeup_fd, old_fd)
    old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
    undo(signal.signal, signal.SIGTERM, old_handler)
    return self

  def __exit__(self, *_) -> None:
    self._undo.close()

  def _watch(self, read: int) -> None:
    while received := os.read(read, 64):
      if signal.SIGTERM in received:
        with self._lock:
          self._received.set()
          if self._exit_at_once:
            self._exit()

  def _exit(self) -> None:
    print('Stopped by SIGTERM; nothing is lost.', flush=True)
    sys.stderr.flush()
    os._exit(0)

  @contextlib.contextmanager
  def exit_at_once_on_sigterm(self) -> Iterator[None]:
    """Inside, SIGTERM exits immediately: everything trained so far is saved."""
    with self._lock:
      if self._received.is_set():
        self._exit()
      self._exit_at_once = True
    try:
      yield
    finally:
      with self._lock:
        self._exit_at_once = False

  def should_stop(self) -> bool:
    """Whether to write a checkpoint and stop now.

    Every process must call it after each compiled call, equally often.
    """
    self._calls += 1
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(self._calls)
    return self._received.is_set()
