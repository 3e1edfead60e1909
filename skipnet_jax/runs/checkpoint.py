"""Saves checkpoints with orbax: the latest to resume from, the best to use.

A checkpoint stores all arrays of a state as one array of bytes, with a table of
their names, dtypes and shapes: tensorstore, which orbax uses, leaks a few
hundred bytes of memory per array, and a state has a thousand. A checksum covers
all of it. A damaged checkpoint is skipped, with a warning.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
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
# A state, the JSON values saved with it, and the kernels at the beginning of an
# interrupted epoch.
Restored = tuple[TrainState, dict[str, Any], list[jax.Array] | None]


def _to_tree(state: TrainState) -> dict[str, Any]:
  if isinstance(state.key, jax.ShapeDtypeStruct):
    words = jax.eval_shape(jax.random.key_data, state.key)
    words = words.update(sharding=state.key.sharding)
  else:
    words = jax.random.key_data(state.key)
  return vars(state) | {'key': words}


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


def _unpack(data: np.ndarray, like: Any) -> Any:
  """The inverse of `_pack`, with shapes and shardings as in `like`."""

  def take(leaf):
    nonlocal data
    size = leaf.size * leaf.dtype.itemsize
    # A copy, because JAX may keep the memory.
    value = data[:size].copy().view(leaf.dtype).reshape(leaf.shape)
    data = data[size:]
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, value.__getitem__
    )

  return jax.tree.map(take, like)


def _check_table(saved: list[list[Any]], needed: list[list[Any]]) -> None:
  """Raises ValueError if a checkpoint is of another network."""
  old, new = (
    {name: f'{kind} {tuple(shape)}' for name, kind, shape in table}
    for table in (saved, needed)
  )
  # Parameters first: the other arrays depend on them.
  names = sorted(
    old.keys() | new.keys(), key=lambda n: (not n.startswith('params.'), n)
  )
  for name in names:
    if old.get(name) != new.get(name):
      raise ValueError(
        f'{name} is {old.get(name, "missing")}, and '
        f'{new.get(name, "none")} is needed'
      )


def _checksum(data: np.ndarray, meta: dict[str, Any]) -> int:
  """CRC-32 of the content of a checkpoint, without the checksum itself."""
  kept = {name: value for name, value in meta.items() if name != 'crc32'}
  text = json.dumps(kept, sort_keys=True)
  return zlib.crc32(data.data, zlib.crc32(text.encode()))


def _reason(error: Exception) -> str:
  """The first line of an error's message."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


class Checkpoints:
  """The folder `checkpoints/` of a run: `latest/` and `best/` by step.

  Args:
    workdir: the run's folder.
    create: whether to make the folders; False to read only.
  """

  def __init__(self, workdir: str | pathlib.Path, *, create: bool = True):
    self._root = pathlib.Path(workdir).absolute() / 'checkpoints'

    def manager(name: str) -> ocp.CheckpointManager:
      return ocp.CheckpointManager(
        self._root / name,
        options=ocp.CheckpointManagerOptions(
          # If the newest is damaged, the one before is still there.
          max_to_keep=2,
          create=create,
          cleanup_tmp_directories=create,
          # Orbax measures timeouts by the wall clock: after a change of the
          # clock, or sleep of the machine, a save would fail.
          async_options=ocp.options.AsyncOptions(
            timeout_secs=10**9, create_directories_asynchronously=False
          ),
          # Processes wait for each other by name, also in the background: the
          # two managers need different names.
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=name
          ),
        ),
        item_names=('state', 'meta'),
      )

    self._managers = {name: manager(name) for name in ('best', 'latest')}

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
      meta: JSON values to save with it.
      best: whether it is also the best so far.
      kernels: at the beginning of the epoch, if that is interrupted.

    Raises:
      RunError: this checkpoint, or the one before, cannot be written.
    """
    step = int(meta['step'])
    tree = _to_tree(state)
    if kernels is not None:
      tree['kernels'] = kernels
    data = _pack(tree)
    meta = meta | {'arrays': _table(tree)}
    meta |= {'crc32': _checksum(data, meta)}
    # Orbax would fail in threads that print tracebacks.
    free = shutil.disk_usage(self._root).free
    if free < 2 * data.nbytes:
      raise errors.RunError(
        f'A checkpoint of {data.nbytes / 1e6:,.1f} MB needs twice as much '
        f'space in {self._root}, and {free / 1e6:,.1f} MB are left: free some '
        'space and run the same command again to resume from the checkpoint '
        'before.'
      )
    for name in ('best', 'latest') if best else ('latest',):
      manager = self._managers[name]
      with self._writing():
        # A run that ended between the two writes saves the same best again.
        if step in manager.all_steps():
          manager.delete(step)
        manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave({'bytes': data}),
            meta=ocp.args.JsonSave(meta),
          ),
        )

  def wait(self) -> None:
    """Waits until all checkpoints are on the disk.

    Raises:
      RunError: one cannot be written, for example because the disk is full.
    """
    for manager in self._managers.values():
      with self._writing():
        manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns the errors of a failed write, as on a full disk, into RunError."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as e:
      raise errors.RunError(
        f'A checkpoint could not be written to {self._root} ({_reason(e)}): '
        'free some space and run the same command again to resume from the '
        'checkpoint before.'
      ) from e

  def _steps(self, name: str) -> list[int]:
    """Steps of the checkpoints in a folder, the newest first."""
    return sorted(self._managers[name].all_steps(), reverse=True)

  def restore_latest(
    self,
    like: TrainState,
    warn: Callable[[str], None],
    kernels: list[jax.Array] | None = None,
  ) -> Restored | None:
    """The newest readable checkpoint, or None if there are no checkpoints.

    Args:
      like: abstract or concrete state of the same shapes and shardings.
      warn: called with a message if the newest one is damaged.
      kernels: arrays of the same shapes as the `kernels` of `save`.

    Raises:
      RunError: there are checkpoints, and none can be read.
    """
    candidates = [('latest', step) for step in self._steps('latest')]
    if not candidates:
      return None
    try:
      return self._restore_first(candidates, like, warn, kernels)
    except ValueError as e:
      raise errors.RunError(
        f'No checkpoint in {self._root / "latest"} can be read ({e}): restore '
        'one from a backup, or start again in another --workdir.'
      ) from e

  def restore_best(
    self, like: TrainState, warn: Callable[[str], None]
  ) -> tuple[TrainState, dict[str, Any]]:
    """The checkpoint with the best validation loss.

    Args:
      like: as in `restore_latest`.
      warn: called with a message if that checkpoint is damaged; its copy among
        the latest or an older best one is then used.

    Raises:
      InputError: there is none, or it is of another model.
    """
    candidates = [
      (name, step)
      for step in self._steps('best')
      for name in ('best', 'latest')
      if step in self._steps(name)
    ]
    if not candidates:
      raise errors.InputError(
        f'{self._root.parent} has no best checkpoint: train first, or give the '
        '--workdir of a run that has finished an epoch.'
      )
    try:
      return self._restore_first(candidates, like, warn)[:2]
    except ValueError as e:
      raise errors.InputError(
        f'The best checkpoint in {self._root.parent} is of another model than '
        f'its config.json, or is damaged ({e}): restore the original '
        'config.json.'
      ) from e

  def _restore_first(
    self,
    candidates: list[tuple[str, int]],
    like: TrainState,
    warn: Callable[[str], None],
    kernels: list[jax.Array] | None = None,
  ) -> Restored:
    """The first readable one of some checkpoints, given by folder and step.

    Raises:
      ValueError: none can be read; with the reason for the first one.
    """
    reason = ''
    for name, step in candidates:
      try:
        restored = self._restore(self._managers[name], step, like, kernels)
      # A damaged file can cause an error of any type.
      except Exception as e:
        reason = reason or _reason(e)
        continue
      if reason:
        damaged = '{}/{}'.format(*candidates[0])
        warn(
          f'The checkpoint {damaged} is damaged ({reason}): {name}/{step} is '
          'used instead.'
        )
      return restored
    raise ValueError(reason)

  def _restore(
    self,
    manager: ocp.CheckpointManager,
    step: int,
    like: TrainState,
    kernels: list[jax.Array] | None,
  ) -> Restored:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = manager.restore(step, args=args)['meta']
    tree = _to_tree(like)
    if 'cut_short' in meta:
      tree['kernels'] = kernels
    table = _table(tree)
    _check_table(meta.pop('arrays'), table)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore({'bytes': np.zeros(size, np.uint8)})
    )
    data = manager.restore(step, args=args)['state']['bytes']
    if _checksum(data, meta | {'arrays': table}) != meta['crc32']:
      raise ValueError('its checksum is wrong')
    tree = _unpack(data, tree)
    tree['key'] = jax.random.wrap_key_data(tree['key'])
    kernels = tree.pop('kernels', None)
    return TrainState(**tree), meta, kernels

  def close(self) -> None:
    """Waits, and ends the background threads."""
    self.wait()
    for manager in self._managers.values():
      manager.close()
