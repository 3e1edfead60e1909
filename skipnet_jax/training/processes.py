"""Several processes as one run: they join, refuse, and break off together."""

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

# Seconds: for all to join; to compile; until one that gives no sign counts as
# dead, and JAX ends the others; until the first lets the others go before it.
JOIN = 300
COMPILED = 3600
DEAD = 30
LINGER = 5
_NOTICE = 10
# Bytes of a refusal that the other processes get to read.
_LETTER = 1000
# In what XLA raises when another process has gone.
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')


def start(config: ml_collections.ConfigDict) -> None:
  """Joins the other processes where the config's `parallel` names several.

  Before anything touches a device. Says whom it waits for if that takes long.

  Raises:
    InputError: they cannot be joined.
  """
  if not config.coordinator:
    return
  auto = config.coordinator == 'auto'
  arguments = {}
  if not auto:
    arguments = dict(
      coordinator_address=config.coordinator,
      num_processes=config.num_processes,
      process_id=config.process_id,
    )
  where = 'the address that the cluster names' if auto else config.coordinator
  who = (
    'this process'
    if auto
    else f'process {config.process_id} of {config.num_processes}'
  )
  joined = threading.Event()

  def watch():
    if joined.wait(_NOTICE):
      return
    print(f'Waiting at {where}, as {who}.', file=sys.stderr, flush=True)
    if joined.wait(JOIN - _NOTICE):
      return
    # JAX itself would end it without a sentence.
    print(
      f'error: parallel.coordinator is {config.coordinator!r}, but {who} could '
      f'not join the others within {JOIN} s: start process 0 there, and every '
      'other process with the same address.',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=2 * JOIN,
      heartbeat_timeout_seconds=DEAD,
    )
  except (RuntimeError, ValueError) as e:
    raise errors.InputError(
      f'parallel.coordinator is {config.coordinator!r}, but {who} could not '
      f'join the others ({str(e).splitlines()[0]}): give the same address to '
      'every process, and each a process_id of its own.'
    ) from e
  finally:
    joined.set()


def meet(place: str) -> None:
  """Waits until every process is there; each place is met once.

  Between CPUs a first collective gives up on a process that comes 30 s later,
  having compiled for longer; this waits up to an hour, or until one is dead.
  """
  if jax.process_count() > 1:
    # JAX shows no barrier that is not itself a collective.
    client = distributed.global_state.client
    assert client is not None  # There are several processes.
    client.wait_at_barrier(place, 1000 * COMPILED)


@contextlib.contextmanager
def refusing_together() -> Iterator[None]:
  """Has all processes refuse what one refuses; they leave the block together.

  Raises:
    InputError: raised inside in some process, in each.
  """
  own = None
  try:
    yield
  except errors.InputError as e:
    own = e
  if jax.process_count() > 1:
    letter = np.zeros(_LETTER, np.uint8)
    text = str(own or '').encode()[:_LETTER]
    letter[: len(text)] = np.frombuffer(text, np.uint8)
    for i, read in enumerate(multihost_utils.process_allgather(letter)):
      text = read.tobytes().rstrip(b'\0').decode(errors='replace')
      if text and not own:
        own = errors.InputError(f'Process {i} refuses: {text}')
  if own:
    raise own


@contextlib.contextmanager
def breaking_off_together() -> Iterator[None]:
  """Ends one of several processes at once where its work breaks, with code 1.

  An orderly end would wait for the others, which wait for this one; so each of
  them finds its next collective broken, and ends the same way.
  """
  try:
    yield
  except (errors.InputError, errors.Stopped):
    raise
  except Exception as e:
    if jax.process_count() == 1:
      raise
    # A checkpoint's error holds that of the collective it waited for.
    reason = str(e.__cause__ or e)
    if any(word in reason for word in _LOST):
      print(
        f'error: Process {jax.process_index()} of {jax.process_count()} lost '
        f'another one ({reason.splitlines()[0][:200]}): see what that one '
        'says, then give the same command in every process again; it goes on '
        'from the last checkpoint.',
        file=sys.stderr,
      )
    elif isinstance(e, errors.RunError):
      print(f'error: {e}', file=sys.stderr)
    else:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0 and 'heartbeat' not in reason:
      # With it goes the service, which would end the others without a sentence.
      # Where it found the dead one itself, it ends this one too, in no time.
      time.sleep(LINGER)
    os._exit(1)
