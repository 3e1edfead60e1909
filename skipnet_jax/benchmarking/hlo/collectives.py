"""Counts what devices send each other, from a program's optimised HLO."""

from collections.abc import Callable
import math
import re

# How many times the bytes of its result each of n devices sends, in a ring.
_SENT: dict[str, Callable[[int], float]] = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: n - 1,
  'collective-permute': lambda n: min(1, n - 1),
}
KINDS = tuple(_SENT)
# `%x = f32[8]{0} all-reduce(...)`; the result may be a tuple of arrays. Of an
# asynchronous pair only the `-done` instruction counts: the result of `-start`
# also holds the operands.
_LINE = re.compile(
  rf'^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({"|".join(KINDS)})(?:-done)?\(',
  re.MULTILINE,
)
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def count(hlo: str) -> dict[str, dict[str, int]]:
  """The collectives of a program.

  Args:
    hlo: the text of an optimised module. The body of a loop counts once, as in
      XLA's count of FLOPs.

  Returns:
    For each kind that occurs: `count`, and `bytes` of the results on one
    device.
  """
  found: dict[str, dict[str, int]] = {}
  for result, kind in _LINE.findall(hlo):
    entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
    entry['count'] += 1
    entry['bytes'] += shape_bytes(result)
  return found


def shape_bytes(shape: str) -> int:
  """Bytes of an HLO shape such as `f32[8,128]{1,0}`, or of a tuple of them."""
  total = 0
  for dtype, bits, sides in _ARRAY.findall(shape):
    elements = math.prod(int(side) for side in sides.split(',') if side)
    total += elements * (8 if dtype == 'pred' else int(bits)) // 8
  return total


def sent_bytes(found: dict[str, dict[str, int]], devices: int) -> float:
  """The fewest bytes that each device sends, in rings over all devices.

  Args:
    found: from `count`.
    devices: number of devices that share each collective.
  """
  return sum(_SENT[kind](devices) * found[kind]['bytes'] for kind in found)
