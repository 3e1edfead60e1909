"""The kernels of `upsampled` in Pallas: what each program computes of its tile.

An upsampled image is never written: each program makes the four pixels of a
small one from it. Arrays are those of one device; a row is one of an image.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import product_kernels

Array = jax.Array
# Most pixels and columns of a tile.
_PIXELS, _COLUMNS = 64, 64
# Most pixels of the small images in a program that adds up products.
_LONG = 1024
# Of the row and of the pixel among the four of a small one.
PARITIES = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclasses.dataclass(frozen=True)
class Form:
  """What is fixed when a product is compiled.

  Attributes:
    rows: number of rows in a part of the sums for gradients; it divides an
      image, so that each part lies on one device.
    rate: of dropout; 0 for none.
    skipped: whether there is a shortcut.
    interpret: whether it runs on a CPU, slowly, for tests.
  """

  rows: int
  rate: float
  skipped: bool
  interpret: bool = False


def rows_of(height: int, width: int) -> int:
  """`Form.rows` for small images of this size."""
  return min(max(1, _LONG // width), height & -height)


def fits(width: int, inputs: int, outputs: int) -> bool:
  """Whether the kernels take a product of these sides, for such rows."""
  return width & -width >= 16 and product_kernels.fits_columns(inputs, outputs)


def _tile(width: int, most: int = _PIXELS) -> int:
  """Number of pixels in a tile of a row."""
  return min(most, width & -width)


def _divided(number: Any, by: int) -> tuple[Any, Any]:
  """Quotient and remainder, of numbers that are not negative."""
  # Triton lacks what `//` and `%` do for negative ones.
  number = jnp.asarray(number, jnp.int32)
  whole = lax.div(number, jnp.int32(by))
  return whole, number - whole * by


def _dropped(
  y: Array,
  form: Form,
  words: Sequence[Any],
  place: tuple[Any, Any, int, int],
  first: tuple[Any, Any],
  sides: tuple[int, int],
) -> Array:
  """Upsampled pixels after dropout, or the gradient before it.

  Args:
    y: `[pixels, columns]`, of one parity.
    form: see `Form`.
    words: references to the operands of `products.Words`, or none.
    place: the part, the row in it, the parities of the row and of the pixels.
    first: pixel in the row of the small image, and column.
    sides: pixels in this row, and columns.
  """
  if not words:
    return y
  key_ref, layer_ref, first_ref = words
  part, row, down, right = place
  (pixel, column), (width, columns) = first, sides
  above = first_ref[part] + jnp.asarray(row).astype(jnp.uint32)
  start = (2 * above + jnp.uint32(down)) * jnp.uint32(2 * width)
  along = 2 * (lax.broadcasted_iota(jnp.int32, y.shape, 0) + pixel) + right
  unit = (start + along.astype(jnp.uint32)) * jnp.uint32(columns)
  across = lax.broadcasted_iota(jnp.int32, y.shape, 1) + column
  unit += across.astype(jnp.uint32)
  key = [key_ref[0], key_ref[1]]
  return layers.dropped(y, unit, layer_ref[0], key, form.rate)


def forward(main: Array, *operands: Array, form: Form) -> Array:
  """See `upsampled.forward`; w, bias, short, the operands of Words."""
  (rows, width, k), n = main.shape, operands[0].shape[1]
  tw, tk, tn = _tile(width), min(k, _COLUMNS), min(n, 2 * _COLUMNS)
  wide = product_kernels.wide_dtype(main)

  def kernel(main_ref, w_ref, bias_ref, *refs):
    *refs, out_ref = refs
    short, words = refs[: form.skipped], refs[form.skipped :]
    row, pixel = pl.program_id(0), pl.program_id(1) * tw
    place = _divided(row, form.rows)

    def product(parity):
      def add(i, total):
        part = pl.ds(i * tk, tk)
        x = main_ref[:, part]
        x = _dropped(
          *(x, form, words, (*place, *parity), (pixel, i * tk), (width, k))
        )
        if short:
          x += short[0][:, part]
        return total + jnp.dot(x, w_ref[part, :], preferred_element_type=wide)

      return lax.fori_loop(0, k // tk, add, jnp.zeros((tw, tn), wide))

    for down, right in PARITIES:
      y = product((down, right)).astype(main.dtype)
      out_ref[down, :, right, :] = y + bias_ref[...].astype(main.dtype)[None]

  small = pl.BlockSpec((None, tw, k), lambda i, j, _: (i, j, 0))
  return product_kernels.call(
    kernel,
    form.interpret,
    (rows, width // tw, n // tn),
    out_shape=jax.ShapeDtypeStruct((rows, 2, width, 2, n), main.dtype),
    in_specs=[
      small,
      pl.BlockSpec((k, tn), lambda i, j, c: (0, c)),
      pl.BlockSpec((tn,), lambda i, j, c: (c,)),
      *[small] * form.skipped,
      *product_kernels.whole(*operands[2 + form.skipped :]),
    ],
    out_specs=pl.BlockSpec(
      (None, 2, tw, 2, tn), lambda i, j, c: (i, 0, j, 0, c)
    ),
  )(main, *operands)


def sums(main: Array, *operands: Array, form: Form) -> tuple[Array, Array]:
  """See `upsampled.sums`; dy, short, the operands of Words."""
  (rows, width, k), n = main.shape, operands[0].shape[-1]
  tk = max(16, min(_COLUMNS, k // 4, 8192 // n))
  tw = _tile(width, max(16, min(_PIXELS, 8192 // n)))
  wide = product_kernels.wide_dtype(main)
  tiles = width // tw

  def kernel(main_ref, dy_ref, *refs):
    *refs, dw_ref, bias_ref = refs
    short, words = refs[: form.skipped], refs[form.skipped :]
    column, part = pl.program_id(0) * tk, pl.program_id(1)

    def add(i, totals):
      row, tile = _divided(i, tiles)
      pixel = tile * tw
      along = pl.ds(pixel, tw)
      for parity in PARITIES:
        x = main_ref[row, along, :]
        x = _dropped(
          *(x, form, words, (part, row, *parity), (pixel, column), (width, k))
        )
        if short:
          x += short[0][row, along, :]
        g = dy_ref[row, parity[0], along, parity[1], :]
        totals = (
          totals[0] + jnp.dot(x.T, g, preferred_element_type=wide),
          totals[1] + jnp.sum(g.astype(wide), 0),
        )
      return totals

    zeros = jnp.zeros((tk, n), wide), jnp.zeros((n,), wide)
    dw_ref[...], bias = lax.fori_loop(0, form.rows * tiles, add, zeros)

    @pl.when(column == 0)
    def _():
      bias_ref[...] = bias

  parts = rows // form.rows
  small = pl.BlockSpec((form.rows, width, tk), lambda i, j: (j, 0, i))
  return product_kernels.call(
    kernel,
    form.interpret,
    (k // tk, parts),
    warps=product_kernels.warps_of_sums(n),
    out_shape=(
      jax.ShapeDtypeStruct((parts, k, n), wide),
      jax.ShapeDtypeStruct((parts, n), wide),
    ),
    in_specs=[
      small,
      pl.BlockSpec((form.rows, 2, width, 2, n), lambda i, j: (j, 0, 0, 0, 0)),
      *[small] * form.skipped,
      *product_kernels.whole(*operands[1 + form.skipped :]),
    ],
    out_specs=(
      pl.BlockSpec((None, tk, n), lambda i, j: (j, i, 0)),
      pl.BlockSpec((None, n), lambda i, j: (j, 0)),
    ),
  )(main, *operands)


def backward(dy: Array, *operands: Array, form: Form) -> Sequence[Array]:
  """See `upsampled.backward`; w, the operands of Words."""
  (rows, _, width, _, n), k = dy.shape, operands[0].shape[0]
  tw, tk, tn = _tile(width), min(k, _COLUMNS), min(n, _COLUMNS)
  wide = product_kernels.wide_dtype(dy)

  def kernel(dy_ref, w_ref, *refs):
    split = len(refs) - 1 - form.skipped
    words, outs = refs[:split], refs[split:]
    row = pl.program_id(0)
    pixel, column = pl.program_id(1) * tw, pl.program_id(2) * tk
    place = _divided(row, form.rows)
    totals = [jnp.zeros((tw, tk), wide) for _ in outs]
    for down, right in PARITIES:

      def add(i, total, down=down, right=right):
        part = pl.ds(i * tn, tn)
        g = dy_ref[down, :, right, part]
        return total + jnp.dot(g, w_ref[:, part].T, preferred_element_type=wide)

      found = lax.fori_loop(0, n // tn, add, jnp.zeros((tw, tk), wide))
      of_main = _dropped(
        *(found, form, words, (*place, down, right)),
        *((pixel, column), (width, k)),
      )
      totals = [
        total + each
        for total, each in zip(totals, (of_main, found), strict=False)
      ]
    for out_ref, total in zip(outs, totals, strict=True):
      out_ref[...] = total.astype(dy.dtype)

  small = pl.BlockSpec((None, tw, tk), lambda i, j, c: (i, j, c))
  out = jax.ShapeDtypeStruct((rows, width, k), dy.dtype)
  return product_kernels.call(
    kernel,
    form.interpret,
    (rows, width // tw, k // tk),
    out_shape=(out,) * (1 + form.skipped),
    in_specs=[
      pl.BlockSpec((None, 2, tw, 2, n), lambda i, j, _: (i, 0, j, 0, 0)),
      pl.BlockSpec((tk, n), lambda i, j, c: (c, 0)),
      *product_kernels.whole(*operands[1:]),
    ],
    out_specs=(small,) * (1 + form.skipped),
  )(dy, *operands)
