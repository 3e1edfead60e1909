"""One step, run three ways with equal results: `jit`, `pmap`, `sharded`.

`jit` is one device. `pmap` is the classic: a leading device axis, gradients
averaged by name, BatchNorm synced. `sharded` is `jit` over a mesh: the batch is
divided, parameters are replicated, XLA adds the collectives; it also spans
processes.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from skipnet_jax import environment
from skipnet_jax import errors

AXIS = 'data'
Tree = Any


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Where and how compiled calls run.

  Attributes:
    mode: 'jit', 'pmap' or 'sharded'.
    devices: the devices used, of all processes.
    mesh: the mesh of `sharded`, else None.
  """

  mode: str
  devices: tuple[Any, ...]
  mesh: jax.sharding.Mesh | None = None

  @property
  def num_shards(self) -> int:
    """Devices that a batch is divided among."""
    return len(self.devices)

  @property
  def axis_name(self) -> str | None:
    """The mapped axis inside a compiled call; None unless pmapped."""
    return AXIS if self.mode == 'pmap' else None

  def _sharding(self, *axes: str) -> Any:
    if self.mesh is None:
      return jax.sharding.SingleDeviceSharding(self.devices[0])
    return NamedSharding(self.mesh, PartitionSpec(*axes))

  def compile(
    self, call: Callable, *, donate: bool = False
  ) -> jax.stages.Wrapped:
    """Compiles `call(state, *args)`.

    Arguments come from `replicate` or `place_batch`; results are
    replicated. With `donate`, the first argument's buffers are reused.
    """
    donated = (0,) if donate else ()
    if self.mode == 'pmap':
      return jax.pmap(call, AXIS, devices=self.devices, donate_argnums=donated)
    return jax.jit(call, donate_argnums=donated, out_shardings=self._sharding())

  def replicate(self, tree: Tree) -> Tree:
    """Puts arrays, the same in every process, on every device."""
    if self.mode == 'pmap':
      return _copier(self.devices)(np.arange(self.num_shards), tree)
    if jax.process_count() == 1:
      return jax.device_put(tree, self._sharding())

    def place(x):
      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(jax.random.key_data(x)))
      host = np.asarray(x)
      return jax.make_array_from_callback(
        host.shape, self._sharding(), lambda index: host[index]
      )

    return jax.tree.map(place, tree)

  def unreplicate(self, tree: Tree) -> Tree:
    """One copy of what every device holds: for checkpoints and the host."""
    if self.mode == 'pmap':
      return _first(jax.tree.map(lambda x: x.addressable_data(0), tree))
    return tree

  def place_batch(self, tree: Tree) -> Tree:
    """Divides host arrays `[b, ...]` among the devices along b."""
    n = self.num_shards
    if self.mode == 'pmap':
      return jax.tree.map(
        lambda x: jnp.reshape(x, (n, x.shape[0] // n, *x.shape[1:])), tree
      )
    sharding = self._sharding(AXIS) if self.mesh else self._sharding()
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index]
      ),
      tree,
    )

  def divide(self, tree: Tree) -> Tree:
    """Inside a compiled call: this device's part of arrays `[b, ...]`."""
    if self.mode == 'pmap':
      n = self.num_shards
      first = lax.axis_index(AXIS)

      def part(x):
        size = x.shape[0] // n
        return lax.dynamic_slice_in_dim(x, first * size, size)

      return jax.tree.map(part, tree)
    return self.constrain(tree)

  def constrain(self, tree: Tree) -> Tree:
    """Inside a sharded call: keeps arrays `[b, ...]` divided along b."""
    if self.mesh is None:
      return tree
    sharding = self._sharding(AXIS)
    return jax.tree.map(
      lambda x: lax.with_sharding_constraint(x, sharding), tree
    )


@functools.cache
def _copier(devices: tuple[Any, ...]) -> Callable[[Any, Tree], Tree]:
  """Compiles `(mapped, tree) -> tree on every device`, once for all trees."""
  # One argument must be mapped. Over the axis that calls are mapped over, or
  # their second one would be compiled again for what the first returns.
  return jax.pmap(lambda _, t: t, AXIS, in_axes=(0, None), devices=devices)


@jax.jit
def _first(tree: Tree) -> Tree:
  # One program: indexing an array at a time compiles as many as have shapes,
  # and each gathers from all devices.
  return jax.tree.map(lambda x: x[0], tree)


def make_parallel(config: ml_collections.ConfigDict) -> Parallel:
  """Chooses the devices of the config's `parallel` section.

  Raises:
    InputError: more devices than there are, or several for `jit`.
  """
  available = jax.devices()
  count = config.devices or (1 if config.mode == 'jit' else len(available))
  if count > len(available):
    raise errors.InputError(
      f'parallel.devices is {count}, but there are {len(available)} '
      f'{available[0].platform} device(s): give at most {len(available)}.'
    )
  if config.mode == 'jit' and count > 1:
    raise errors.InputError(
      f'parallel.devices is {count}, but mode jit runs on one: choose '
      'parallel.mode pmap or sharded.'
    )
  devices = tuple(available[:count])
  mesh = None
  if config.mode == 'sharded':
    mesh = jax.make_mesh(
      (count,), (AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )
  return Parallel(config.mode, devices, mesh)


def require_determinism(platform: str) -> None:
  """Raises InputError where the same command may give other bits.

  Args:
    platform: of the devices; GPUs alone add in any order unless told.
  """
  flags = os.environ.get('XLA_FLAGS', '').split()
  if platform == 'gpu' and environment.DETERMINISTIC not in flags:
    raise errors.InputError(
      'train.deterministic is True, but JAX started without '
      f'{environment.DETERMINISTIC}: train by python -m skipnet_jax.train, or '
      'set XLA_FLAGS to it before.'
    )


def to_host(tree: Tree) -> Tree:
  """Replicated arrays as numpy, from a shard that this process holds."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
