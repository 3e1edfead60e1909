"""Finds which operations of a compiled program take its time and bytes.

A trace has the names of the instructions that ran; the program's HLO text has
their kinds and shapes. Events with other names, such as the runtime's own, do
not count. The bytes of an operation are those of its operands and its result;
an operand counts as a whole even if the operation reads only a part of it.
"""

from collections.abc import Iterable
import dataclasses
import pathlib
from typing import Any
import warnings

import jax

from skipnet_jax import files
from skipnet_jax import tables
from skipnet_jax.benchmarking.hlo import program as program_lib

Program = program_lib.Program
_TOP = 20  # Operations in each list of the table.


@dataclasses.dataclass(frozen=True)
class Event:
  """One execution of an instruction: its start and duration, in seconds."""

  name: str
  start: float
  seconds: float


def read_events(path: pathlib.Path, program: Program) -> list[Event]:
  """The events of a trace that executed the program's instructions.

  Args:
    path: an `.xplane.pb`.
    program: whose instructions count.
  """
  found = []
  with warnings.catch_warnings():
    # JAX 0.11 and 0.12 on Python 3.12 and later warn so of their own C++ types.
    warnings.filterwarnings(
      'ignore', 'builtin type .* has no __module__', DeprecationWarning
    )
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    for line in (line for plane in planes for line in _lines(plane)):
      for event in line.events:
        stats = {k: v for k, v in event.stats if k in ('hlo_op', 'hlo_module')}
        name = stats.get('hlo_op', '' if stats else event.name).lstrip('%')
        module = stats.get('hlo_module', program.module)
        if name in program.instructions and module == program.module:
          found.append(
            Event(name, event.start_ns / 1e9, event.duration_ns / 1e9)
          )
  return found


def _lines(plane: Any) -> list[Any]:
  """The timelines of a plane in which operations run."""
  lines = list(plane.lines)
  if plane.name.startswith('/device:'):
    # On a GPU, the streams: lines derived from them would count twice.
    streams = [line for line in lines if line.name.startswith('Stream')]
    return streams or [line for line in lines if line.name == 'XLA Ops']
  return lines if plane.name.startswith('/host:CPU') else []


def table(
  program: Program, events: Iterable[Event], steps: int
) -> list[dict[str, Any]]:
  """The operations of one step, the longest first.

  A loop or call is left out if the instructions that it runs have events too.

  Returns:
    For each operation: name, kind, opcode, layer, seconds (summed over all
    threads), runs (how often it ran), bytes.
  """
  durations: dict[str, list[float]] = {}
  for event in events:
    durations.setdefault(event.name, []).append(event.seconds)
  rows = []
  for name, seconds in durations.items():
    one = program.instructions[name]
    if one.opcode in program_lib.CONTAINERS and any(
      inner.name in durations for inner in program.inside(name)
    ):
      continue
    kind, decisive = program.decisive(name)
    runs = len(seconds) / steps
    rows.append(
      {
        'name': name,
        'kind': kind,
        'opcode': one.opcode,
        # XLA itself made an instruction without op_name.
        'layer': program_lib.layer(decisive.op_name or one.op_name) or name,
        'seconds': sum(seconds) / steps,
        'runs': runs,
        'bytes': program.bytes_of(name) * runs,
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


def format_table(rows: list[dict[str, Any]], wall: float, busy: float) -> str:
  """A table of the kinds of operations; the top ones by time and by bytes.

  Args:
    rows: from `table`.
    wall: seconds of one step.
    busy: seconds of one step in which an operation ran, from `covered`.
  """
  whole = _total(rows, 'seconds') or 1.0
  lines = [
    f'A step takes {wall * 1e3:.4g} ms of wall time; the operations cover '
    f'{busy / wall:.1%} of it.',
    f'{len(rows)} operations, {whole * 1e3:.4g} ms in sum.',
    '',
  ]
  kinds: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    kinds.setdefault(row['kind'], []).append(row)
  lines += tables.layout(
    ('kind', 'operations', 'ms', 'share', 'MB', 'GB/s'),
    [
      [kind, str(len(group)), *_figures(group, whole)]
      for kind, group in sorted(
        kinds.items(), key=lambda item: -_total(item[1], 'seconds')
      )
    ],
  )
  for title, key in (('time', 'seconds'), ('bytes', 'bytes')):
    lines += ['', f'Top operations of one step by {title}:']
    lines += tables.layout(
      ('ms', 'share', 'MB', 'GB/s', 'runs', 'kind', 'layer'),
      [
        [
          *_figures([row], whole),
          tables.number(row['runs']),
          row['kind'],
          tables.shorten(row['layer'], 48),
        ]
        for row in sorted(rows, key=lambda r: -r[key])[:_TOP]
      ],
    )
  return '\n'.join(lines)


def _total(rows: list[dict[str, Any]], key: str) -> float:
  return sum(row[key] for row in rows)


def _figures(rows: list[dict[str, Any]], whole: float) -> list[str]:
  seconds, size = _total(rows, 'seconds'), _total(rows, 'bytes')
  return [
    tables.number(seconds * 1e3),
    f'{seconds / whole:.1%}',
    tables.number(size / 1e6),
    tables.number(size / seconds / 1e9) if seconds else '',
  ]


def write_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes every row of `table`."""
  files.write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
