"""The product at the end of a stage (`stage_ends`) in Pallas, for GPUs.

The kernels (`upsampled_kernels`) make the four pixels of a small one as they
need them.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import layers
from skipnet_jax.models import products
from skipnet_jax.models import stage_ends
from skipnet_jax.models import upsampled_kernels as kernels

Array = jax.Array


def fits(x: stage_ends.Upsampled, features: int) -> bool:
  """Whether `times` takes a kernel of so many columns."""
  return kernels.fits(x.main.shape[2], x.main.shape[3], features)


def times(
  x: stage_ends.Upsampled, w: Array, bias: Array, interpret: bool
) -> Array:
  """`x.times(w, bias)`; `interpret` is that of `upsampled_kernels.Form`."""
  b, height, width, _ = x.main.shape
  form = kernels.Form(
    kernels.rows_of(height, width),
    x.dropout.rate,
    x.short is not None,
    interpret,
  )
  words = None
  if x.dropout.rate:
    layer = np.asarray([layers.dropout_layer(x.dropout.path)], np.uint32)
    first: Any = np.arange(0, b * height, form.rows, dtype=np.uint32)
    if x.dropout.axis_name is not None:
      first = first + x.dropout.first(b * height)
    words = products.Words(x.dropout.words(), layer, first)
  y = product(form, _rows(x.main), _rows(x.short), w, bias, words)
  return y.reshape(b, 2 * height, 2 * width, -1)


def _rows(x: Array | None) -> Array | None:
  return None if x is None else x.reshape(-1, *x.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(
  form: kernels.Form,
  main: Array,
  short: Array | None,
  w: Array,
  bias: Array,
  words: products.Words | None,
) -> Array:
  """See `stage_ends.Upsampled`, whose images are here `[b * y, x, k]`.

  Args:
    form: see `upsampled_kernels.Form`.
    main: the residual path.
    short: the shortcut, or None.
    w: `[k, n]`.
    bias: `[n]`.
    words: of dropout, see `products.Words`; `first` is the first row of each
      part.

  Returns:
    `[b * y, 2, x, 2, n]`.
  """
  return _forward(form, main, short, w, bias, words)[0]


def _forward(form, main, short, w, bias, words):
  narrow = w.astype(main.dtype)
  y = products.on_each_device(
    functools.partial(kernels.forward, form=form),
    [
      (f'{_row(form)} x k', main),
      ('k n', narrow),
      ('n', bias),
      (f'{_row(form)} x k', short),
      *products.of_words(words),
    ],
    f'{_row(form)} i x j n',
    _factors(form),
  )
  return y, (main, short, narrow, words)


def _backward(form, kept, dy):
  main, short, w, words = kept
  dw, of_bias = products.on_each_device(
    functools.partial(kernels.sums, form=form),
    [
      (f'{_row(form)} x k', main),
      (f'{_row(form)} i x j n', dy),
      (f'{_row(form)} x k', short),
      *products.of_words(words),
    ],
    'p k n, p n',
    _factors(form),
  )
  small = f'{_row(form)} x k'
  found: Sequence[Array] = products.on_each_device(
    functools.partial(kernels.backward, form=form),
    [
      (f'{_row(form)} i x j n', dy),
      ('k n', w),
      *products.of_words(words),
    ],
    ', '.join([small] * (1 + form.skipped)),
    _factors(form),
  )
  return (
    found[0],
    found[1] if form.skipped else None,
    jnp.sum(dw, 0),
    jnp.sum(of_bias, 0),
    None,
  )


def _row(form: kernels.Form) -> str:
  return '(p r)' if form.rows > 1 else 'p'


def _factors(form: kernels.Form) -> dict[str, int]:
  return {'r': form.rows} if form.rows > 1 else {}


product.defvjp(_forward, _backward)
