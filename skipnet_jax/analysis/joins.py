"""Finds the skips of a network that does not name them, in its traced program.

A skip ends in a join: an addition, or a concatenation of channels, one side of
which bypasses layers that the other side passes. Both sides come from one place
behind the first layer; what is injected from the image is no skip. A long skip
bypasses layers at a lower resolution than both of its ends have, a short one
does not. Layers that are applied more than once, as in a recurrence, do not
count: what one step passes another bypasses. Nor does what computes a gate, a
factor of one channel or of one pixel.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
import operator
import re
from typing import Any

import flax.linen as nn
from jax.extend import core

# Operations that only run another program, which is looked into.
_CALLS = ('pjit', 'jit', 'closed_call', 'remat', 'remat2', 'checkpoint')
_LOOPS = ('scan', 'while')
_LAYERS = ('conv_general_dilated', 'dot_general')
# Joins of so few channels fuse predictions.
_PREDICTIONS = 2

# Called with (join, path, skipped) for each skipped side; returns both.
Change = Callable[['Join', Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Join:
  """The skipped side of an addition or a concatenation.

  Attributes:
    name: the module in which it stands, and the operation.
    kind: 'long' or 'short'.
    layers: layers that the other side passes and this one does not.
    operation: its number among the operations of the program.
    side: the operand that skips.
    path: the operand that passes the most layers.
  """

  name: str
  kind: str
  layers: int
  operation: int
  side: int
  path: int

  @property
  def is_sum(self) -> bool:
    """Whether it is a side of an addition, not of a concatenation."""
    return not self.name.endswith('/concatenate')

  def __str__(self) -> str:
    return f'{self.name} ({self.kind}, bypasses {self.layers} layers)'


def named(change: Callable[..., tuple]) -> contextlib.AbstractContextManager:
  """In this context, skips that are modules get other arguments.

  `change(kind, name, path, skipped)` returns the two arguments of a module with
  a `skip_kind`, see `models.skips`.
  """

  def intercept(next_fun, args, kwargs, context):
    kind = getattr(context.module, 'skip_kind', None)
    if kind in ('long', 'short') and context.method_name == '__call__':
      args = change(kind, '/'.join(context.module.path), *args)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)


@dataclasses.dataclass
class _Value:
  """What is known of a value.

  Attributes:
    past: the operations on the image that it depends on, a bit for each.
    roots: the arguments of the program that it depends on, likewise.
    of_image: whether the image is one of these.
    shape: of the value.
    repeated: whether it was broadcast, as a gate is.
  """

  past: int
  roots: int
  of_image: bool
  shape: tuple[int, ...]
  repeated: bool = False


@dataclasses.dataclass(frozen=True)
class _Layer:
  """Pixels of a layer's kernel, roots of its kernel, pixels of its output."""

  taps: int
  kernel: int
  area: int


@dataclasses.dataclass
class _Trace:
  """What a walk through the program collects."""

  layers: dict[int, _Layer] = dataclasses.field(default_factory=dict)
  # Number and name of an operation that joins, and its operands.
  joining: list[tuple[int, str, list[_Value]]] = dataclasses.field(
    default_factory=list
  )
  loops: list[str] = dataclasses.field(default_factory=list)
  count: int = 0


def find(
  program: core.ClosedJaxpr, image: int
) -> tuple[tuple[Join, ...], tuple[str, ...]]:
  """Finds the skips of a program.

  Args:
    program: of `jax.make_jaxpr`.
    image: which of its flat arguments is the image, `[b, y, x, c]`.

  Returns:
    The skips in the order of the program; and the modules whose layers are in
    loops, in which skips are not looked for.
  """
  trace = _Trace()
  arguments = [
    _Value(0, 1 << i, i == image, _shape(aval))
    for i, aval in enumerate(program.in_avals)
  ]
  _walk(program.jaxpr, arguments, trace)
  uses = collections.Counter(layer.kernel for layer in trace.layers.values())
  once = sum(
    1 << number
    for number, layer in trace.layers.items()
    if uses[layer.kernel] == 1
  )
  found = [
    join
    for number, name, sides in trace.joining
    for join in _skips(number, name, sides, trace.layers, once)
  ]
  return tuple(found), tuple(dict.fromkeys(trace.loops))


def _walk(
  jaxpr: core.Jaxpr, arguments: Sequence[_Value], trace: _Trace
) -> list[_Value]:
  constant = _Value(0, 0, False, ())
  values: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))

  def read(variable: Any) -> _Value:
    literal = isinstance(variable, core.Literal)
    return constant if literal else values.get(variable, constant)

  for eqn in jaxpr.eqns:
    inputs = [read(v) for v in eqn.invars]
    inner = _inner(eqn)
    if inner is not None:
      found = _walk(inner.jaxpr, inputs, trace)
      values |= dict(zip(eqn.outvars, found, strict=True))
      continue
    number, trace.count = trace.count, trace.count + 1
    of_image = [value for value in inputs if value.of_image]
    name, past, roots = eqn.primitive.name, 0, 0
    shapes = [_shape(v.aval) for v in eqn.outvars]
    gates = [
      value
      for value in of_image
      if name == 'mul' and (value.repeated or value.shape != shapes[0])
    ]
    for value in inputs:
      roots |= value.roots
      if len(gates) == len(of_image) or value not in gates:
        past |= value.past
    if of_image:
      past |= 1 << number
      if name in _LAYERS and len(of_image) == 1:
        kernel = next(value for value in inputs if not value.of_image)
        trace.layers[number] = _Layer(
          math.prod(kernel.shape) // math.prod(kernel.shape[-2:]),
          kernel.roots,
          shapes[0][1] * shapes[0][2] if _is_map(shapes[0]) else 0,
        )
      elif name in _LOOPS and _has_layers(eqn):
        trace.loops.append(_module(eqn))
      elif _joins(eqn, inputs):
        trace.joining.append((number, f'{_module(eqn)}/{name}', inputs))
    for variable, shape in zip(eqn.outvars, shapes, strict=True):
      repeated = name == 'broadcast_in_dim' and shape != inputs[0].shape
      values[variable] = _Value(past, roots, bool(of_image), shape, repeated)
  return [read(v) for v in jaxpr.outvars]


def _shape(aval: Any) -> tuple[int, ...]:
  """Of a value's type; () of what is no array."""
  return tuple(getattr(aval, 'shape', ()))


def _inner(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The program that an operation only runs; None for another operation."""
  if eqn.primitive.name not in _CALLS:
    return None
  inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
  if isinstance(inner, core.Jaxpr):
    return core.ClosedJaxpr(inner, ())
  return inner


def _has_layers(eqn: core.JaxprEqn) -> bool:
  return any(name in str(eqn.params) for name in _LAYERS)


def _module(eqn: core.JaxprEqn) -> str:
  """Path of the module that an operation stands in, without the network's."""
  stack = str(eqn.source_info.name_stack)
  # Transformations wrap a name, such as jvp(Net).
  names = [n for n in re.split(r'[/()]', stack) if n]
  return '/'.join(names[1:]) or (names[0] if names else 'network')


def _joins(eqn: core.JaxprEqn, inputs: Sequence[_Value]) -> bool:
  """Whether an operation adds or concatenates maps that depend on the image."""
  if not all(value.of_image and _is_map(value.shape) for value in inputs):
    return False
  # Of so few channels they are predictions, which are fused.
  if max(value.shape[-1] for value in inputs) <= _PREDICTIONS:
    return False
  name, shape = eqn.primitive.name, inputs[0].shape
  if name == 'concatenate':
    return len(inputs) > 1 and eqn.params['dimension'] == len(shape) - 1
  return name in ('add', 'add_any') and shape == inputs[1].shape


def _is_map(shape: tuple[int, ...]) -> bool:
  return len(shape) >= 4 and shape[1] * shape[2] > 1


def _skips(
  number: int,
  name: str,
  sides: Sequence[_Value],
  layers: Mapping[int, _Layer],
  counted: int,
) -> list[Join]:
  """The sides of a join that skip; `counted` has a bit for each layer."""
  shared = functools.reduce(operator.and_, (value.past for value in sides))
  if not shared & counted:
    return []

  def passed(value: _Value, other: _Value) -> list[_Layer]:
    """The layers of a value's past that another has not."""
    return [layers[n] for n in _bits(value.past & ~other.past & counted)]

  path = max(
    range(len(sides)), key=lambda i: (sides[i].past & counted).bit_count()
  )
  found = []
  for side, value in enumerate(sides):
    through, beside = passed(sides[path], value), passed(value, sides[path])
    # A projection has fewer layers, or smaller ones, than what it bypasses.
    size, other = (
      (len(each), sum(layer.taps for layer in each))
      for each in (through, beside)
    )
    if side == path or size <= other:
      continue
    before = layers[_bits(sides[path].past & value.past & counted)[-1]]
    ends = min(before.area, value.shape[1] * value.shape[2])
    below = any(0 < layer.area < ends for layer in through)
    kind = 'long' if below else 'short'
    found.append(Join(name, kind, len(through), number, side, path))
  return found


def _bits(mask: int) -> list[int]:
  found = []
  while mask:
    low = mask & -mask
    found.append(low.bit_length() - 1)
    mask ^= low
  return found


def evaluate(
  program: core.ClosedJaxpr,
  arguments: Sequence[Any],
  joins: Sequence[Join],
  change: Change,
) -> list[Any]:
  """Runs a program, with `change` applied to both sides of each skip.

  Args:
    program: in which the joins were found.
    arguments: flat.
    joins: of `find`.
    change: of (join, path, skipped), returns these two.

  Returns:
    The flat results.
  """
  by_operation: dict[int, list[Join]] = {}
  for join in joins:
    by_operation.setdefault(join.operation, []).append(join)
  counter = [0]

  def run(jaxpr, constants, inputs):
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable):
      if isinstance(variable, core.Literal):
        return variable.val
      return values[variable]

    for eqn in jaxpr.eqns:
      operands = [read(v) for v in eqn.invars]
      inner = _inner(eqn)
      if inner is not None:
        results = run(inner.jaxpr, inner.consts, operands)
      else:
        number, counter[0] = counter[0], counter[0] + 1
        for join in by_operation.get(number, ()):
          path, skipped = change(join, operands[join.path], operands[join.side])
          operands[join.path], operands[join.side] = path, skipped
        parameters = eqn.primitive.get_bind_params(eqn.params)
        results = eqn.primitive.bind(*operands, **parameters)
        if not eqn.primitive.multiple_results:
          results = [results]
      values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]

  return run(program.jaxpr, program.consts, arguments)
