"""Finds the largest batch that fits into the memory of a device."""

from collections.abc import Callable, Sequence
import os
import pathlib
from typing import Any

import jax


def search(
  fits: Callable[[int], bool],
  high: int | None = None,
  expect: Callable[[], int | None] = lambda: None,
) -> tuple[int, int]:
  """Finds the largest number that fits: exact below 16, else to an eighth.

  Args:
    fits: whether a number fits. If one does not, no larger one does.
    high: a number that does not fit, or None.
    expect: the likely result, given what was tried so far, or None. It is tried
      next, which saves most of the doublings.

  Returns:
    The largest number that fitted, 0 if not even 1 does; the smallest number
    that did not.
  """
  low = 0
  while high is None or high - low > max(1, low // 8):
    likely = expect()
    if likely is not None and low < likely < (high or likely + 1):
      trial = likely
    elif high is not None:
      trial = (low + high) // 2
    elif likely is not None:
      # As many as expected fit: a little more should not.
      trial = low + max(1, low // 8)
    else:
      trial = max(1, 2 * low)
    if fits(trial):
      low = trial
    else:
      high = trial
  return low, high


def extrapolate(
  points: Sequence[tuple[int, float]], limit: float
) -> int | None:
  """The number at which a line through the last two points reaches a limit.

  Args:
    points: pairs of a number and the bytes that it needs.
    limit: in bytes.

  Returns:
    The number, rounded down, at least 1; None if there are fewer than two
    points or the line does not rise.
  """
  if len(points) < 2:
    return None
  (x0, y0), (x1, y1) = points[-2:]
  if (y1 - y0) * (x1 - x0) <= 0:
    return None
  return max(1, int(x0 + (limit - y0) * (x1 - x0) / (y1 - y0)))


def memory_limit(device: Any) -> int:
  """Bytes that a program may use on a device.

  On a CPU, the memory that is available now; all CPU devices share it.
  """
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    return int(stats['bytes_limit'])
  meminfo = pathlib.Path('/proc/meminfo')
  if meminfo.exists():
    for line in meminfo.read_text().splitlines():
      if line.startswith('MemAvailable:'):
        return int(line.split()[1]) * 1024
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def shortage(predicted: int | None, devices: Sequence[Any]) -> str:
  """Why a compiled program cannot fit into memory; '' if it may fit.

  Args:
    predicted: bytes that the program needs on one device; None: unknown.
    devices: those of this process that run it.
  """
  limit = memory_limit(devices[0])
  # CPU devices share one memory.
  share = len(devices) if devices[0].platform == 'cpu' else 1
  need = (predicted or 0) * share
  if need <= limit:
    return ''
  return (
    f'the compiled program needs {need / 2**30:.2f} GiB, but only '
    f'{limit / 2**30:.2f} GiB are available'
  )


def out_of_memory(error: jax.errors.JaxRuntimeError) -> str:
  """Why a program ran out of memory; '' for any other error."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text and 'Out of memory' not in text:
    return ''
  return 'out of memory: ' + text.splitlines()[0].strip().rstrip('.')
