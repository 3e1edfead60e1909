"""Stops a run at SIGTERM, the signal by which schedulers and clouds preempt."""

from collections.abc import Iterator
import contextlib
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from skipnet_jax import signals


class StopSignal:
  """Says when a run has to stop; all its processes agree on the step.

  Inside a `with` block, SIGTERM ends no process: `should_stop` becomes True.
  Inside `exit_at_once_on_sigterm`, SIGTERM ends the process immediately with
  exit code 0, even while XLA compiles and no Python code runs. The loss of the
  terminal (SIGHUP) is ignored.

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
    if threading.current_thread() is not threading.main_thread():
      return self
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
      # The terminal is gone; standard output and error then discard everything.
      self._handle(signal.SIGHUP, signal.SIG_IGN)
    if jax.process_count() == 1:
      self._undo.callback(signals.watch(self._receive))
      self._handle(signal.SIGTERM, lambda *_: None)
    return self

  def __exit__(self, *_) -> None:
    self._undo.close()

  def _handle(self, number: signal.Signals, handler: Any) -> None:
    self._undo.callback(signal.signal, number, signal.signal(number, handler))

  def _receive(self, number: int) -> None:
    if number == signal.SIGTERM:
      with self._lock:
        self._received.set()
        if self._exit_at_once:
          self._exit()

  def _exit(self) -> None:
    signals.leave('Stopped by SIGTERM; nothing is lost.\n', 0)

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
