"""Records the updates and gradients of each kernel during training.

The compiled step accumulates them on the device; the loop reads them once an
epoch (Drozdzal et al. 2016, section 3.4 and Figure 4).
"""

from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

Params = Any

# Quantities of one step, averaged over the epoch's steps; see `step_flow`.
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


def _kernel_at(params: Params, path: tuple[str, ...]) -> jax.Array:
  for part in path:
    params = params[part]
  return params['kernel']


def kernel(params: Params, name: str) -> jax.Array:
  """The kernel of the layer with this name in the unrolled network."""
  path, index = _locate(params, name)
  stacked = _kernel_at(params, path)
  return stacked if index is None else stacked[index]


def step_flow(
  names: Sequence[str], params: Params, grads: Params, updates: Params
) -> jax.Array:
  """Measures the gradient and the update of each kernel in one step.

  Args:
    names: layers, such as 'up_1/block_3/conv_2'.
    params: before the step.
    grads: of the loss without L2.
    updates: what the step adds to the parameters.

  Returns:
    `[4, layers]` float32, in the order of `STEP_QUANTITIES`: mean |update|, L2
    norm of the gradient, mean |gradient|, and the L2 norm of the update over
    that of the kernel.
  """

  def measure(path, stacked):
    w, g, u = (_kernel_at(tree, path) for tree in (params, grads, updates))
    axes = tuple(range(stacked, w.ndim))

    def norm(x):
      return jnp.sqrt(jnp.sum(jnp.square(x), axes))

    quantities = jnp.stack(
      [
        jnp.mean(jnp.abs(u), axes),
        norm(g),
        jnp.mean(jnp.abs(g), axes),
        norm(u) / norm(w),
      ]
    )
    return quantities.reshape(len(STEP_QUANTITIES), -1)

  # All kernels of a scan are measured in one operation each, as compiled.
  places = [_locate(params, name) for name in names]
  first, columns, count = {}, [], 0
  for path, index in places:
    if path not in first:
      columns.append(measure(path, index is not None))
      first[path] = count
      count += columns[-1].shape[1]
  order = [first[path] + (index or 0) for path, index in places]
  return jnp.concatenate(columns, axis=1)[:, np.asarray(order)]


def kernels(names: Sequence[str], params: Params) -> list[jax.Array]:
  """Copies of the named layers' kernels, in order."""
  return [jnp.copy(kernel(params, name)) for name in names]


def net_change(
  names: Sequence[str], before: list[jax.Array], params: Params
) -> jax.Array:
  """Mean |W now - W before| of each kernel, `[layers]` float32.

  Over an epoch it is the quantity of the paper's Figure 4: a net change, not a
  gradient and not a sum of steps.
  """
  return jnp.stack(
    [
      jnp.mean(jnp.abs(kernel(params, name) - old))
      for name, old in zip(names, before, strict=True)
    ]
  )


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
