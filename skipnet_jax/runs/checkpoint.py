"""Checkpoints by orbax: the latest ones to go on from, the best to use.

All arrays of a state are written as one, with a table of what lies where beside
it: tensorstore, which writes for orbax, loses a few hundred bytes of memory for
every array that it is given, and a state has a thousand. A checksum covers that
array and what is kept beside it; a checkpoint that is damaged is told and
passed over for the one before.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
import pathlib
import shutil
from typing import Any
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from skipnet_jax import errors
from skipnet_jax.step import parallel
from skipnet_jax.step import state as state_lib

TrainState = state_lib.TrainState
Warn = Callable[[str], None]
# A state, what was kept beside it, and the kernels at the beginning of an epoch
# that was cut short.
Restored = tuple[TrainState, dict[str, Any], list[jax.Array] | None]
YEARS = 10**9  # Seconds.


def _to_tree(state: TrainState) -> dict[str, Any]:
  tree = {f: getattr(state, f) for f in state.__dataclass_fields__}
  if isinstance(state.key, jax.ShapeDtypeStruct):
    data = jax.eval_shape(jax.random.key_data, state.key)
    return tree | {'key': data.update(sharding=state.key.sharding)}
  return tree | {'key': jax.random.key_data(state.key)}


def _from_tree(tree: dict[str, Any]) -> TrainState:
  return TrainState(**tree | {'key': jax.random.wrap_key_data(tree['key'])})


def _table(tree: Any) -> list[list[Any]]:
  """Name, dtype and shape of every array, in order."""
  return [
    [
      jax.tree_util.keystr(path, simple=True, separator='.'),
      str(leaf.dtype),
      list(leaf.shape),
    ]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _pack(tree: Any) -> np.ndarray:
  """The bytes of all arrays, one after the other."""
  parts = [
    np.ascontiguousarray(parallel.to_host(leaf)).reshape(-1).view(np.uint8)
    for leaf in jax.tree.leaves(tree)
  ]
  return np.concatenate(parts)


def _unpack(data: np.ndarray, abstract: Any) -> Any:
  """The arrays again, placed as the abstract ones say."""
  leaves, structure = jax.tree.flatten(abstract)
  found, at = [], 0
  for leaf in leaves:
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    # A copy: JAX may keep the memory that it is given.
    value = data[at : at + size].copy().view(leaf.dtype).reshape(leaf.shape)
    found.append(
      jax.make_array_from_callback(leaf.shape, leaf.sharding, value.__getitem__)
    )
    at += size
  return jax.tree.unflatten(structure, found)


def _check_same(there: list[list[Any]], needed: list[list[Any]]) -> None:
  """Raises ValueError where a checkpoint holds another network."""
  if there == needed:
    return
  old, new = (
    {name: f'{kind} {tuple(shape)}' for name, kind, shape in table}
    for table in (there, needed)
  )
  # What follows from the parameters says less.
  names = sorted(
    old.keys() | new.keys(), key=lambda n: (not n.startswith('params.'), n)
  )
  for name in names:
    if old.get(name) != new.get(name):
      raise ValueError(
        f'{name} is {old.get(name, "not there")}, and '
        f'{new.get(name, "none")} is needed'
      )
  raise ValueError('its arrays have another order')


def _checksum(data: np.ndarray, meta: dict[str, Any]) -> int:
  """CRC-32 of all that a checkpoint holds, but for the checksum itself."""
  kept = {name: value for name, value in meta.items() if name != 'crc32'}
  return zlib.crc32(
    data.data, zlib.crc32(json.dumps(kept, sort_keys=True).encode())
  )


def _reason(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


class Checkpoints:
  """The folder `checkpoints/` of a run: `latest/` and `best/` by step.

  Args:
    workdir: the run's folder.
    create: whether folders are made; a reader makes none.
  """

  def __init__(self, workdir: str | pathlib.Path, *, create: bool = True):
    root = pathlib.Path(workdir).absolute() / 'checkpoints'

    def manager(name: str, keep: int) -> ocp.CheckpointManager:
      return ocp.CheckpointManager(
        root / name,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          create=create,
          cleanup_tmp_directories=create,
          # Orbax's limits go by the wall clock: one set forward, or a machine
          # that slept, would end a save that lacks nothing.
          async_options=ocp.options.AsyncOptions(
            timeout_secs=YEARS, create_directories_asynchronously=False
          ),
          # Several processes wait for each other by name, in the background
          # too: under one name the two managers would mistake each other.
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=name
          ),
        ),
        item_names=('state', 'meta'),
      )

    self._root = root
    # The one before is there should the newest be damaged.
    self._latest = manager('latest', 2)
    self._best = manager('best', 2)

  def save(
    self,
    state: TrainState,
    meta: dict[str, Any],
    *,
    best: bool = False,
    kernels: list[jax.Array] | None = None,
  ) -> None:
    """Starts to write a checkpoint in the background.

    Args:
      state: one copy, see `Parallel.unreplicate`.
      meta: JSON values kept beside it.
      best: whether it is also the best so far.
      kernels: of an epoch that was cut short, as they were at its beginning.

    Raises:
      RunError: this one, or the one before, could not be written.
    """
    step = int(meta['step'])
    tree = _to_tree(state)
    if kernels is not None:
      tree['kernels'] = kernels
    data = _pack(tree)
    meta = meta | {'arrays': _table(tree)}
    meta |= {'crc32': _checksum(data, meta)}
    self._check_space(data.nbytes)
    for manager in (self._best, self._latest) if best else (self._latest,):
      # A run cut off between the two writes makes the same best once more.
      with self._writing():
        if step in manager.all_steps():
          manager.delete(step)
        manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave({'bytes': data}),
            meta=ocp.args.JsonSave(meta),
          ),
        )

  def _check_space(self, needed: int) -> None:
    # Orbax would find out in threads that print tracebacks.
    free = shutil.disk_usage(self._root).free
    if free < 2 * needed:
      raise errors.RunError(
        f'A checkpoint of {needed / 1e6:,.1f} MB needs twice as much space in '
        f'{self._root}, and {free / 1e6:,.1f} MB are left: make space and give '
        'the same command again; it goes on from the checkpoint before.'
      )

  def wait(self) -> None:
    """Waits until what was saved is on the disk.

    Raises:
      RunError: it could not be written, for lack of space, say.
    """
    for manager in (self._best, self._latest):
      with self._writing():
        manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Makes a RunError of what a full disk or its like raises."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as e:
      raise errors.RunError(
        f'A checkpoint could not be written to {self._root} '
        f'({str(e).splitlines()[0][:200]}): make space and give the same '
        'command again; it goes on from the checkpoint before.'
      ) from e

  def steps(self) -> list[int]:
    """Steps of the latest checkpoints, the newest first."""
    return sorted(self._latest.all_steps(), reverse=True)

  def restore_latest(
    self,
    like: TrainState,
    warn: Warn,
    kernels: list[jax.Array] | None = None,
  ) -> Restored | None:
    """The newest readable checkpoint, or None where there is none.

    Args:
      like: abstract or concrete state of the same shapes and shardings.
      warn: told of each checkpoint that could not be read.
      kernels: the same of what `save` took as `kernels`.

    Returns:
      The state, what was kept beside it, and the kernels at the beginning of
      an epoch that was cut short.

    Raises:
      RunError: there are checkpoints, and none can be read.
    """
    for step in self.steps():
      try:
        return self._restore(self._latest, step, like, kernels)
      # Whatever a damaged file makes the reader raise.
      except Exception as e:
        warn(
          f'The checkpoint of step {step} is damaged ({_reason(e)}); falling '
          'back to the one before.'
        )
    if self.steps():
      raise errors.RunError(
        f'No checkpoint in {self._root / "latest"} can be read: restore one '
        'from a backup, or start anew with another --workdir.'
      )
    return None

  def restore_best(
    self, like: TrainState, warn: Warn
  ) -> tuple[TrainState, dict[str, Any]]:
    """The checkpoint with the best validation loss.

    Args:
      like: as in `restore_latest`.
      warn: told of a best one that could not be read; the best one before it
        then stands in.

    Raises:
      InputError: there is none, or it is of another model.
    """
    reason = None
    for step in sorted(self._best.all_steps(), reverse=True):
      for manager in (self._best, self._latest):
        if step not in manager.all_steps():
          continue
        try:
          found = self._restore(manager, step, like)[:2]
        except Exception as e:
          reason = reason or _reason(e)
          continue
        if reason:
          warn(
            f'The best checkpoint in {self._root.parent} is damaged '
            f'({reason}): that of step {step} stands in.'
          )
        return found
    if reason:
      raise errors.InputError(
        f'The best checkpoint in {self._root.parent} does not fit the model of '
        f'its config.json, or is damaged ({reason}): use the config that it '
        'was trained with.'
      )
    raise errors.InputError(
      f'{self._root.parent} has no best checkpoint: train first, or name the '
      '--workdir of a run that has finished an epoch.'
    )

  def _restore(
    self,
    manager: ocp.CheckpointManager,
    step: int,
    like: TrainState,
    kernels: list[jax.Array] | None = None,
  ) -> Restored:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = manager.restore(step, args=args)['meta']
    tree = _to_tree(like)
    if 'cut_short' in meta:
      tree['kernels'] = kernels
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      tree,
    )
    _check_same(meta.pop('arrays'), _table(abstract))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore({'bytes': np.zeros(size, np.uint8)})
    )
    data = manager.restore(step, args=args)['state']['bytes']
    if _checksum(data, meta | {'arrays': _table(abstract)}) != meta['crc32']:
      raise ValueError('its checksum is another')
    tree = _unpack(data, abstract)
    started = tree.pop('kernels', None)
    return _from_tree(tree), meta, started

  def close(self) -> None:
    """Waits, and ends the background threads."""
    self.wait()
    self._best.close()
    self._latest.close()
