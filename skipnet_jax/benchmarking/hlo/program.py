"""What the instructions of a compiled program are: kind, layer, bytes."""

import dataclasses
import re

from skipnet_jax.benchmarking.hlo import collectives

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
CONTAINERS = ('while', 'conditional', 'call')
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
    if one.opcode not in ('fusion', 'custom-call', 'async-start', *CONTAINERS):
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
