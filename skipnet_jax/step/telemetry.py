"""Records the updates and gradients of each kernel during training.

The compiled step accumulates them on the device; the loop reads them once an
epoch (Drozdzal et al. 2016, section 3.4 and Figure 4).
"""

from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.step import flat

Params = Any

# Numbers in a vector register of a CPU, at the most.
_LANES = 16
# Means over an epoch's steps of what `Kernels.step_flow` measures.
STEP_QUANTITIES = ('step_update', 'grad_l2', 'grad_mean_abs', 'update_ratio')
# Quantities of an epoch's record.
QUANTITIES = ('net_change', *STEP_QUANTITIES)


def _locate(params: Params, name: str) -> tuple[tuple[str, ...], int | None]:
  """A layer's path in the parameters, and its index in a scanned stage."""
  path, index = name.split('/'), None
  for i, part in enumerate(path):
    if part not in params and part.startswith('block_') and 'blocks' in params:
      # In `models.fc_resnet.Stage`, the stacked blocks start with block_2.
      path[i], index = 'blocks', int(part.removeprefix('block_')) - 2
    params = params[path[i]]
  return tuple(path), index


def _at(params: Params, path: tuple[str, ...]) -> Any:
  for part in path:
    params = params[part]
  return params['kernel']


def kernel(params: Params, name: str) -> jax.Array:
  """The kernel of the layer with this name in the unrolled network."""
  path, index = _locate(params, name)
  stacked = _at(params, path)
  return stacked if index is None else stacked[index]


def vector(params: flat.Flat) -> jax.Array:
  """All kernels of a network without its discriminator, `[n]`."""
  return params.vectors['network']['kernel']


def row_sums(*values: jax.Array) -> jax.Array:
  """Sums of vectors over each row of `flat.ROW` elements, `[rows, vectors]`.

  A tile of a TPU has 8x128 elements: with a row as a tile, nothing is copied.
  """
  tiles = (value.reshape(-1, flat.ROW // 128, 128) for value in values)
  return jnp.stack([jnp.sum(each, (1, 2)) for each in tiles], 1)


def row_sums_by_lanes(*values: jax.Array) -> jax.Array:
  """The same for a CPU, in one pass, with vector instructions.

  XLA's reduction along contiguous elements adds them one by one.
  """
  zeros = tuple(jnp.zeros((), value.dtype) for value in values)
  lanes = lax.reduce(
    tuple(value.reshape(-1, flat.ROW // _LANES, _LANES) for value in values),
    zeros,
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    (1,),
  )
  return jnp.stack([jnp.sum(each, 1) for each in lanes], 1)


class Kernels:
  """The kernels of named layers, as parts of the vector of all kernels.

  Args:
    names: layers, such as 'up_1/block_3/conv_2'.
    layout: of the network's parameters.
  """

  def __init__(self, names: Sequence[str], layout: flat.Layout):
    self._parts: list[tuple[slice, tuple[int, ...]]] = []
    for name in names:
      path, index = _locate(layout.by_path, name)
      place = _at(layout.by_path, path)
      shape = place.shape if index is None else place.shape[1:]
      start = place.start + (index or 0) * place.stride
      self._parts.append((slice(start, start + place.size), shape))
    sizes = [part.stop - part.start for part, _ in self._parts]
    self._sizes = np.asarray(sizes, np.float32)

  def _totals(self, *values: jax.Array) -> jax.Array:
    """`sums`, and in a last row those over all other kernels."""
    rows = lax.platform_dependent(
      *values, cpu=row_sums_by_lanes, default=row_sums
    )
    layer = np.full(len(rows), len(self._parts), np.int32)
    for i, (part, _) in enumerate(self._parts):
      layer[part.start // flat.ROW : -(-part.stop // flat.ROW)] = i
    return jax.ops.segment_sum(rows, layer, len(self._parts) + 1)

  def sums(self, *values: jax.Array) -> jax.Array:
    """Sums of vectors such as `vector` over each kernel, `[values, layers]`."""
    return self._totals(*values)[:-1].T

  def step_flow(
    self, params: flat.Flat, grads: flat.Flat, updates: flat.Flat
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measures the gradient and the update of each kernel in one step.

    Args:
      params: before the step.
      grads: of the loss without L2.
      updates: what the step adds to the parameters.

    Returns:
      `[4, layers]` float32, in the order of `STEP_QUANTITIES`: mean |update|,
      L2 norm of the gradient, mean |gradient|, and the L2 norm of the update
      over that of the kernel; the sum of squares of the gradient over all
      kernels of `vector`, and that of the kernels.
    """
    w, g, u = map(vector, (params, grads, updates))
    totals = self._totals(
      jnp.square(g), jnp.square(w), jnp.abs(u), jnp.abs(g), jnp.square(u)
    )
    squared_g, squared_w, abs_u, abs_g, squared_u = totals[:-1].T
    sizes = self._sizes.astype(abs_u.dtype)
    flow = jnp.stack(
      [
        abs_u / sizes,
        jnp.sqrt(squared_g),
        abs_g / sizes,
        jnp.sqrt(squared_u) / jnp.sqrt(squared_w),
      ]
    )
    of_all = jnp.sum(totals[:, :2], 0)
    return flow, of_all[0], of_all[1]

  def net_change(self, before: jax.Array, params: flat.Flat) -> jax.Array:
    """Mean |W now - W before| of each kernel, `[layers]` float32.

    Over an epoch it is the quantity of the paper's Figure 4: a net change, not
    a gradient and not a sum of steps.

    Args:
      before: a copy of `vector`.
      params: now.
    """
    (change,) = self.sums(jnp.abs(vector(params) - before))
    return change / self._sizes.astype(change.dtype)

  def split(self, vector: jax.Array) -> list[jax.Array]:
    """The kernels of the layers, in order."""
    return [vector[part].reshape(shape) for part, shape in self._parts]

  def join(self, kernels: Sequence[jax.Array], size: int) -> jax.Array:
    """The inverse of `split`, `[size]`; kernels of other layers are zero."""
    pieces: list[jax.Array] = []
    end = 0
    for part, value in sorted(
      zip((part for part, _ in self._parts), kernels, strict=True),
      key=lambda pair: pair[0].start,
    ):
      pieces += [jnp.zeros(part.start - end), value.reshape(-1)]
      end = part.stop
    return jnp.concatenate([*pieces, jnp.zeros(size - end)])


def gate_sums(gates: Params, mask: jax.Array) -> dict[str, jax.Array]:
  """Sums over a batch of the masks of its gates.

  Args:
    gates: the collection of `models.gates`, masks `[b, ...]`.
    mask: `[b, y, x, 1]`; an example whose mask is 0 everywhere does not count.

  Returns:
    `gate/NAME/...` of each gate: sum, squares, passing (values above one half),
    count; float32 scalars, which add up over batches.
  """
  counts = jnp.max(mask, (1, 2, 3)) > 0
  sums: dict[str, jax.Array] = {}
  for path, value in flax.traverse_util.flatten_dict(gates).items():
    name = '/'.join(('gate', *path[:-1]))
    value = value.astype(jnp.float32)
    weight = counts.astype(jnp.float32).reshape(-1, *[1] * (value.ndim - 1))
    sums |= {
      f'{name}/sum': jnp.sum(weight * value),
      f'{name}/squares': jnp.sum(weight * jnp.square(value)),
      f'{name}/passing': jnp.sum(weight * (value > 0.5).astype(jnp.float32)),
      f'{name}/count': jnp.sum(weight) * value[0].size,
    }
  return sums


def divide_gates(sums: dict[str, float]) -> dict[str, float]:
  """Mean and standard deviation of each gate, and the share above one half.

  They are `gate/NAME/mean`, `gate/NAME/std` and `gate/NAME/passing`. Entries
  that are not of `gate_sums` are ignored.
  """
  table = {}
  for key, count in sums.items():
    if not (key.startswith('gate/') and key.endswith('/count')):
      continue
    name = key.removesuffix('/count')
    mean = sums[f'{name}/sum'] / count
    variance = sums[f'{name}/squares'] / count - mean**2
    table[f'{name}/mean'] = mean
    table[f'{name}/std'] = max(0.0, variance) ** 0.5
    table[f'{name}/passing'] = sums[f'{name}/passing'] / count
  return table
