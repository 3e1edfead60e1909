"""What devices send each other, read from a program's optimised HLO."""

import math
import re

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'collective-permute',
  'all-to-all',
)
# `%x = f32[8]{0} all-reduce(...)`, or with a tuple of arrays as its result. Of
# an asynchronous pair the second half counts: the first half's result also
# holds the operands.
_LINE = re.compile(
  rf'^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({"|".join(KINDS)})(?:-done)?\(',
  re.MULTILINE,
)
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def count(hlo: str) -> dict[str, dict[str, int]]:
  """The collectives of a program.

  Args:
    hlo: the text of an optimised module. What stands in the body of a loop is
      counted once, as XLA counts FLOPs.

  Returns:
    For each kind that occurs: `count` and `bytes`, those of the results on one
    device, each array of a tuple counted.
  """
  found: dict[str, dict[str, int]] = {}
  for result, kind in _LINE.findall(hlo):
    entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
    entry['count'] += 1
    entry['bytes'] += shape_bytes(result)
  return found


def shape_bytes(shape: str) -> int:
  """Bytes of an HLO shape such as `f32[8,128]{1,0}`, a tuple's arrays added."""
  total = 0
  for dtype, bits, sides in _ARRAY.findall(shape):
    elements = math.prod(int(side) for side in sides.split(',') if side)
    total += elements * (8 if dtype == 'pred' else int(bits)) // 8
  return total


def sent_bytes(found: dict[str, dict[str, int]], devices: int) -> float:
  """The fewest bytes that each device sends, with rings over all devices.

  Of n devices, a ring sends 2 (n - 1) / n of an all-reduce's bytes, (n - 1) / n
  of what an all-gather or an all-to-all results in, n - 1 times what a
  reduce-scatter leaves on each device, and a permuted array once.

  Args:
    found: from `count`.
    devices: how many share each collective.
  """
  n = devices
  share = {
    'all-reduce': 2 * (n - 1) / n,
    'all-gather': (n - 1) / n,
    'all-to-all': (n - 1) / n,
    'reduce-scatter': n - 1,
    'collective-permute': 1 if n > 1 else 0,
  }
  return sum(share[kind] * entry['bytes'] for kind, entry in found.items())
