"""Which operations a compiled program spends its time and bytes on.

A trace names what ran; the program's HLO text says what that is. Only events
that carry the name of an instruction of the program count: the runtime's own
are left out. Bytes are those of an operation's operands and result by their
shapes; one that reads a part of an operand only is charged with all of it.
"""

from collections.abc import Iterable
import dataclasses
import pathlib
from typing import Any
import warnings

from skipnet_jax import files
from skipnet_jax import tables
from skipnet_jax.benchmarking.hlo import program as program_lib

Program = program_lib.Program


@dataclasses.dataclass(frozen=True)
class Event:
  """An instruction's run: when it started and how long it took, in seconds."""

  name: str
  start: float
  seconds: float


def read_events(path: pathlib.Path, program: Program) -> list[Event]:
  """The events of a trace that ran the program's instructions.

  Args:
    path: an `.xplane.pb`.
    program: whose instructions count.
  """
  with warnings.catch_warnings():
    # JAX 0.11 and 0.12 on Python 3.12 and later warn so of their own C++ types.
    # Where warnings are errors, that would end the process.
    warnings.filterwarnings(
      'ignore', 'builtin type .* has no __module__', DeprecationWarning
    )
    return _read_events(path, program)


def _read_events(path: pathlib.Path, program: Program) -> list[Event]:
  # Only now: the HLO can be read without JAX.
  import jax

  found = []
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    lines = list(plane.lines)
    if plane.name.startswith('/device:'):
      # A GPU's streams. What is derived from them would count twice.
      streams = [line for line in lines if line.name.startswith('Stream')]
      lines = streams or [line for line in lines if line.name == 'XLA Ops']
    elif not plane.name.startswith('/host:CPU'):
      continue
    for line in lines:
      for event in line.events:
        stats = {k: v for k, v in event.stats if k in ('hlo_op', 'hlo_module')}
        name = stats.get('hlo_op', '' if stats else event.name).lstrip('%')
        module = stats.get('hlo_module', program.module)
        if name in program.instructions and module == program.module:
          found.append(
            Event(name, event.start_ns / 1e9, event.duration_ns / 1e9)
          )
  return found


def table(
  program: Program, events: Iterable[Event], steps: int
) -> list[dict[str, Any]]:
  """What each operation took, the longest first.

  A loop or a call is left out where what it runs has events of its own.

  Returns:
    For each: name, kind, opcode, layer, seconds (of one step, all threads
    added), runs (of one step), bytes (of one step).
  """
  events = list(events)
  seen = {event.name for event in events}
  taken: dict[str, list[float]] = {}
  for event in events:
    one = program.instructions[event.name]
    if one.opcode in program_lib.CONTAINERS and any(
      inner.name in seen for inner in program.inside(one.name)
    ):
      continue
    taken.setdefault(event.name, []).append(event.seconds)
  rows = []
  for name, seconds in taken.items():
    one = program.instructions[name]
    kind, decisive = program.decisive(name)
    runs = len(seconds) / steps
    rows.append(
      {
        'name': name,
        'kind': kind,
        'opcode': one.opcode,
        # Without either, XLA made it up.
        'layer': program_lib.layer(decisive.op_name or one.op_name) or name,
        'seconds': sum(seconds) / steps,
        'runs': runs,
        'bytes': one.bytes * runs,
      }
    )
  return sorted(rows, key=lambda row: -row['seconds'])


def covered(events: Iterable[Event]) -> float:
  """Seconds in which at least one of the events ran."""
  total, end = 0.0, float('-inf')
  for event in sorted(events, key=lambda e: e.start):
    stop = event.start + event.seconds
    total += max(0.0, stop - max(event.start, end))
    end = max(end, stop)
  return total


def format_table(
  rows: list[dict[str, Any]], wall: float, busy: float, top: int = 20
) -> str:
  """Shares by kind, then the top operations by time and by bytes.

  Args:
    rows: from `table`.
    wall: seconds of one step.
    busy: seconds of one step in which an operation ran, from `covered`.
    top: how many operations are listed.
  """
  whole = sum(row['seconds'] for row in rows) or 1.0
  lines = [
    f'A step takes {wall * 1e3:.4g} ms of wall time; the operations cover '
    f'{busy / wall:.1%} of it.',
    f'{len(rows)} operations, {whole * 1e3:.4g} ms with parallel ones added.',
    '',
  ]
  kinds: dict[str, list[float]] = {}
  for row in rows:
    entry = kinds.setdefault(row['kind'], [0.0, 0.0, 0])
    entry[0] += row['seconds']
    entry[1] += row['bytes']
    entry[2] += 1
  heads = ('kind', 'operations', 'ms', 'share', 'MB', 'GB/s')
  lines += tables.layout(
    heads,
    [
      [kind, str(n), *_figures(s, b, whole)]
      for kind, (s, b, n) in sorted(kinds.items(), key=lambda i: -i[1][0])
    ],
  )
  for title, key in (('time', 'seconds'), ('bytes', 'bytes')):
    lines += ['', f'Top operations by {title}, of one step:']
    lines += tables.layout(
      ('ms', 'share', 'MB', 'GB/s', 'runs', 'kind', 'layer'),
      [
        [
          *_figures(row['seconds'], row['bytes'], whole),
          tables.number(row['runs']),
          row['kind'],
          row['layer'][-48:],
        ]
        for row in sorted(rows, key=lambda r: -r[key])[:top]
      ],
    )
  return '\n'.join(lines)


def _figures(seconds: float, size: float, whole: float) -> list[str]:
  number = tables.number
  return [
    number(seconds * 1e3),
    f'{seconds / whole:.1%}',
    number(size / 1e6),
    number(size / seconds / 1e9) if seconds else '',
  ]


def write_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes every row of `table`."""
  files.write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
