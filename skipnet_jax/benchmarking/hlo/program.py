"""Reads the instructions of a compiled program: kind, layer, bytes."""

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
# Instructions that only run the instructions of other computations.
CONTAINERS = ('while', 'conditional', 'call')
_CALLERS = ('fusion', 'custom-call', 'async-start', *CONTAINERS)
# Kinds of work, with their opcodes. The first kind inside a fusion is its kind.
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
# Opcodes that move data or do nothing.
_MOVES = {'copy', 'bitcast', 'broadcast', 'concatenate', 'pad', 'reshape'}
_MOVES |= {'reverse', 'slice', 'dynamic-slice', 'dynamic-update-slice'}
_MOVES |= {'constant', 'parameter', 'tuple', 'get-tuple-element'}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of HLO.

  Attributes:
    name: unique in its module.
    opcode: its operation.
    bytes: of its operands and its result, by their shapes.
    called: names of the computations that it runs.
    op_name: its place in the traced function, '' if unknown.
    target: what a custom call runs, '' for other instructions.
  """

  name: str
  opcode: str
  bytes: int
  called: tuple[str, ...]
  op_name: str
  target: str


class Program:
  """An HLO module, read from its text.

  Attributes:
    module: its name.
    instructions: by name.
    computations: names of the instructions in each computation.
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
        if rest.startswith('('):
          shape, rest = _split_brackets(rest)
        else:
          shape, _, rest = rest.partition(' ')
        opcode, _, rest = rest.partition('(')
        operands, rest = _split_brackets(f'({rest}')
        sizes[head[1]] = collectives.shape_bytes(shape)
        # Of the words between the brackets, names of instructions are operands.
        read = [w for w in re.findall(r'[\w.-]+', operands) if w in sizes]
        called = _CALLED.findall(rest)
        self.instructions[head[1]] = Instruction(
          head[1],
          opcode.strip(),
          sizes[head[1]] + sum(sizes[name] for name in read),
          tuple(re.findall(r'[\w.-]+', ' '.join(sum(called, ())))),
          next(iter(_OP_NAME.findall(rest)), ''),
          next(iter(_TARGET.findall(rest)), ''),
        )
        here.append(head[1])
      elif match := _COMPUTATION.match(line):
        here = self.computations.setdefault(match[1], [])

  def inside(self, name: str) -> list[Instruction]:
    """All instructions that one runs, also indirectly; none for a reduction."""
    instruction = self.instructions[name]
    if instruction.opcode not in _CALLERS:
      return []
    found = []
    for computation in instruction.called:
      for inner in self.computations.get(computation, ()):
        found += [self.instructions[inner], *self.inside(inner)]
    return found

  def decisive(self, name: str) -> tuple[str, Instruction]:
    """The kind of an instruction's work, and the inner one that decides it."""
    instruction = self.instructions[name]
    inner = self.inside(name) or [instruction]
    for kind in _KINDS:
      for candidate in (instruction, *inner):
        if _has_kind(kind, candidate):
          return kind, candidate
    if all(i.opcode in _MOVES for i in inner):
      return 'copy', instruction
    custom = instruction.opcode == 'custom-call'
    return 'other' if custom else 'elementwise', instruction


def _has_kind(kind: str, instruction: Instruction) -> bool:
  target = instruction.target.lower()
  if target:
    return (kind == 'convolution' and 'conv' in target) or (
      kind == 'dot' and ('gemm' in target or 'matmul' in target)
    )
  if kind == 'random' and re.search(
    'threefry|random_bits', instruction.op_name
  ):
    return instruction.opcode not in _MOVES
  return re.sub('-(start|done)$', '', instruction.opcode) in _KINDS[kind]


def _split_brackets(text: str) -> tuple[str, str]:
  """Splits a text after the bracket that closes the first one."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return text[: i + 1], text[i + 1 :]
  return text, ''


def layer(op_name: str) -> str:
  """The layer in an op_name, marked if it belongs to the backward pass.

  `jit(one)/transpose(jvp(Net))/block_1/conv/conv_general_dilated` gives
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
