"""The largest batch that fits, by doubling and then by bisection."""

from collections.abc import Callable
import os
import pathlib
from typing import Any

import jax


def search(
  fits: Callable[[int], bool], low: int = 0, high: int | None = None
) -> tuple[int, int]:
  """Finds the largest number that fits: exact below 16, to an eighth above.

  Args:
    fits: whether a number fits; none above one that does not.
    low: known to fit.
    high: known not to fit, or None.

  Returns:
    The largest that was found to fit, 0 if not even 1 does, and the smallest
    that was found not to.
  """
  while high is None:
    trial = max(1, 2 * low)
    if fits(trial):
      low = trial
    else:
      high = trial
  while high - low > max(1, low // 8):
    trial = (low + high) // 2
    if fits(trial):
      low = trial
    else:
      high = trial
  return low, high


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
