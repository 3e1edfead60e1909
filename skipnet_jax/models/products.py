"""Products for GPUs that normalise what they read and finish what they write.

XLA fuses only a few elementwise operations with a product: for a 1x1
convolution after BatchNorm and ReLU it writes the normalised input and reads it
again, in both directions. The kernels (`product_kernels`) normalise the input
as they read it, and add bias, dropout and skip before they write. Here are
their operands, and how devices share them. Arrays are matrices of pixels by
channels.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.experimental import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from skipnet_jax.models import product_kernels as kernels

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Norm:
  """The operands by which a kernel normalises x `[m, k]`.

  Attributes:
    sums: over pixels of x, the first k elements; in at least float32.
    squares: the same of its square, the last k. May be the same array.
    vector: has BatchNorm's scale and bias, and the product's bias; `[v]`.
    starts: where each of the three begins, `[3]` int32.
  """

  sums: Array
  squares: Array
  vector: Array
  starts: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Words:
  """The operands by which dropout selects units, see `layers.dropped`.

  Attributes:
    key: its words, `[2]` uint32.
    layer: its number, `[1]` uint32.
    first: the number of the first pixel of each part, `[p]` uint32.
  """

  key: Array
  layer: Any
  first: Any


def forward(
  x: Array,
  norm: Norm,
  w: Array,
  skip: Array | None,
  words: Words | None,
  form: kernels.Form,
) -> tuple[Array, Array]:
  """`skip + dropout(relu(normalised x) @ w + bias)`.

  Args:
    x: `[m, k]`.
    norm: see `Norm`.
    w: `[k, n]`, of x's dtype.
    skip: `[m, n]`, or None.
    words: of dropout, or None.
    form: see `product_kernels.Form`.

  Returns:
    `[m, n]`, and the sums over pixels of it and of its square, side by side
    and in parts `[p, n + n]`, in at least float32.
  """
  split = form.rows // form.short
  part, pixel = ('(p q)', '(p q r)') if split > 1 else ('p', '(p r)')
  return on_each_device(
    functools.partial(kernels.forward, form=form, skipped=skip is not None),
    [
      (f'{pixel} k', x),
      *_of_norm(norm),
      ('k n', w),
      (f'{pixel} n', skip),
      *of_words(words),
    ],
    f'{pixel} n, {part} s',
    {'r': form.short} | ({'q': split} if split > 1 else {}),
  )


def sums(
  x: Array,
  norm: Norm,
  w: Array,
  dy: Array,
  words: Words | None,
  form: kernels.Form,
) -> tuple[Array, Array]:
  """Sums over pixels, for the gradients.

  Args:
    x: see `forward`, also for `norm`, `w`, `words` and `form`.
    dy: gradient of its result, `[m, n]`.

  Returns:
    In parts, to be added over their first axis: of the kernel `[p, k, n]`; and
    side by side, `[p, k + k + n]`, of the gradient of the normalised input, of
    it times the standardised input, and of the bias. In at least float32.
  """
  return on_each_device(
    functools.partial(kernels.sums, form=form),
    [
      ('(p r) k', x),
      *_of_norm(norm),
      ('k n', w),
      ('(p r) n', dy),
      *of_words(words),
    ],
    'p k n, p s',
    {'r': form.rows},
  )


def backward(
  x: Array,
  norm: Norm,
  w: Array,
  dy: Array,
  found: Array,
  through: Array | None,
  words: Words | None,
  form: kernels.Form,
) -> Array:
  """The gradient of x, `[m, k]`.

  Args:
    x: see `sums`, also for `norm`, `w`, `dy`, `words` and `form`.
    found: the second result of `sums`, added over its parts.
    through: is added, `[m, k]`, or None.
  """
  return on_each_device(
    functools.partial(kernels.backward, form=form, added=through is not None),
    [
      ('(p r) k', x),
      *_of_norm(norm),
      ('k n', w),
      ('(p r) n', dy),
      ('s', found),
      ('(p r) k', through),
      *of_words(words),
    ],
    '(p r) k',
    {'r': form.rows},
  )


def _of_norm(norm: Norm) -> list[tuple[str, Any]]:
  return [
    ('a', norm.sums),
    ('b', norm.squares),
    ('v', norm.vector),
    ('t', norm.starts),
  ]


def of_words(words: Words | None) -> list[tuple[str, Any]]:
  """Operands of `on_each_device`."""
  if words is None:
    return []
  return [('c', words.key), ('l', words.layer), ('p', words.first)]


def on_each_device(
  function: Callable,
  operands: Sequence[tuple[str, Any]],
  results: str,
  factors: dict[str, int],
) -> Any:
  """Calls a function of arrays that devices share by their pixels.

  Args:
    function: of the operands that are not None, in this order.
    operands: each with the names of its axes; devices share the axes whose
      first factor is `p`.
    results: the axes of the results.
    factors: sizes of the other factors of these axes.
  """
  given = [(axes, x) for axes, x in operands if x is not None]

  def partition(mesh, arguments, _):
    shared = arguments[0].sharding.spec[0]

    def place(axes):
      axes = re.findall(r'\(.*?\)|\w', axes)
      names = (shared if axis.strip('(')[0] == 'p' else None for axis in axes)
      return NamedSharding(mesh, PartitionSpec(*names))

    outside = tuple(map(place, results.split(', ')))
    return (
      mesh,
      function,
      outside if len(outside) > 1 else outside[0],
      tuple(place(axes) for axes, _ in given),
    )

  rule = f'{", ".join(axes for axes, _ in given)} -> {results}'
  if not re.search(r'(^|[ ,])p\b', rule):
    # JAX wants the sizes of factors that are no axis.
    factors = factors | {
      'p': given[0][1].shape[0] // math.prod(factors.values())
    }
  # JAX refuses a partial function with keywords.
  divided = custom_partitioning.custom_partitioning(lambda *x: function(*x))
  divided.def_partition(
    partition=partition,
    sharding_rule=rule,
    **factors,
  )
  return divided(*(x for _, x in given))
