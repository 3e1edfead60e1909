"""Ends a command at Ctrl-C or SIGTERM, also while no Python code can run."""

import atexit
from collections.abc import Callable
import contextlib
import os
import signal
import sys
import threading

ENDING = (signal.SIGINT, signal.SIGTERM)
# Seconds in which an interrupted command may remove its unfinished files.
_GRACE = 3


def _in_forked_process() -> None:
  """Gives a forked process Python's own handlers: the pipes are its parent's.

  A signal that it receives, such as SIGTERM from a pool that closes, would end
  its parent.
  """
  for number in ENDING:
    handler = signal.getsignal(number)
    if isinstance(getattr(handler, '__self__', None), Interruption):
      signal.set_wakeup_fd(-1)
      interrupts = number == signal.SIGINT
      signal.signal(
        number, signal.default_int_handler if interrupts else signal.SIG_DFL
      )


os.register_at_fork(after_in_child=_in_forked_process)


def watch(received: Callable[[int], None]) -> Callable[[], None]:
  """Calls a function with each signal's number, in a thread and immediately.

  Python's own handlers wait for the main thread, which a compilation keeps busy
  for minutes. Only signals that have such a handler are seen. For the main
  thread; there may be several watchers, and all are called.

  Returns:
    Ends it; the watcher that began last must end first.
  """
  read, write = os.pipe()
  os.set_blocking(write, False)
  outer = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

  def run() -> None:
    while numbers := os.read(read, 64):
      if outer >= 0:
        os.write(outer, numbers)
      for number in numbers:
        received(number)

  watcher = threading.Thread(target=run, daemon=True)
  watcher.start()

  def end() -> None:
    signal.set_wakeup_fd(outer)
    os.close(write)
    watcher.join()
    os.close(read)

  return end


def leave(message: str, code: int) -> None:
  """Prints a message and ends the process, without taking Python down."""
  # The reader of standard output may be stuck.
  late = threading.Timer(1, os._exit, [code])
  late.daemon = True
  # Since Python 3.12 no thread starts at exit, where nothing is printed.
  with contextlib.suppress(RuntimeError):
    late.start()
  try:
    print(message, end='', flush=True)
    sys.stderr.flush()
  finally:
    os._exit(code)


class Interruption:
  """Within, Ctrl-C and SIGTERM end the process; exit code 128 plus the signal.

  The signal raises KeyboardInterrupt, so that unfinished files are removed. It
  can be lost: a compilation in C++ delays it, an import turns it into another
  error, and what the garbage collector calls cannot raise. The process
  therefore ends a few seconds later in any case.

  Args:
    consequence: completes the message.
  """

  def __init__(self, consequence: str):
    self._consequence = consequence
    # The first signal that was received.
    self._number: int | None = None
    self._printed = False
    self._undo = contextlib.ExitStack()

  def __enter__(self) -> 'Interruption':
    for name in ('excepthook', 'unraisablehook'):
      self._undo.callback(setattr, sys, name, getattr(sys, name))
    self._except, sys.excepthook = sys.excepthook, self._print
    self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
    self._undo.callback(watch(self._end_later))
    for number in ENDING:
      before = signal.getsignal(number)
      # A shell makes a command in the background ignore Ctrl-C.
      if before in (signal.SIG_DFL, signal.default_int_handler):
        self._undo.callback(signal.signal, number, before)
        signal.signal(number, self._raise)
    return self

  def __exit__(self, kind, error, trace) -> None:
    finished = isinstance(error, SystemExit) and not error.code
    if finished or not (self._number or kind is KeyboardInterrupt):
      self._undo.close()
      for ending in ENDING:
        # Python needs some time to end, and nothing can be lost any more.
        atexit.register(signal.signal, ending, signal.SIG_IGN)
      return
    number = int(self._number or signal.SIGINT)
    print(self._message(number), end='', flush=True)
    if self._number:
      # The compilation goes on in a thread of XLA, which crashes when JAX
      # deletes its client at exit. What was registered last is called first.
      atexit.register(leave, '', 128 + number)
    sys.exit(128 + number)

  def _message(self, number: int) -> str:
    if self._printed:
      return ''
    self._printed = True
    stopped = number == signal.SIGTERM
    word = 'Stopped by SIGTERM' if stopped else 'Interrupted'
    return f'\n{word}; {self._consequence}\n'

  def _raise(self, number: int, _) -> None:
    # Once, so that a second signal leaves the cleaning up alone.
    if self._number is None:
      self._number = number
      raise KeyboardInterrupt

  def _end_later(self, number: int) -> None:
    if signal.getsignal(number) == self._raise:
      self._later(_GRACE, lambda: leave(self._message(number), 128 + number))

  def _print(self, kind, *rest) -> None:
    # C++ code of an import calls it before it raises another error.
    if kind is not KeyboardInterrupt:
      self._except(kind, *rest)

  def _unraisable(self, unraisable) -> None:
    """Raises a lost KeyboardInterrupt once more."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
      self._hook(unraisable)
    elif number := self._number:
      self._number = None
      self._later(0.05, lambda: os.kill(os.getpid(), number))

  def _later(self, seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
