"""Heartbeats among the processes of a run: if one is lost, all end."""

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed

# Seconds between two heartbeats; without one until another process is lost;
# between the end of one process and that of the others, which may have a
# message of their own; and until process 0 ends after the others.
_INTERVAL, _LIMIT, _GRACE, _LINGER = 2, 30, 2, 10
_KEY = 'skipnet_jax/heartbeat/'
# Values of the key of a process that sends no more.
_DONE, _ENDED = 'done', 'ended because '
LOST = 'it lost another one'


class Heartbeat:
  """Shows that this process is alive, and ends it when another one is lost.

  JAX has a heartbeat too, but it ends a process by SIGABRT, without a message
  that can be understood. Both need JAX's service, which runs in process 0.

  Attributes:
    exit_code: of a process that is ending, once its message is printed.
  """

  exit_code: int | None = None

  def __init__(self) -> None:
    client = distributed.global_state.client
    assert client is not None  # The processes have joined.
    self._client = client
    self._index, self._count = jax.process_index(), jax.process_count()
    # The latest value of each process, and when it changed, and when the
    # service answered: by this process's clock, so that no two are compared.
    self._values: dict[int, str] = {}
    self._changed = dict.fromkeys(range(self._count), time.monotonic())
    self._answered = time.monotonic()
    self._stopped = threading.Event()
    self._ending = threading.Lock()
    for target in (self._beat, self._watch):
      threading.Thread(target=target, daemon=True).start()
    # Runs before JAX waits for the other processes.
    atexit.register(self._close)

  def _set(self, value: str) -> None:
    key = f'{_KEY}{self._index}'
    self._client.key_value_set(key, value, allow_overwrite=True)

  def _read(self) -> None:
    for key, value in self._client.key_value_dir_get(_KEY):
      process = int(key.rpartition('/')[2])
      if self._values.get(process) != value:
        self._values[process] = value
        self._changed[process] = time.monotonic()
    self._answered = time.monotonic()

  def _beat(self) -> None:
    number = 0
    while not self._stopped.wait(_INTERVAL):
      number += 1
      try:
        self._set(str(number))
        self._read()
      except jax.errors.JaxRuntimeError:
        pass  # `_watch` sees how long there was no answer.

  def _watch(self) -> None:
    while not self._stopped.wait(1):
      lost = self._lost()
      if lost:
        self.end(1, lost_message(lost), LOST)

  def _lost(self) -> str:
    """Which process is lost, and why; '' if none is."""
    now = time.monotonic()
    if self._index and now - self._answered > _LIMIT:
      return f'process 0 did not answer for {_LIMIT} s'
    for process, changed in self._changed.items():
      value, age = self._values.get(process, ''), now - changed
      if process == self._index or value == _DONE:
        continue
      if value.startswith(_ENDED) and age > _GRACE:
        return f'process {process} {value}'
      if age > _LIMIT:
        return f'process {process} did not answer for {_LIMIT} s'
    return ''

  def end(self, code: int, message: str, reason: str) -> NoReturn:
    """Prints a message and exits immediately; the other processes end too.

    An orderly end would wait for the others, which wait for this process.

    Args:
      code: exit code.
      message: for standard error.
      reason: what the others print after "this process ended because".
    """
    if not self._ending.acquire(blocking=False):
      threading.Event().wait()  # Another thread is ending the process.
    self._stopped.set()
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    self.exit_code = code
    # In case the service does not answer.
    threading.Timer(_LINGER, os._exit, [code]).start()
    try:
      text = ' '.join(reason.split())[:200]
      # A name in it may not be UTF-8.
      self._set(_ENDED + text.encode(errors='backslashreplace').decode())
      # Without process 0, the others end before they can print a message.
      while not self._index:
        self._read()
        others = [v for i, v in self._values.items() if i]
        if sum(v.startswith((_DONE, _ENDED)) for v in others) > self._count - 2:
          break
        time.sleep(0.2)
    except jax.errors.JaxRuntimeError:
      pass  # The service is gone.
    os._exit(code)

  def _close(self) -> None:
    self._stopped.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # They ended first.
      self._set(_DONE)


def lost_message(reason: str) -> str:
  """What a process prints that lost another one."""
  return (
    f'error: Process {jax.process_index()} of {jax.process_count()} lost '
    f'another one ({reason}): see the output of that one, then run the same '
    'command in every process again to resume from the last checkpoint.'
  )
