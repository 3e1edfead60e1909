"""Several processes that train one run: they join, and they end together."""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import errno
import itertools
import json
import os
import signal
import socket
import sys
import threading
import traceback
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import signals
from skipnet_jax.training import heartbeat as heartbeat_lib

# Seconds for all processes to join, and until one prints that it waits.
JOIN, _NOTICE = 300, 10
# Bytes of an error message that the other processes receive.
_MESSAGE = 1000
# Words in XLA's error when another process is gone.
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')
# Fields that need not be equal in all processes: each may read and print in its
# own way.
_OWN = ('parallel.process_id', 'data.dir', 'data.image', 'data.label', 'log')

_heartbeat: heartbeat_lib.Heartbeat | None = None
_exchanges, _barriers = itertools.count(), itertools.count()
# What must live as long as the process.
_kept: list[Any] = []


class _SharedInputError(errors.InputError):
  """An InputError that is raised in all processes."""


def start(config: ml_collections.ConfigDict) -> None:
  """Joins the other processes if the config's `parallel` has several.

  Call it before anything touches a device. If joining takes long, it prints the
  address at which it waits. From then on, Ctrl-C or a lost process ends all of
  them within seconds.

  Raises:
    InputError: the processes cannot be joined.
  """
  global _heartbeat
  if not config.coordinator or _heartbeat:
    return
  if config.coordinator == 'auto':
    arguments = {}
    where, who = 'the address that the cluster names', 'this process'
  else:
    arguments = dict(
      coordinator_address=config.coordinator,
      num_processes=config.num_processes,
      process_id=config.process_id,
    )
    where = config.coordinator
    who = f'process {config.process_id} of {config.num_processes}'
  failure = (
    f'parallel.coordinator is {config.coordinator!r}, but {who} could not join '
    'the others'
  )
  _claim_id(config)
  joined = threading.Event()

  def watch():
    if joined.wait(_NOTICE):
      return
    print(f'Waiting at {where}, as {who}.', file=sys.stderr, flush=True)
    if not joined.wait(JOIN - _NOTICE):
      # JAX itself would end the process without a message.
      print(
        f'error: {failure} within {JOIN} s: start process 0 there, and every '
        'other process with the same address.',
        file=sys.stderr,
        flush=True,
      )
      os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  _on_abort(
    lambda: (
      (1, heartbeat_lib.lost_message('the reason is above'))
      if _heartbeat
      else (
        2,
        f'error: {failure} (the reason is above): give every process the same '
        'address and its own process_id.',
      )
    )
  )
  _end_at_interrupt()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=2 * JOIN,
      # Longer than ours, which has a message.
      heartbeat_timeout_seconds=120,
      # Process 0 scores while the others wait for its end.
      shutdown_timeout_seconds=3600,
    )
  except (RuntimeError, ValueError) as e:
    raise errors.InputError(
      f'{failure} ({str(e).splitlines()[0]}): give every process the same '
      'address, with a free port, and its own process_id.'
    ) from e
  finally:
    joined.set()
  _heartbeat = heartbeat_lib.Heartbeat()


def _claim_id(config: ml_collections.ConfigDict) -> None:
  """Refuses a process_id that another process on this machine has.

  JAX would end all processes of the run. On several machines, it does so still.
  """
  if config.coordinator == 'auto' or sys.platform != 'linux':
    return
  # An abstract name: no file, and the system frees it with this process.
  claim = socket.socket(socket.AF_UNIX)
  try:
    claim.bind(f'\0skipnet_jax/{config.coordinator}/{config.process_id}')
  except OSError as e:
    if e.errno != errno.EADDRINUSE:
      raise
    raise errors.InputError(
      f'parallel.process_id is {config.process_id}, but another process on '
      f'this machine has that number at {config.coordinator}: give every '
      'process a number of its own, from 0.'
    ) from e
  _kept.append(claim)


def _on_abort(outcome: Callable[[], tuple[int, str]]) -> None:
  """Replaces JAX's end by SIGABRT by an exit code and a message.

  JAX aborts a process that cannot reach its service, and all if two have the
  same process_id. A signal handler of Python would run too late.
  """

  def handle(_: int) -> None:
    if _heartbeat and _heartbeat.exit_code is not None:
      os._exit(_heartbeat.exit_code)
    code, message = outcome()
    print(message, file=sys.stderr, flush=True)
    os._exit(code)

  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  _kept.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _end_at_interrupt() -> None:
  """Lets Ctrl-C end this process at once, even in a collective or compilation.

  Other signals pass on to who watches them: SIGTERM ends the process as long as
  JAX, which joins the others in C++, has not taken it over. In a thread other
  than the main one, and where a shell made a command in the background ignore
  it, Ctrl-C keeps its usual effect.
  """
  ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  if ignored or threading.current_thread() is not threading.main_thread():
    return

  def received(number: int) -> None:
    if number != signal.SIGINT:
      return
    message = (
      '\nInterrupted, with all other processes; run the same command in every '
      'process again, which resumes a training.'
    )
    if _heartbeat:
      _heartbeat.end(130, message, 'it was interrupted')
    print(message, file=sys.stderr, flush=True)
    os._exit(130)

  signals.watch(received)
  signal.signal(signal.SIGINT, lambda *_: None)


def barrier() -> None:
  """Waits for all processes, for an hour or until one of them is lost.

  On CPUs, a collective fails if a process comes 30 s later than the others,
  such as one that compiled or scored for longer.
  """
  if jax.process_count() > 1:
    # JAX has no public barrier that is not itself a collective.
    _client().wait_at_barrier(f'skipnet_jax/{next(_barriers)}', 3_600_000)


def _client() -> Any:
  client = distributed.global_state.client
  assert client is not None  # There are several processes.
  return client


def from_first(value: str) -> str:
  """The value that process 0 gives; all must call it equally often."""
  if jax.process_count() == 1:
    return value
  key = f'skipnet_jax/exchange/{next(_exchanges)}'
  if jax.process_index() == 0:
    _client().key_value_set(key, value)
    return value
  return _client().blocking_key_value_get(key, 1000 * JOIN)


def require_equal(
  config: ml_collections.ConfigDict, others: dict[str, Any]
) -> None:
  """Refuses a process that would not train the same as process 0.

  Args:
    config: of this process.
    others: more that must be equal, by name; JSON values.

  Raises:
    InputError: names the fields that differ.
  """
  own = {
    name: value
    for name, value in (config_identity.to_flat(config) | others).items()
    if not any(name == own or name.startswith(own + '.') for own in _OWN)
  }
  own = json.loads(json.dumps(own))
  first = json.loads(from_first(json.dumps(own)))
  different = [
    f'{name} is {own.get(name)!r}, but {first.get(name)!r} in process 0'
    for name in sorted(own.keys() | first.keys())
    if own.get(name) != first.get(name)
  ]
  if different:
    more = f'; and {len(different) - 3} more' if len(different) > 3 else ''
    raise errors.InputError(
      f'{"; ".join(different[:3])}{more}: start every process with the same '
      'command, data and packages.'
    )


@contextlib.contextmanager
def raise_input_errors_everywhere() -> Iterator[None]:
  """Raises an InputError of one process in all; they leave the block together.

  Raises:
    InputError: that of this process, or else the first of another process.
  """
  own = None
  try:
    yield
  except errors.InputError as e:
    own = e
  if jax.process_count() > 1:
    # A name in it may not be UTF-8.
    text = str(own or '').encode(errors='backslashreplace')
    text = text[:_MESSAGE].ljust(_MESSAGE, b'\0')
    message = np.frombuffer(text, np.uint8)
    for i, received in enumerate(multihost_utils.process_allgather(message)):
      other = received.tobytes().rstrip(b'\0').decode(errors='replace')
      if other:
        raise _SharedInputError(
          str(own or f'Process {i} refuses: {other}')
        ) from own
  if own:
    raise own


@contextlib.contextmanager
def abort_together() -> Iterator[None]:
  """If one of several processes fails in the block, all of them end.

  The failing process exits immediately, and the heartbeat ends the others.
  """
  try:
    yield
  except (_SharedInputError, errors.Stopped):
    raise
  except Exception as e:
    if not _heartbeat:
      raise
    # The error of a checkpoint has that of its collective as its cause.
    reason = str(e.__cause__ or e)
    if isinstance(e, errors.InputError):
      _heartbeat.end(2, f'error: {e}', f'of this error: {e}')
    if any(word in reason for word in _LOST):
      message = heartbeat_lib.lost_message(reason.splitlines()[0][:200])
      _heartbeat.end(1, message, heartbeat_lib.LOST)
    if isinstance(e, errors.RunError):
      _heartbeat.end(1, f'error: {e}', f'of this error: {e}')
    _heartbeat.end(1, traceback.format_exc(), f'of this error: {e!r}')
