"""Three ways to run a step with equal results: `jit`, `pmap`, `sharded`.

`jit` runs on one device. `pmap` adds a leading device axis, averages gradients
over the named axis and synchronises BatchNorm. `sharded` is `jit` over a mesh:
the batch is divided, parameters are replicated, and XLA inserts the
collectives; it can also span several processes.
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
  """The devices of compiled calls and how they share the work.

  Attributes:
    mode: 'jit', 'pmap' or 'sharded'.
    devices: the devices used, of all processes.
    mesh: the mesh of `sharded`, else None.
  """

  mode: str
  devices: tuple[Any, ...]
  mesh: jax.sharding.Mesh | None = None

  @property
  def axis_name(self) -> str | None:
    """The mapped axis inside a compiled call; None except in `pmap`."""
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
      return _copier(self.devices)(np.arange(len(self.devices)), tree)
    if jax.process_count() == 1:
      return jax.device_put(tree, self._sharding())

    def place(x):
      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(jax.random.key_data(x)))
      return _from_host(np.asarray(x), self._sharding())

    return jax.tree.map(place, tree)

  def unreplicate(self, tree: Tree) -> Tree:
    """One copy of replicated arrays, for checkpoints and the host."""
    if self.mode == 'pmap':
      return _first(jax.tree.map(lambda x: x.addressable_data(0), tree))
    return tree

  def place_batch(self, tree: Tree) -> Tree:
    """Divides host arrays `[b, ...]` among the devices along b."""
    n = len(self.devices)
    if self.mode == 'pmap':
      return jax.tree.map(
        lambda x: jnp.reshape(x, (n, x.shape[0] // n, *x.shape[1:])), tree
      )
    sharding = self._sharding(AXIS)
    return jax.tree.map(lambda x: _from_host(x, sharding), tree)

  def divide(self, tree: Tree) -> Tree:
    """Inside a compiled call: this device's part of arrays `[b, ...]`."""
    if self.mode != 'pmap':
      return self.constrain(tree)
    device = lax.axis_index(AXIS)

    def part(x):
      size = x.shape[0] // len(self.devices)
      return lax.dynamic_slice_in_dim(x, device * size, size)

    return jax.tree.map(part, tree)

  def constrain(self, tree: Tree) -> Tree:
    """Inside a sharded call: keeps arrays `[b, ...]` divided along b."""
    if self.mesh is None:
      return tree
    sharding = self._sharding(AXIS)
    return jax.tree.map(
      lambda x: lax.with_sharding_constraint(x, sharding), tree
    )


def _from_host(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.cache
def _copier(devices: tuple[Any, ...]) -> Callable[[Any, Tree], Tree]:
  """Compiles `(mapped, tree) -> tree on every device`, once for all trees."""
  # One argument must be mapped. The axis is that of the compiled calls, which
  # otherwise compile again for the arrays that the first call returns.
  return jax.pmap(lambda _, t: t, AXIS, in_axes=(0, None), devices=devices)


@jax.jit
def _first(tree: Tree) -> Tree:
  # One program. Indexing array by array compiles one program per shape, and
  # each gathers from all devices.
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
      f'parallel.devices is {count}, but mode jit runs on one device: choose '
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
  """Raises InputError if the same command may give different bits.

  Only GPUs (`platform` is 'gpu') add numbers in any order, unless an XLA flag
  forbids it.
  """
  flags = os.environ.get('XLA_FLAGS', '').split()
  if platform == 'gpu' and environment.DETERMINISTIC not in flags:
    raise errors.InputError(
      'train.deterministic is True, but JAX started without '
      f'{environment.DETERMINISTIC}: train with python -m skipnet_jax.train, '
      'or set XLA_FLAGS to it before JAX starts.'
    )


def to_host(tree: Tree) -> Tree:
  """Replicated arrays as numpy, from a shard that this process holds."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)


def memory(device: jax.Device) -> int:
  """Bytes of memory that a device has; on a CPU, all of the machine."""
  stats = device.memory_stats() if device.platform != 'cpu' else None
  return (stats or {}).get('bytes_limit') or machine_memory()


def machine_memory() -> int:
  """Bytes of the machine's own memory."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
