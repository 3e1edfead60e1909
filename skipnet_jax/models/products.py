"""Products for GPUs that normalise what they read and finish what they write.

XLA fuses only a few elementwise operations with a product: for a 1x1
convolution after BatchNorm and ReLU it writes the normalised input and reads it
again, in both directions. These kernels, in Pallas, normalise the input as they
read it, and add bias, dropout and skip before they write. Arrays are matrices
of pixels by channels.

What differs between blocks of one shape is an operand: the compiler then makes
one kernel for all of them.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax import lax
from jax.experimental import custom_partitioning
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from skipnet_jax.models import fused_norm
from skipnet_jax.models import layers

Array = jax.Array
# Most rows and columns of a tile.
_ROWS, _COLUMNS = 64, 64
# Most rows of a program that adds up products, and of one that adds up rows.
_LONG, _SHORT = 1024, 256


@dataclasses.dataclass(frozen=True)
class Form:
  """What is fixed when a product is compiled.

  Attributes:
    rows: number of pixels in a part of the sums for gradients; it divides an
      image, so that each part lies on one device.
    pixels: by which sums are divided for means.
    epsilon: is added to the variance.
    biased: whether the product has a bias.
    rate: of dropout; 0 for none.
    interpret: whether it runs on a CPU, slowly, for tests.
  """

  rows: int
  pixels: int
  epsilon: float
  biased: bool = True
  rate: float = 0.0
  interpret: bool = False

  @property
  def short(self) -> int:
    """Number of pixels in a part of the sums over a result."""
    return min(_SHORT, self.rows)


def rows_of(pixels: int) -> int:
  """`Form.rows` for images of so many pixels."""
  return min(_LONG, pixels & -pixels)


def fits(pixels: int, inputs: int, outputs: int) -> bool:
  """Whether the kernels take a product of these sides, for such images."""
  return (
    rows_of(pixels) >= _ROWS
    and all(n >= 16 and not n & (n - 1) for n in (inputs, outputs))
    and inputs <= 1024
    and outputs <= 512
  )


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
  """The operands by which dropout selects units, see `layers.kept`.

  Attributes:
    key: its words, `[2]` uint32.
    layer: its number, `[1]` uint32.
    first: the number of the first pixel of each part of `Form.rows` pixels,
      `[p]` uint32.
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
  form: Form,
) -> tuple[Array, Array]:
  """`skip + dropout(relu(normalised x) @ w + bias)`.

  Args:
    x: `[m, k]`.
    norm: see `Norm`.
    w: `[k, n]`, of x's dtype.
    skip: `[m, n]`, or None.
    words: of dropout, or None.
    form: see `Form`.

  Returns:
    `[m, n]`, and the sums over pixels of it and of its square, side by side
    and in parts `[p, n + n]`, in at least float32.
  """
  split = form.rows // form.short
  part, pixel = ('(p q)', '(p q r)') if split > 1 else ('p', '(p r)')
  return _on_each_device(
    functools.partial(_forward, form=form, skipped=skip is not None),
    [
      (f'{pixel} k', x),
      *_of_norm(norm),
      ('k n', w),
      (f'{pixel} n', skip),
      *_of_words(words),
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
  form: Form,
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
  return _on_each_device(
    functools.partial(_sums, form=form),
    [
      ('(p r) k', x),
      *_of_norm(norm),
      ('k n', w),
      ('(p r) n', dy),
      *_of_words(words),
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
  form: Form,
) -> Array:
  """The gradient of x, `[m, k]`.

  Args:
    x: see `sums`, also for `norm`, `w`, `dy`, `words` and `form`.
    found: the second result of `sums`, added over its parts.
    through: is added, `[m, k]`, or None.
  """
  return _on_each_device(
    functools.partial(_backward, form=form, added=through is not None),
    [
      ('(p r) k', x),
      *_of_norm(norm),
      ('k n', w),
      ('(p r) n', dy),
      ('s', found),
      ('(p r) k', through),
      *_of_words(words),
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


def _of_words(words: Words | None) -> list[tuple[str, Any]]:
  if words is None:
    return []
  return [('c', words.key), ('l', words.layer), ('p', words.first)]


def _on_each_device(
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


def _call(
  kernel: Callable, form: Form, grid: Any, warps: int = 4, **arguments: Any
) -> Callable:
  # Imported late: a CPU does not need it.
  from jax.experimental.pallas import triton

  return pl.pallas_call(
    kernel,
    grid=grid,
    interpret=form.interpret,
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
    **arguments,
  )


def _wide(x: Array) -> Any:
  return jnp.promote_types(x.dtype, jnp.float32)


def _read(norm: Sequence[Any], which: int, column: Any, width: int) -> Array:
  """Scale, bias, or the product's bias, of some columns."""
  *_, vector_ref, starts_ref = norm
  return vector_ref[pl.ds(starts_ref[which] + column, width)]


def _moments(
  norm: Sequence[Any], column: Any, width: int, k: int, form: Form
) -> tuple[Array, Array]:
  """Mean and inverse of the deviation of some columns of k."""
  sums_ref, squares_ref = norm[:2]
  mean = sums_ref[pl.ds(column, width)] / form.pixels
  last = squares_ref.shape[0] - k
  square = squares_ref[pl.ds(last + column, width)] / form.pixels
  variance = fused_norm.variance_of(mean, square)
  return mean, lax.rsqrt(variance + form.epsilon)


def _activated(
  x: Array, norm: Sequence[Any], column: Any, k: int, form: Form
) -> tuple[Array, Array]:
  """A tile of x, standardised, and the same with scale and bias, of x's dtype.

  Args:
    x: `[rows, columns]`.
    norm: references to the operands of `Norm`.
    column: the tile's first.
    k: number of columns of the matrix.
    form: see `Form`.
  """
  width = x.shape[1]
  mean, inverse = _moments(norm, column, width, k, form)
  scale, bias = (_read(norm, which, column, width) for which in (0, 1))
  centred = layers.at_least_float32(x) - mean[None]
  y = centred * (inverse * scale)[None] + bias[None]
  return centred * inverse[None], y.astype(x.dtype)


def _dropped(
  y: Array, form: Form, words: Sequence[Any], row: Any, column: Any, width: int
) -> Array:
  """A tile after dropout, or the gradient before it; the same if there is none.

  Args:
    y: `[rows, columns]` of a matrix of `width` columns.
    form: see `Form`.
    words: references to the operands of `Words`, or none.
    row: the tile's first.
    column: the tile's first.
    width: see y.
  """
  if not words:
    return y
  key_ref, layer_ref, first_ref = words
  part = row // form.rows
  unit = lax.broadcasted_iota(jnp.int32, y.shape, 0) * width
  unit += lax.broadcasted_iota(jnp.int32, y.shape, 1)
  unit += (row - part * form.rows) * width + column
  key = [key_ref[0], key_ref[1]]
  unit = unit.astype(jnp.uint32) + first_ref[part] * jnp.uint32(width)
  keep = layers.kept(unit, layer_ref[0], key, form.rate)
  scale = jnp.asarray(1 / (1 - form.rate), y.dtype)
  return jnp.where(keep, y * scale, jnp.zeros_like(y))


def _whole(*arrays: Array) -> list[pl.BlockSpec]:
  return [pl.BlockSpec(a.shape, lambda *_, n=a.ndim: (0,) * n) for a in arrays]


def _forward(x, *operands, form: Form, skipped: bool):
  *norm, w = operands[:5]
  others = operands[5:]
  (m, k), n = x.shape, w.shape[1]
  length = form.short
  tm, tk, tn = _ROWS, min(k, _COLUMNS), min(n, 2 * _COLUMNS)
  wide = _wide(x)

  def kernel(x_ref, *refs):
    *norm, w_ref = refs[:5]
    *refs, out_ref, sums_ref = refs[5:]
    start, column = pl.program_id(0) * length, pl.program_id(1) * tn

    def product(row):
      def add(i, total):
        part = pl.ds(i * tk, tk)
        _, y = _activated(x_ref[row, part], norm, i * tk, k, form)
        y = jnp.maximum(y, jnp.zeros_like(y))
        return total + jnp.dot(y, w_ref[part, :], preferred_element_type=wide)

      return lax.fori_loop(0, k // tk, add, jnp.zeros((tm, tn), wide))

    def tile(i, totals):
      row = pl.ds(i * tm, tm)
      y = product(row).astype(x.dtype)
      if form.biased:
        y += _read(norm, 2, column, tn).astype(x.dtype)[None]
      y = _dropped(y, form, refs[skipped:], start + i * tm, column, n)
      if skipped:
        y += refs[0][row, :]
      out_ref[row, :] = y
      y = y.astype(wide)
      return totals[0] + jnp.sum(y, 0), totals[1] + jnp.sum(y * y, 0)

    zero = jnp.zeros((tn,), wide)
    totals = lax.fori_loop(0, length // tm, tile, (zero, zero))
    for i, total in enumerate(totals):
      sums_ref[pl.ds(i * n + column, tn)] = total

  out = pl.BlockSpec((length, tn), lambda i, j: (i, j))
  totals = jax.ShapeDtypeStruct((m // length, 2 * n), wide)
  return _call(
    kernel,
    form,
    (m // length, n // tn),
    out_shape=(jax.ShapeDtypeStruct((m, n), x.dtype), totals),
    in_specs=[
      pl.BlockSpec((length, k), lambda i, j: (i, 0)),
      *_whole(*norm),
      pl.BlockSpec((k, tn), lambda i, j: (0, j)),
      *[out] * skipped,
      *_whole(*others[skipped:]),
    ],
    out_specs=(out, pl.BlockSpec((None, 2 * n), lambda i, j: (i, 0))),
  )(x, *operands)


def _sums(x, *operands, form: Form):
  *norm, w, _ = operands[:6]
  (m, k), n = x.shape, w.shape[1]
  # Programs of the same pixels find them in the L2 cache.
  tk = max(16, min(_COLUMNS, k // 4, 8192 // n))
  tm = max(16, min(_ROWS, 8192 // n))
  wide = _wide(x)

  def kernel(x_ref, *refs):
    *norm, w_ref, dy_ref = refs[:6]
    *words, dw_ref, sums_ref = refs[6:]
    column, start = pl.program_id(0) * tk, pl.program_id(1) * form.rows

    def add(i, totals):
      dw, first, second, bias = totals
      row = pl.ds(i * tm, tm)
      g = _dropped(dy_ref[row, :], form, words, start + i * tm, 0, n)
      standard, y = _activated(x_ref[row, :], norm, column, k, form)
      positive = y > 0
      y = jnp.where(positive, y, jnp.zeros_like(y))
      dw += jnp.dot(y.T, g, preferred_element_type=wide)
      of_y = jnp.dot(g, w_ref[...].T, preferred_element_type=wide)
      of_y = jnp.where(positive, of_y, jnp.zeros_like(of_y))
      first += jnp.sum(of_y, 0)
      second += jnp.sum(of_y * standard, 0)
      return dw, first, second, bias + jnp.sum(g.astype(wide), 0)

    zeros = tuple(jnp.zeros(s, wide) for s in ((tk, n), (tk,), (tk,), (n,)))
    dw, first, second, bias = lax.fori_loop(0, form.rows // tm, add, zeros)
    dw_ref[...] = dw
    sums_ref[pl.ds(column, tk)] = first
    sums_ref[pl.ds(k + column, tk)] = second

    @pl.when(column == 0)
    def _():
      sums_ref[pl.ds(2 * k, n)] = bias

  parts = m // form.rows
  out = functools.partial(jax.ShapeDtypeStruct, dtype=wide)
  return _call(
    kernel,
    form,
    (k // tk, parts),
    # With fewer, the sums of a large tile do not fit into registers.
    warps=16 if n > 256 else 8 if n > 64 else 4,
    out_shape=(out((parts, k, n)), out((parts, 2 * k + n))),
    in_specs=[
      pl.BlockSpec((form.rows, tk), lambda i, j: (j, i)),
      *_whole(*norm),
      pl.BlockSpec((tk, n), lambda i, j: (i, 0)),
      pl.BlockSpec((form.rows, n), lambda i, j: (j, 0)),
      *_whole(*operands[6:]),
    ],
    out_specs=(
      pl.BlockSpec((None, tk, n), lambda i, j: (j, i, 0)),
      pl.BlockSpec((None, 2 * k + n), lambda i, j: (j, 0)),
    ),
  )(x, *operands)


def _backward(x, *operands, form: Form, added: bool):
  *norm, w, _, found = operands[:7]
  others = operands[7:]
  (m, k), n = x.shape, w.shape[1]
  tm, tk, tn = _ROWS, min(k, _COLUMNS), min(n, _COLUMNS)
  wide = _wide(x)

  def kernel(x_ref, *refs):
    *norm, w_ref, dy_ref, found_ref = refs[:7]
    *refs, out_ref = refs[7:]
    start, column = pl.program_id(0) * tm, pl.program_id(1) * tk

    def add(i, total):
      part = pl.ds(i * tn, tn)
      g = _dropped(dy_ref[:, part], form, refs[added:], start, i * tn, n)
      return total + jnp.dot(g, w_ref[:, part].T, preferred_element_type=wide)

    of_y = lax.fori_loop(0, n // tn, add, jnp.zeros((tm, tk), wide))
    standard, y = _activated(x_ref[...], norm, column, k, form)
    of_y = jnp.where(y > 0, of_y, jnp.zeros_like(of_y))
    _, inverse = _moments(norm, column, tk, k, form)
    scale = _read(norm, 0, column, tk)
    first, second = (
      found_ref[pl.ds(i * k + column, tk)] / form.pixels for i in (0, 1)
    )
    dx = of_y - first[None] - standard * second[None]
    dx *= (scale * inverse)[None]
    if added:
      dx += refs[0][...].astype(wide)
    out_ref[...] = dx.astype(x.dtype)

  tile = pl.BlockSpec((tm, tk), lambda i, j: (i, j))
  return _call(
    kernel,
    form,
    (m // tm, k // tk),
    out_shape=jax.ShapeDtypeStruct((m, k), x.dtype),
    in_specs=[
      tile,
      *_whole(*norm),
      pl.BlockSpec((tk, n), lambda i, j: (j, 0)),
      pl.BlockSpec((tm, n), lambda i, j: (i, 0)),
      *_whole(found),
      *[tile] * added,
      *_whole(*others[added:]),
    ],
    out_specs=tile,
  )(x, *operands)
