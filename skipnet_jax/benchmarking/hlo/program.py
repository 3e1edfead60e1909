"""Reads the instructions of a compiled program: kind, layer, bytes."""

from collections.abc import Iterator
import dataclasses
import math
import re

_HEAD = re.compile(r'^\s+(ROOT )?%?([\w.-]+) = ')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) .*\{$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|\w+_computations?)='
  r'(?:\{([^}]*)\}|(%?[\w.-]+))'
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WRAPPED = re.compile(r'^[\w<>]+\((.*)\)$')
# What devices send each other.
COLLECTIVES = (
  *('all-reduce', 'all-gather', 'all-to-all', 'ragged-all-to-all'),
  *('reduce-scatter', 'collective-permute', 'collective-broadcast'),
)
# Instructions that only run the instructions of other computations.
CONTAINERS = ('while', 'conditional', 'call')
_CALLERS = ('fusion', 'custom-call', 'async-start', *CONTAINERS)
# Kinds of work, with their opcodes. The first kind inside a fusion is its kind.
_KINDS = {
  'convolution': ('convolution',),
  'dot': ('dot', 'ragged-dot'),
  'random': ('rng', 'rng-bit-generator'),
  'collective': COLLECTIVES,
  'sort': ('sort',),
  'gather': ('gather', 'scatter'),
  'reduce': ('reduce', 'reduce-window', 'select-and-scatter'),
  'transpose': ('transpose',),
}
# Opcodes that move data or do nothing.
_MOVES = {'copy', 'bitcast', 'broadcast', 'concatenate', 'pad', 'reshape'}
_MOVES |= {'reverse', 'slice', 'dynamic-slice', 'dynamic-update-slice'}
_MOVES |= {'constant', 'parameter', 'tuple', 'get-tuple-element'}
# Opcodes for which nothing runs; the others run as a kernel of a GPU each.
_NO_KERNEL = {'bitcast', 'constant', 'get-tuple-element', 'parameter', 'tuple'}
_NO_KERNEL |= {'after-all', 'opt-barrier', 'partition-id', 'replica-id'}
# The second half of what began before, and a later look at it.
_LATER = ('-done', '-update')
# A TPU's fusions that begin and end a collective, by the target of their root.
# In between, fusions do other work, and have the same collective once more.
_BEGIN, _END = 'AsyncCollectiveStart', 'AsyncCollectiveDone'
# Other targets for which nothing runs: they only say where an array lies.
_NO_WORK = {'ConcatBitcast', 'AllocateBuffer', _END}
# They read as much of their first operand as they give.
_SLICES = {'slice', 'dynamic-slice', 'gather'}
_UPDATE = 'dynamic-update-slice'
# They begin to move an array, or a slice of one, to another memory.
_MOVERS = {'copy-start', 'slice-start', 'dynamic-slice-start'}
# The last result of these libraries is a workspace, which no instruction reads.
_LIBRARIES = re.compile('__cu(?:blas|dnn)')
_WORKSPACE = re.compile(r', (?:/\*index=\d+\*/)?[su]8\[\d*\](?:\{[^}]*\})?\)$')
# An array that a TPU does not keep in its main memory (HBM), but in one on the
# chip, has the number of that memory in its layout.
_ON_CHIP = re.compile(r'\w+\[[\d,]*\]\{[^}]*S\(\d+\)[^}]*\}')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')
# An array's sides, its axes from the innermost one, and the sides of a TPU's
# tiles, from the outermost: `bf16[8,512,32]{2,0,1:T(8,128)(2,1)}`.
_TILED = re.compile(r'(\w+)\[([\d,]+)\](\{([\d,]+):T\(([\d,]+)\)[^}]*\})')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of HLO.

  Attributes:
    name: unique in its module.
    opcode: its operation.
    operands: their names; of a parameter its number.
    shape: of its result, or of each array of a tuple, as HLO writes it.
    result_bytes: of its result, by its shape and the padding of a TPU's tiles;
      of what moves an array to another memory, of that array. The workspace of
      cuBLAS and cuDNN does not count.
    chip_bytes: those of them that lie on the chip instead of in HBM.
    called: names of the computations that it runs.
    op_name: its place in the traced function, '' if unknown.
    target: what a custom call runs, '' for other instructions.
    trips: how often a loop runs its body, 1 if unknown.
    channel: number of a collective, '' if it has none.
  """

  name: str
  opcode: str
  operands: tuple[str, ...]
  shape: str
  result_bytes: int
  chip_bytes: int
  called: tuple[str, ...]
  op_name: str
  target: str
  trips: int
  channel: str


class Program:
  """An HLO module, read from its text.

  Attributes:
    module: its name.
    instructions: by name.
    computations: names of the instructions in each computation.
    entry: name of the computation that the program starts with.
  """

  def __init__(self, hlo: str):
    match = re.match(r'HloModule ([\w.<>-]+)', hlo)
    self.module = match[1] if match else ''
    self.instructions: dict[str, Instruction] = {}
    self.computations: dict[str, list[str]] = {}
    self.entry = ''
    self._roots: dict[str, str] = {}
    here = ''
    for line in hlo.splitlines():
      if head := _HEAD.match(line):
        root, name = head.groups()
        self.instructions[name] = self._parse(name, line[head.end() :])
        self.computations.setdefault(here, []).append(name)
        if root:
          self._roots[here] = name
      elif match := _COMPUTATION.match(line):
        here = match[2]
        if match[1]:
          self.entry = here
    # Names of the collectives that fusions begin, by channel.
    self._begun = {
      self.instructions[name].channel: name
      for computation, root in self._roots.items()
      if self.instructions[root].target == _BEGIN
      for name in self.computations[computation]
      if self.instructions[name].channel
    }

  def _parse(self, name: str, text: str) -> Instruction:
    """Reads an instruction after its `=`; its operands are read already."""
    if text.startswith('('):
      shape, text = _split_brackets(text)
    else:
      shape, _, text = text.partition(' ')
    opcode, _, text = text.partition('(')
    opcode = opcode.strip()
    operands, text = _split_brackets(f'({text}')
    words = re.findall(r'[\w.-]+', operands)
    if opcode != 'parameter':
      # Of the words between the brackets, names of instructions are operands.
      words = [word for word in words if word in self.instructions]
    called = _CALLED.findall(text)
    if opcode in _MOVERS:
      # The array in its new place, that in its old one, and a number; the old
      # place of a slice comes first.
      arrays = re.findall(r'\w+\[[\d,]*\](?:\{[^}]*\})?', shape)
      shape = arrays[0 if opcode == 'copy-start' else -2]
    target = next(iter(_TARGET.findall(text)), '')
    if _LIBRARIES.match(target):
      shape = _WORKSPACE.sub(')', shape)
    return Instruction(
      name,
      opcode,
      tuple(dict.fromkeys(words)),
      shape,
      stored_bytes(shape),
      sum(map(stored_bytes, _ON_CHIP.findall(shape))),
      tuple(re.findall(r'[\w.-]+', ' '.join(sum(called, ())))),
      next(iter(_OP_NAME.findall(text)), ''),
      target,
      int(next(iter(_TRIPS.findall(text)), 1)),
      next(iter(_CHANNEL.findall(text)), ''),
    )

  def kernels(self) -> list[tuple[Instruction, int]]:
    """What runs as a kernel of a GPU each, and how often the program runs it.

    Of a condition, every branch counts; a loop whose number of runs the program
    does not tell counts once.
    """
    return [
      (one, times)
      for one, times in self.executed()
      if one.opcode not in _NO_KERNEL
      and not one.opcode.endswith(_LATER)
      and self._root(one).target not in _NO_WORK
    ]

  def executed(
    self, computation: str | None = None, times: int = 1
  ) -> Iterator[tuple[Instruction, int]]:
    """All instructions of the program, but not what fusions have inside.

    Yields:
      Each with the number of its runs, as in `kernels`.
    """
    for name in self.computations.get(computation or self.entry, ()):
      one = self.instructions[name]
      if one.opcode in CONTAINERS:
        for inner in one.called:
          yield from self.executed(inner, times * one.trips)
      else:
        yield one, times

  def _root(self, one: Instruction) -> Instruction:
    """What gives an instruction's result: of a fusion, its inner root."""
    if one.opcode != 'fusion':
      return one
    return self.instructions[self._roots[one.called[0]]]

  def _is_repeated_collective(self, one: Instruction) -> bool:
    """Whether a collective began in another fusion."""
    return self._begun.get(one.channel, one.name) != one.name

  def bytes_of(self, name: str, *, hbm: bool = False) -> int:
    """Bytes that an instruction reads and writes: its operands and its result.

    An operand of which only slices are used counts as those slices, also within
    a fusion. An array that is updated in place counts as the update. With
    `hbm`, arrays that lie on the chip do not count.
    """
    one = self.instructions[name]
    if one.opcode in _MOVERS:
      ends = one, self.instructions[one.operands[0]]
      return one.result_bytes * sum(not (hbm and i.chip_bytes) for i in ends)
    root = self._root(one)
    written = self._written(root, hbm)
    if root.target == _BEGIN or (
      one.opcode.endswith('-start') and one.opcode != 'all-reduce-start'
    ):
      return written  # Its result also holds the operands.
    if one.opcode == 'fusion':
      body = [self.instructions[n] for n in self.computations[one.called[0]]]
      body = [i for i in body if not self._is_repeated_collective(i)]
      sources = [i.name for i in body if i.opcode == 'parameter']
    else:
      body, sources = [one], list(one.operands)
    users: dict[str, list[Instruction]] = {}
    for inner in body:
      if inner.opcode != 'tuple':
        for operand in inner.operands:
          users.setdefault(operand, []).append(inner)
    updates = self._updates(root)
    return written + sum(
      self._read(source, users, updates)
      for source in sources
      if not (hbm and self.instructions[source].chip_bytes)
    )

  def _updates(self, root: Instruction) -> set[str]:
    """Names of the updates in place: no operation follows on their result."""
    found = {root.name} if root.opcode == _UPDATE else set()
    if root.opcode in ('tuple', 'bitcast', _UPDATE):
      follow = root.operands[: 1 if root.opcode == _UPDATE else None]
      for name in follow:
        found |= self._updates(self.instructions[name])
    return found

  def _read(
    self, name: str, users: dict[str, list[Instruction]], updates: set[str]
  ) -> int:
    """Bytes of an array that its users read."""
    whole, total = self.instructions[name].result_bytes, 0
    for user in users.get(name, ()):
      first = user.operands[:1] == (name,)
      if user.opcode in ('bitcast', 'convert') and user.name in users:
        read = self._read(user.name, users, updates)
        total += read * whole // max(1, user.result_bytes)
      elif user.opcode in _SLICES and first:
        total += user.result_bytes
      elif user.name not in updates or not first:
        return whole
    return min(whole, total)

  def _written(self, root: Instruction, hbm: bool) -> int:
    operands = [
      self.instructions[n] for n in root.operands if n in self.instructions
    ]
    if root.opcode == 'tuple':
      # A parameter is passed on as it lies there.
      return sum(
        self._written(operand, hbm)
        for operand in operands
        if operand.opcode != 'parameter'
      )
    if root.opcode == 'bitcast':
      return self._written(operands[0], hbm)
    if self._is_repeated_collective(root):
      return 0
    size = root.result_bytes
    if root.opcode == _UPDATE:
      size = operands[1].result_bytes
      if self._updates(operands[0]):
        size += self._written(operands[0], False)
    return max(0, size - root.chip_bytes) if hbm else size

  def inside(self, name: str) -> list[Instruction]:
    """All instructions that one runs, also indirectly; none for a reduction.

    A collective that began before is left out.
    """
    instruction = self.instructions[name]
    if instruction.opcode not in _CALLERS:
      return []
    found = []
    for computation in instruction.called:
      for name in self.computations.get(computation, ()):
        if not self._is_repeated_collective(self.instructions[name]):
          found += [self.instructions[name], *self.inside(name)]
    return found

  def decisive(self, name: str) -> tuple[str, Instruction]:
    """The kind of an instruction's work, and the inner one that decides it."""
    instruction = self.instructions[name]
    inner = self.inside(name) or [instruction]
    for kind in _KINDS:
      for candidate in (instruction, *inner):
        if _has_kind(kind, candidate):
          return kind, candidate
    if all(i.opcode.removesuffix('-start') in _MOVES for i in inner):
      return 'copy', instruction
    custom = instruction.opcode == 'custom-call'
    return 'other' if custom else 'elementwise', instruction


def stored_bytes(shape: str) -> int:
  """Bytes of an HLO shape, or of a tuple, with the padding of its tiles.

  A TPU keeps an array in tiles, of 8x128 elements for instance, and pads it to
  whole ones.
  """

  def padded(match: re.Match[str]) -> str:
    dtype, sides, layout, axes, tile = match.groups()
    size = [int(side) for side in sides.split(',')]
    for axis, side in zip(
      axes.split(','), reversed(tile.split(',')), strict=False
    ):
      size[int(axis)] = -(-size[int(axis)] // int(side)) * int(side)
    return f'{dtype}[{",".join(map(str, size))}]{layout}'

  return shape_bytes(_TILED.sub(padded, shape))


def shape_bytes(shape: str) -> int:
  """Bytes of an HLO shape such as `f32[8,128]{1,0}`, or of a tuple of them."""
  total = 0
  for dtype, bits, sides in _ARRAY.findall(shape):
    elements = math.prod(int(side) for side in sides.split(',') if side)
    total += elements * (8 if dtype == 'pred' else int(bits)) // 8
  return total


def _has_kind(kind: str, instruction: Instruction) -> bool:
  target = instruction.target.lower()
  if target:
    # The kernels in Triton are those of `models.products`.
    return (kind == 'convolution' and 'conv' in target) or (
      kind == 'dot' and bool(re.search('gemm|matmul|triton', target))
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
