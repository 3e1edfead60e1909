"""Times several calls in alternation, so that other work slows all alike."""

from collections.abc import Callable, Sequence
import time
from typing import Any

import numpy as np

from skipnet_jax.benchmarking.timing import measure

WARMUP = 1  # Untimed rounds.


def first_calls(
  calls: dict[str, Callable[[], Any]],
  *,
  say: Callable[[str], None],
  clock: measure.Clock = time.perf_counter,
) -> dict[str, dict[str, Any]]:
  """Calls each function once, which compiles it.

  Args:
    calls: functions by name; each returns when its work is done.
    say: receives a line before each call.
    clock: returns seconds.

  Returns:
    By name: first_call_s and error, one of which is None. A function that fails
    (no compiler, no memory) does not stop the others.
  """
  results: dict[str, dict[str, Any]] = {}
  for name, call in calls.items():
    say(f'first step: {name}')
    start = clock()
    try:
      call()
    except RuntimeError as e:
      reason = (str(e).strip() or type(e).__name__).splitlines()[0]
      results[name] = {'first_call_s': None, 'error': reason}
    else:
      results[name] = {'first_call_s': clock() - start, 'error': None}
  return results


def take_turns(
  calls: dict[str, Callable[[], Any]],
  *,
  rounds: int,
  clock: measure.Clock = time.perf_counter,
) -> dict[str, measure.Timing]:
  """Times calls in rounds of alternating order: A B C, C B A, A B C, ...

  In each round a function is called twice, and the second call counts: the
  first restores memory and caches that another function has used.

  Args:
    calls: as in `first_calls`.
    rounds: timed calls of each, at least 1.
    clock: returns seconds.
  """
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for turn in range(WARMUP + rounds):
    for name in list(calls) if turn % 2 == 0 else list(calls)[::-1]:
      calls[name]()
      start = clock()
      calls[name]()
      took = clock() - start
      if turn >= WARMUP:
        seconds[name].append(took)
  return {
    name: measure.Timing(WARMUP, tuple(row)) for name, row in seconds.items()
  }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
  """Our seconds over theirs, round by round: below 1, ours is faster."""
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
