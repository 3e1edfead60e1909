"""Several processes that train one run: they join, and they end together."""

from collections.abc import Iterator
import contextlib
import os
import sys
import threading
import time
import traceback

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from skipnet_jax import errors

# Seconds for all processes to join, and until one prints that it waits.
JOIN, _NOTICE = 300, 10
# Bytes of an error message that the other processes receive.
_MESSAGE = 1000
# Words in XLA's error when another process is gone.
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')


def start(config: ml_collections.ConfigDict) -> None:
  """Joins the other processes if the config's `parallel` has several.

  Call it before anything touches a device. If joining takes long, it prints the
  address at which it waits.

  Raises:
    InputError: the processes cannot be joined.
  """
  if not config.coordinator:
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
  failure = f'parallel.coordinator is {config.coordinator!r}, but {who} could '
  joined = threading.Event()

  def watch():
    if joined.wait(_NOTICE):
      return
    print(f'Waiting at {where}, as {who}.', file=sys.stderr, flush=True)
    if not joined.wait(JOIN - _NOTICE):
      # JAX itself would end the process without a message.
      print(
        f'error: {failure}not join the others within {JOIN} s: start process 0 '
        'there, and every other process with the same address.',
        file=sys.stderr,
        flush=True,
      )
      os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=2 * JOIN,
      heartbeat_timeout_seconds=30,
    )
  except (RuntimeError, ValueError) as e:
    raise errors.InputError(
      f'{failure}not join the others ({str(e).splitlines()[0]}): give every '
      'process the same address and its own process_id.'
    ) from e
  finally:
    joined.set()


def barrier() -> None:
  """Waits until every process has compiled.

  On CPUs, the first collective fails if a process comes 30 s later than the
  others because it compiled for longer; this waits for an hour, or until a
  process is dead.
  """
  if jax.process_count() > 1:
    # JAX has no public barrier that is not itself a collective.
    client = distributed.global_state.client
    assert client is not None  # There are several processes.
    client.wait_at_barrier('compiled', 3_600_000)


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
    text = str(own or '').encode()[:_MESSAGE].ljust(_MESSAGE, b'\0')
    message = np.frombuffer(text, np.uint8)
    for i, received in enumerate(multihost_utils.process_allgather(message)):
      other = received.tobytes().rstrip(b'\0').decode(errors='replace')
      if other and not own:
        own = errors.InputError(f'Process {i} refuses: {other}')
  if own:
    raise own


@contextlib.contextmanager
def abort_together() -> Iterator[None]:
  """If one of several processes fails in the block, all exit with code 1.

  The failing process exits immediately: an orderly end would wait for the
  others, which wait for it. The next collective of the others then fails, and
  they exit in the same way.
  """
  try:
    yield
  except (errors.InputError, errors.Stopped):
    raise
  except Exception as e:
    if jax.process_count() == 1:
      raise
    # The error of a checkpoint has that of its collective as its cause.
    reason = str(e.__cause__ or e)
    if any(word in reason for word in _LOST):
      message = (
        f'error: Process {jax.process_index()} of {jax.process_count()} lost '
        f'another one ({reason.splitlines()[0][:200]}): see the output of that '
        'one, then run the same command in every process again to resume from '
        'the last checkpoint.'
      )
    elif isinstance(e, errors.RunError):
      message = f'error: {e}'
    else:
      message = traceback.format_exc()
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.process_index() == 0 and 'heartbeat' not in reason:
      # JAX's service runs in this process. Without it, the others end before
      # they can print a message; after a lost heartbeat, JAX ends all anyway.
      time.sleep(5)
    os._exit(1)
