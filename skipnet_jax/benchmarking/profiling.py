"""Which operations a compiled program spends its time and bytes on.

A trace names what ran; the program's HLO text says what that is. Only events
that carry the name of an instruction of the program count: the runtime's own
are left out. Bytes are those of an operation's operands and result by their
shapes; one that reads a part of an operand only is charged with all of it.
"""

from collections.abc import Iterable
import csv
import dataclasses
import pathlib
import re
from typing import Any

from skipnet_jax.benchmarking import collectives
from skipnet_jax.benchmarking import text_table

_HEAD = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = ')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.-]+) .*\{$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|\w+_computations?)='
  r'(?:\{([^}]*)\}|(%?[\w.-]+))'
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_WRAPPED = re.compile(r'^[\w<>]+\((.*)\)$')
# What only hands over to other instructions.
_CONTAINERS = ('while', 'conditional', 'call')
# Kinds of work, the one first that decides what a fusion is.
_KINDS = {
  'convolution': ('convolution',),
  'dot': ('dot', 'ragged-dot'),
  'random': ('rng', 'rng-bit-generator'),
  'collective': collectives.KINDS,
  'sort': ('sort',),
  'gather': ('gather', 'scatter'),
  'reduce': ('reduce', 'reduce-window', 'select-and-scatter'),
  'transpose': ('transpose',),
}
_MOVES = (
  'copy',
  'bitcast',
  'broadcast',
  'concatenate',
  'constant',
  'dynamic-slice',
  'dynamic-update-slice',
  'get-tuple-element',
  'pad',
  'parameter',
  'reshape',
  'reverse',
  'slice',
  'tuple',
)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of HLO.

  Attributes:
    name: unique in its module.
    opcode: what it does.
    bytes: of its operands and its result, by their shapes.
    called: the computations it names.
    op_name: where in the traced function it comes from, '' if unknown.
    target: of a custom call, '' for others.
  """

  name: str
  opcode: str
  bytes: int
  called: tuple[str, ...]
  op_name: str
  target: str


@dataclasses.dataclass(frozen=True)
class Event:
  """An instruction's run: when it started and how long it took, in seconds."""

  name: str
  start: float
  seconds: float


class Program:
  """The instructions of an HLO module's text.

  Attributes:
    module: its name.
    instructions: by name.
    computations: names of the instructions in each.
  """

  def __init__(self, hlo: str):
    match = re.match(r'HloModule ([\w.<>-]+)', hlo)
    self.module = match[1] if match else ''
    self.instructions: dict[str, Instruction] = {}
    self.computations: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    here: list[str] = []
    for line in hlo.splitlines():
      head = _HEAD.match(line)
      if head:
        rest = line[head.end() :]
        shape, rest = _shape(rest)
        opcode, _, rest = rest.partition('(')
        operands, rest = _balanced(f'({rest}')
        sizes[head[1]] = collectives.shape_bytes(shape)
        # A word of the operands that names an instruction is an operand.
        read = [w for w in re.findall(r'[\w.-]+', operands) if w in sizes]
        called = _CALLED.findall(rest)
        self.instructions[head[1]] = Instruction(
          head[1],
          opcode.strip(),
          sizes[head[1]] + sum(sizes[name] for name in read),
          tuple(re.findall(r'[\w.-]+', ' '.join(sum(called, ())))),
          _first(_OP_NAME, rest),
          _first(_TARGET, rest),
        )
        here.append(head[1])
      elif match := _COMPUTATION.match(line):
        here = self.computations.setdefault(match[1], [])

  def inside(self, name: str) -> list[Instruction]:
    """An instruction's computations, theirs included; of a reduction none."""
    one = self.instructions[name]
    if one.opcode not in ('fusion', 'custom-call', 'async-start', *_CONTAINERS):
      return []
    found = []
    for computation in one.called:
      for inner in self.computations.get(computation, ()):
        found += [self.instructions[inner], *self.inside(inner)]
    return found

  def decisive(self, name: str) -> tuple[str, Instruction]:
    """The kind of work, and which instruction inside a fusion decides it."""
    one = self.instructions[name]
    inner = self.inside(name) or [one]
    for kind in _KINDS:
      for candidate in (one, *inner):
        if _is(kind, candidate):
          return kind, candidate
    if all(i.opcode in _MOVES for i in inner):
      return 'copy', one
    return ('other' if one.opcode == 'custom-call' else 'elementwise'), one


def _is(kind: str, one: Instruction) -> bool:
  target = one.target.lower()
  if target:
    return (kind == 'convolution' and 'conv' in target) or (
      kind == 'dot' and ('gemm' in target or 'matmul' in target)
    )
  if kind == 'random' and re.search('threefry|random_bits', one.op_name):
    return one.opcode not in _MOVES
  return re.sub('-(start|done)$', '', one.opcode) in _KINDS[kind]


def _first(pattern: re.Pattern, text: str) -> str:
  match = pattern.search(text)
  return match[1] if match else ''


def _balanced(text: str) -> tuple[str, str]:
  """Splits behind the bracket that closes the first one."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return text[: i + 1], text[i + 1 :]
  return text, ''


def _shape(text: str) -> tuple[str, str]:
  if text.startswith('('):
    return _balanced(text)
  shape, _, rest = text.partition(' ')
  return shape, rest


def layer(op_name: str) -> str:
  """The layer of an op_name, and whether it is the gradient's part.

  `jit(one)/transpose(jvp(Net))/block_1/conv/conv_general_dilated` is
  `block_1/conv (gradient)`.
  """
  *path, operation = op_name.split('/')
  parts = []
  for part in path:
    bare = part
    while match := _WRAPPED.match(bare):
      bare = match[1]
    if bare == part and part not in ('while', 'body', 'closed_call'):
      parts.append(part)
  name = '/'.join(parts) or operation
  return f'{name} (gradient)' if 'transpose(' in op_name else name


def read_events(path: pathlib.Path, program: Program) -> list[Event]:
  """The events of a trace that ran the program's instructions.

  Args:
    path: an `.xplane.pb`.
    program: whose instructions count.
  """
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
    if one.opcode in _CONTAINERS and any(
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
        'layer': layer(decisive.op_name or one.op_name) or name,
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
  lines += text_table.layout(
    heads,
    [
      [kind, str(n), *_figures(s, b, whole)]
      for kind, (s, b, n) in sorted(kinds.items(), key=lambda i: -i[1][0])
    ],
  )
  for title, key in (('time', 'seconds'), ('bytes', 'bytes')):
    lines += ['', f'Top operations by {title}, of one step:']
    lines += text_table.layout(
      ('ms', 'share', 'MB', 'GB/s', 'runs', 'kind', 'layer'),
      [
        [
          *_figures(row['seconds'], row['bytes'], whole),
          text_table.number(row['runs']),
          row['kind'],
          row['layer'][-48:],
        ]
        for row in sorted(rows, key=lambda r: -r[key])[:top]
      ],
    )
  return '\n'.join(lines)


def _figures(seconds: float, size: float, whole: float) -> list[str]:
  number = text_table.number
  return [
    number(seconds * 1e3),
    f'{seconds / whole:.1%}',
    number(size / 1e6),
    number(size / seconds / 1e9) if seconds else '',
  ]


def write_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes every row of `table`."""
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
