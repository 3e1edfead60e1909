"""The largest batch that fits, by doubling and then by bisection."""

from collections.abc import Callable, Sequence
import os
import pathlib
from typing import Any

import jax


def search(
  fits: Callable[[int], bool],
  low: int = 0,
  high: int | None = None,
  expect: Callable[[], int | None] = lambda: None,
) -> tuple[int, int]:
  """Finds the largest number that fits: exact below 16, to an eighth above.

  Args:
    fits: whether a number fits; none above one that does not.
    low: known to fit.
    high: known not to fit, or None.
    expect: the result that is likely by now, or None: it is tried next, and
      spares most of the doublings.

  Returns:
    The largest that was found to fit, 0 if not even 1 does, and the smallest
    that was found not to.
  """
  while high is None or high - low > max(1, low // 8):
    likely = expect()
    if likely is not None and low < likely < (high or likely + 1):
      trial = likely
    elif high is not None:
      trial = (low + high) // 2
    elif likely is not None:
      # As many as are likely: just above, one should not.
      trial = low + max(1, low // 8)
    else:
      trial = max(1, 2 * low)
    if fits(trial):
      low = trial
    else:
      high = trial
  return low, high


def by_line(points: Sequence[tuple[int, float]], limit: float) -> int | None:
  """Where a line through the last two points reaches a limit, rounded down.

  Args:
    points: number and bytes, growing.
    limit: in bytes.

  Returns:
    The number; None without two points on a rising line.
  """
  if len(points) < 2:
    return None
  (x0, y0), (x1, y1) = points[-2:]
  if x1 == x0 or (y1 - y0) * (x1 - x0) <= 0:
    return None
  return max(1, int(x0 + (limit - y0) * (x1 - x0) / (y1 - y0)))


def memory_limit(device: Any) -> int:
  """Bytes that a program may take on a device.

  On a CPU the memory that is available now, which all of its devices share.
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


def shortage(predicted: int | None, devices: int, device: Any) -> str:
  """Why a compiled program cannot fit; '' where it may.

  Args:
    predicted: bytes that the program takes on one device; None: unknown.
    devices: on how many of this process's devices it runs.
    device: one of them.
  """
  limit = memory_limit(device)
  # Devices of a CPU share its memory.
  need = (predicted or 0) * (devices if device.platform == 'cpu' else 1)
  if need <= limit:
    return ''
  return (
    f'the compiled program needs {need / 2**30:.2f} GiB and '
    f'{limit / 2**30:.2f} GiB are there'
  )


def exhausted(error: jax.errors.JaxRuntimeError) -> str:
  """Why a program ran out of memory; '' for any other error."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text and 'Out of memory' not in text:
    return ''
  return 'out of memory: ' + text.splitlines()[0].strip().rstrip('.')
