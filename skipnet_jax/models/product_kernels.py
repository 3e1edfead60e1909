"""The kernels of `products` in Pallas: what each program computes of its tile.

What differs between blocks of one shape is an operand: the compiler then makes
one kernel for all of them. Arrays are those of one device.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

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
  return rows_of(pixels) >= _ROWS and fits_columns(inputs, outputs)


def fits_columns(inputs: int, outputs: int) -> bool:
  """Whether the kernels take a product of these sides, for large images."""
  return (
    all(n >= 16 and not n & (n - 1) for n in (inputs, outputs))
    and inputs <= 1024
    and outputs <= 512
  )


def warps_of_sums(outputs: int) -> int:
  """How many warps add up a gradient of so many columns."""
  # With fewer, the sums of a large tile do not fit into registers.
  return 16 if outputs > 256 else 8 if outputs > 64 else 4


def call(
  kernel: Callable, interpret: bool, grid: Any, warps: int = 4, **arguments: Any
) -> Callable:
  """`pl.pallas_call` by Triton."""
  # Imported late: a CPU does not need it.
  from jax.experimental.pallas import triton

  return pl.pallas_call(
    kernel,
    grid=grid,
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
    **arguments,
  )


def wide_dtype(x: Array) -> Any:
  """Of sums over x."""
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
  return layers.dropped(y, unit, layer_ref[0], key, form.rate)


def whole(*arrays: Array) -> list[pl.BlockSpec]:
  """Blocks for arrays of which every program has all."""
  return [pl.BlockSpec(a.shape, lambda *_, n=a.ndim: (0,) * n) for a in arrays]


def forward(
  x: Array, *operands: Array, form: Form, skipped: bool
) -> tuple[Array, Array]:
  """See `products.forward`; the operands of Norm, w, skip, those of Words."""
  *norm, w = operands[:5]
  others = operands[5:]
  (m, k), n = x.shape, w.shape[1]
  length = form.short
  tm, tk, tn = _ROWS, min(k, _COLUMNS), min(n, 2 * _COLUMNS)
  wide = wide_dtype(x)

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
  return call(
    kernel,
    form.interpret,
    (m // length, n // tn),
    out_shape=(jax.ShapeDtypeStruct((m, n), x.dtype), totals),
    in_specs=[
      pl.BlockSpec((length, k), lambda i, j: (i, 0)),
      *whole(*norm),
      pl.BlockSpec((k, tn), lambda i, j: (0, j)),
      *[out] * skipped,
      *whole(*others[skipped:]),
    ],
    out_specs=(out, pl.BlockSpec((None, 2 * n), lambda i, j: (i, 0))),
  )(x, *operands)


def sums(x: Array, *operands: Array, form: Form) -> tuple[Array, Array]:
  """See `products.sums`; the operands of Norm, w, dy, those of Words."""
  *norm, w, _ = operands[:6]
  (m, k), n = x.shape, w.shape[1]
  # Programs of the same pixels find them in the L2 cache.
  tk = max(16, min(_COLUMNS, k // 4, 8192 // n))
  tm = max(16, min(_ROWS, 8192 // n))
  wide = wide_dtype(x)

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
  return call(
    kernel,
    form.interpret,
    (k // tk, parts),
    warps=warps_of_sums(n),
    out_shape=(out((parts, k, n)), out((parts, 2 * k + n))),
    in_specs=[
      pl.BlockSpec((form.rows, tk), lambda i, j: (j, i)),
      *whole(*norm),
      pl.BlockSpec((tk, n), lambda i, j: (i, 0)),
      pl.BlockSpec((form.rows, n), lambda i, j: (j, 0)),
      *whole(*operands[6:]),
    ],
    out_specs=(
      pl.BlockSpec((None, tk, n), lambda i, j: (j, i, 0)),
      pl.BlockSpec((None, 2 * k + n), lambda i, j: (j, 0)),
    ),
  )(x, *operands)


def backward(x: Array, *operands: Array, form: Form, added: bool) -> Array:
  """See `products.backward`; Norm's, w, dy, found, through, those of Words."""
  *norm, w, _, found = operands[:7]
  others = operands[7:]
  (m, k), n = x.shape, w.shape[1]
  tm, tk, tn = _ROWS, min(k, _COLUMNS), min(n, _COLUMNS)
  wide = wide_dtype(x)

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
  return call(
    kernel,
    form.interpret,
    (m // tm, k // tk),
    out_shape=jax.ShapeDtypeStruct((m, k), x.dtype),
    in_specs=[
      tile,
      *whole(*norm),
      pl.BlockSpec((tk, n), lambda i, j: (j, 0)),
      pl.BlockSpec((tm, n), lambda i, j: (i, 0)),
      *whole(found),
      *[tile] * added,
      *whole(*others[added:]),
    ],
    out_specs=tile,
  )(x, *operands)
