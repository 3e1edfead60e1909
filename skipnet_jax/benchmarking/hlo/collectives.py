"""Counts what devices send each other, from a program's optimised HLO."""

from collections.abc import Callable

from skipnet_jax.benchmarking.hlo import program as program_lib

# How many times the bytes of its result, in a program for m devices, each of n
# devices sends in a ring. What a device has of its own is as large for any
# number of them: of a sum all of it, of what is gathered its part.
_SENT: dict[str, Callable[[int, int], float]] = {
  'all-reduce': lambda n, m: 2 * (n - 1) / n,
  'all-gather': lambda n, m: (n - 1) / m,
  'all-to-all': lambda n, m: (n - 1) / n,
  'ragged-all-to-all': lambda n, m: (n - 1) / n,
  'reduce-scatter': lambda n, m: m * (n - 1) / n,
  'collective-permute': lambda n, m: min(1, n - 1),
  'collective-broadcast': lambda n, m: min(1, n - 1),
}


def count(program: program_lib.Program) -> dict[str, dict[str, int]]:
  """The collectives of a program, each as often as it runs.

  An asynchronous one, which the program has in two or more instructions, counts
  once.

  Returns:
    For each kind that occurs: `count`, and `bytes` of the results on one
    device, without padding.
  """
  found: dict[str, dict[str, int]] = {}
  for executed, times in program.executed():
    for one in (executed, *program.inside(executed.name)):
      # The result of a `-start` also holds the operands, that of its `-done`
      # does not.
      kind = one.opcode.removesuffix('-done')
      if kind in _SENT:
        entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
        entry['count'] += times
        entry['bytes'] += times * program_lib.shape_bytes(one.shape)
  return found


def sent_bytes(
  found: dict[str, dict[str, int]], devices: int, compiled: int
) -> float:
  """The fewest bytes that each device sends, in rings over all devices.

  Args:
    found: from `count`.
    devices: number of devices that share each collective.
    compiled: number of devices of the program that was counted.
  """
  return sum(
    _SENT[kind](devices, compiled) * one['bytes'] for kind, one in found.items()
  )
