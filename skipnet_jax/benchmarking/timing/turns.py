"""Calls timed in turn, so that what slows the machine slows them alike."""

from collections.abc import Callable, Sequence
import time
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.benchmarking.timing import measure

WARMUP = 1  # Rounds that are not counted, after the call that compiles.


def first_calls(
  calls: dict[str, Callable[[], Any]],
  *,
  say: Callable[[str], None],
  clock: measure.Clock = time.perf_counter,
) -> dict[str, dict[str, Any]]:
  """Calls each once, which compiles it.

  Args:
    calls: each returns when its work is done.
    say: told whose turn it is.
    clock: gives seconds.

  Returns:
    Name to first_call_s and error: one is None. A missing compiler, or memory,
    is no reason for the others not to race.
  """
  found: dict[str, dict[str, Any]] = {}
  for name, call in calls.items():
    say(f'first step: {name}')
    start = clock()
    try:
      call()
    except RuntimeError as e:
      reason = (str(e).strip() or type(e).__name__).splitlines()[0]
      found[name] = {'first_call_s': None, 'error': reason}
    else:
      found[name] = {'first_call_s': clock() - start, 'error': None}
  return found


def take_turns(
  calls: dict[str, Callable[[], Any]],
  *,
  rounds: int,
  warmup: int = WARMUP,
  clock: measure.Clock = time.perf_counter,
) -> dict[str, measure.Timing]:
  """Times calls in turn: A B C, C B A, A B C, ...

  In its turn, each is called twice and the second call counts. The first takes
  memory and caches back from the one before, which a training does not have to
  do at every step.

  Args:
    calls: each returns when its work is done.
    rounds: timed calls of each.
    warmup: rounds before, which are not timed.
    clock: gives seconds.

  Raises:
    InputError: no round.
  """
  if rounds < 1:
    raise errors.InputError(f'rounds is {rounds}; it must be at least 1.')
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for turn in range(warmup + rounds):
    for name in list(calls) if turn % 2 == 0 else list(calls)[::-1]:
      calls[name]()
      start = clock()
      calls[name]()
      took = clock() - start
      if turn >= warmup:
        seconds[name].append(took)
  return {
    name: measure.Timing(warmup, tuple(row)) for name, row in seconds.items()
  }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
  """Ours over theirs, round by round: below 1, ours is faster."""
  pairs = np.asarray(ours, np.float64) / np.asarray(theirs, np.float64)
  low, middle, high = (float(q) for q in np.percentile(pairs, (25, 50, 75)))
  return {
    'pairs': pairs.tolist(),
    'median': middle,
    'q25': low,
    'q75': high,
    'min': float(np.min(pairs)),
    'max': float(np.max(pairs)),
  }
