"""What each convolution's kernel did, recorded while training.

Accumulated on the device inside the compiled step and read once an epoch
(Drozdzal et al. 2016, section 3.4 and Figure 4).
"""

from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

Params = Any

# Per step, averaged over the epoch's steps; see `step_flow`.
STEP_QUANTITIES = ('step_update', 'grad_l2', 'grad_mean_abs', 'update_ratio')
# What an epoch's record holds.
QUANTITIES = ('net_change', *STEP_QUANTITIES)


def _place(params: Params, name: str) -> tuple[tuple[str, ...], int | None]:
  """Where a layer lies: its path, and which of a scanned stage's blocks."""
  path, index = name.split('/'), None
  for i, part in enumerate(path):
    if part not in params and part.startswith('block_') and 'blocks' in params:
      # Of `models.fc_resnet.Stage`: block_1 lies before the stacked ones.
      path[i], index = 'blocks', int(part.removeprefix('block_')) - 2
    params = params[path[i]]
  return tuple(path), index


def _kernel_at(params: Params, path: tuple[str, ...]) -> jax.Array:
  for part in path:
    params = params[part]
  return params['kernel']


def kernel(params: Params, name: str) -> jax.Array:
  """The kernel of the layer called `name`, as in the unrolled network."""
  path, index = _place(params, name)
  found = _kernel_at(params, path)
  return found if index is None else found[index]


def step_flow(
  names: Sequence[str], params: Params, grads: Params, updates: Params
) -> jax.Array:
  """What one step did to each kernel.

  Args:
    names: layers, such as 'up_1/block_3/conv_2'.
    params: before the step.
    grads: of the loss without L2.
    updates: what is added to the parameters.

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

  # A scan's kernels are measured together: as many operations as it compiles.
  places = [_place(params, name) for name in names]
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
  """Sums over a batch of the masks of its gates, to be added up.

  Args:
    gates: the collection that `models.gates` sows into, of masks `[b, ...]`.
    mask: `[b, y, x, 1]`; an example whose mask is 0 does not count.

  Returns:
    `gate/NAME/...` of each gate: sum, squares, passing (values above one half),
    count; float32 scalars.
  """
  counts = jnp.max(mask, (1, 2, 3)) > 0
  sums: dict[str, jax.Array] = {}
  for path, value in flax.traverse_util.flatten_dict(gates).items():
    name = '/'.join(('gate', *path[:-1]))
    value = value.astype(jnp.float32)
    seen = counts.astype(jnp.float32).reshape(-1, *[1] * (value.ndim - 1))
    sums |= {
      f'{name}/sum': jnp.sum(seen * value),
      f'{name}/squares': jnp.sum(seen * jnp.square(value)),
      f'{name}/passing': jnp.sum(seen * (value > 0.5).astype(jnp.float32)),
      f'{name}/count': jnp.sum(seen) * value[0].size,
    }
  return sums


def divide_gates(sums: dict[str, float]) -> dict[str, float]:
  """Mean and standard deviation of each gate, and the share above one half.

  Args:
    sums: of `gate_sums`, added up; others are passed over.

  Returns:
    `gate/NAME/mean`, `gate/NAME/std` and `gate/NAME/passing`.
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
