"""Saves checkpoints with orbax: the latest to resume from, the best to use.

A checksum covers all of a checkpoint; `packing` says how it is stored. A
damaged one is skipped, with a warning; a run that resumes moves it to
`damaged/`, because orbax saves no step below the highest.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from skipnet_jax import errors
from skipnet_jax.runs import packing
from skipnet_jax.runs import plain_path
from skipnet_jax.step import state as state_lib

TrainState = state_lib.TrainState
# A state, the JSON values saved with it, and the kernels at the beginning of an
# interrupted epoch.
Restored = tuple[TrainState, dict[str, Any], list[jax.Array] | None]
# Folder and step.
Place = tuple[str, int]
# Where `Checkpoints` moves what it cannot read, in the run's folder.
DAMAGED = 'damaged'
# Ends the name of a checkpoint of whose step another is being written.
_REPLACED = '.replaced'


def _barrier(reason: str) -> None:
  """Waits for the other processes, until process 0 has moved a folder."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(reason)


def steps_on_disk(workdir: pathlib.Path) -> dict[str, set[int]]:
  """Steps of a run's finished checkpoints, readable or not, by folder."""
  return {
    name: {
      int(path.name)
      for path in (workdir / 'checkpoints').glob(f'{name}/*')
      if path.name.isdecimal()
    }
    for name in ('latest', 'best')
  }


class _Manager(ocp.CheckpointManager):
  """Leaves SIGTERM to `training.preemption`.

  JAX has one counter of calls for both. If orbax gave it the number of the
  step, a resumed run would stop only after as many calls.
  """

  def reached_preemption(self, step: int) -> bool:
    """False: a run that is stopped saves a checkpoint by itself."""
    del step
    return False


class Checkpoints:
  """The folder `checkpoints/` of a run: `latest/` and `best/` by step.

  Args:
    workdir: the run's folder.
    create: whether to make the folders; False to read only.
  """

  def __init__(self, workdir: str | pathlib.Path, *, create: bool = True):
    self._workdir = pathlib.Path(workdir).absolute()
    self._folder = self._workdir / 'checkpoints'
    self._create = create
    if create:
      self._workdir.mkdir(parents=True, exist_ok=True)
    self._opened = contextlib.ExitStack()
    # Orbax's path of the same folder.
    self._root = (
      self._opened.enter_context(plain_path.open_folder(self._workdir))
      / 'checkpoints'
    )
    if create:
      self._finish_replacing()

    def manager(name: str) -> ocp.CheckpointManager:
      return _Manager(
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
    # Folders whose first checkpoint was read back.
    self._read_back: set[str] = set()

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

    The first one in each folder is written and read back before it returns: a
    file system that does not keep what is written is noticed there.

    Raises:
      RunError: this checkpoint, or the one before, cannot be written, or the
        first one cannot be read.
    """
    step = int(meta['step'])
    tree = packing.to_tree(state)
    if kernels is not None:
      tree['kernels'] = kernels
    data = packing.pack(tree)
    meta = meta | {'arrays': packing.table(tree)}
    meta |= {'crc32': packing.checksum(data, meta)}
    # Orbax would fail in threads that print tracebacks.
    free = shutil.disk_usage(self._root).free
    if free < 2 * data.nbytes:
      raise errors.RunError(
        f'A checkpoint of {data.nbytes / 1e6:,.1f} MB needs twice as much '
        f'space in {self._folder}, and {free / 1e6:,.1f} MB are left: free '
        'some space and run the same command again to resume from the '
        'checkpoint before.'
      )
    for name in ('best', 'latest') if best else ('latest',):
      manager = self._managers[name]
      with self._writing():
        # SIGTERM may have stopped the run after the last step of the epoch.
        again = step in manager.all_steps()
        if again:
          self._start_replacing(name, step)
        saved = manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave({'bytes': data}),
            meta=ocp.args.JsonSave(meta),
          ),
        )
      if not saved:
        raise errors.RunError(
          f'The checkpoint of step {step} was not saved: '
          f'{self._folder / name} has one of step {self._steps(name)[0]}. Move '
          'that out of the folder, and run the same command again to resume '
          'from the checkpoint before.'
        )
      if again or name == 'best' or name not in self._read_back:
        # A run resumes from a later checkpoint only if the best is whole.
        with self._writing():
          manager.wait_until_finished()
      if name not in self._read_back:
        self._check_readable(name, step, data)
        self._read_back.add(name)
      if again:
        self._finish_replacing()

  def _start_replacing(self, name: str, step: int) -> None:
    """Hides a checkpoint until another of the same step is on the disk."""
    manager = self._managers[name]
    manager.wait_until_finished()
    if jax.process_index() == 0:
      old = self._folder / f'{name}_{step}{_REPLACED}'
      (self._folder / name / str(step)).rename(old)
    _barrier('checkpoint is hidden')
    manager.reload()

  def _finish_replacing(self) -> None:
    """Removes hidden checkpoints; restores those without a successor."""
    if jax.process_index() == 0:
      for old in self._folder.glob(f'*{_REPLACED}'):
        place = old.name.removesuffix(_REPLACED).replace('_', '/')
        if (self._folder / place).exists():
          shutil.rmtree(old)
        else:
          old.rename(self._folder / place)
    _barrier('checkpoint is replaced')

  def _check_readable(self, name: str, step: int, data: np.ndarray) -> None:
    """Raises RunError if a checkpoint is not what was saved."""
    manager = self._managers[name]
    try:
      # Process 0 wrote the values, with its own times.
      meta = self._read(manager, step, 'meta', ocp.args.JsonRestore())
      found = self._read_bytes(manager, step, data.nbytes)
      if packing.checksum(found, meta) != meta['crc32']:
        raise ValueError('its checksum is wrong')
      if not np.array_equal(found, data):
        raise ValueError('its arrays are others')
    except (ValueError, KeyError) as e:
      raise errors.RunError(
        f'The checkpoint {name}/{step} in {self._folder} cannot be read back '
        f'({self._reason(e)}): the file system does not keep what is written, '
        'so choose a --workdir on another one.'
      ) from e

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
        f'A checkpoint could not be written to {self._folder} '
        f'({self._reason(e)}): free some space and run the same command again '
        'to resume from the checkpoint before.'
      ) from e

  def _reason(self, error: Exception) -> str:
    """What is wrong with a checkpoint, as part of a sentence."""
    if isinstance(error, KeyError):
      return f'it has no {error}'
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].replace(str(self._root), str(self._folder))
    return text[:200].rstrip('.')

  def _steps(self, name: str) -> list[int]:
    """Steps of the checkpoints in a folder, the newest first."""
    return sorted(self._managers[name].all_steps(), reverse=True)

  def restore_latest(
    self,
    like: TrainState,
    warn: Callable[[str], None],
    kernels: Sequence[jax.ShapeDtypeStruct] | None = None,
  ) -> Restored | None:
    """The newest readable checkpoint, or None if there are no checkpoints.

    Newer ones, which are damaged, are moved to `damaged/` in the run's folder,
    unless `create` is False.

    Args:
      like: abstract or concrete state of the same shapes and shardings.
      warn: called with a message if the newest one is damaged.
      kernels: shapes and shardings of the `kernels` of `save`.

    Raises:
      InputError: the best checkpoint is lost; unless `create` is False.
      RunError: there are checkpoints, and none can be read.
    """
    steps = {name: self._steps(name) for name in ('latest', 'best')}
    candidates = [
      (name, step)
      for step in sorted({*steps['latest'], *steps['best']}, reverse=True)
      for name in ('latest', 'best')
      if step in steps[name]
    ]
    if not candidates:
      return None
    moved = (
      f', and what is damaged is moved to {self._workdir / DAMAGED}'
      if self._create
      else ''
    )
    try:
      restored, damaged = self._restore_first(
        candidates, like, warn, kernels, moved
      )
    except ValueError as e:
      raise errors.RunError(
        f'No checkpoint in {self._folder} can be read ({e}): restore one from '
        'a backup, or start again in another --workdir.'
      ) from e
    if self._create:
      self._check_best(restored[1])
      self._move_away(damaged)
    return restored

  def _move_away(self, damaged: Sequence[Place]) -> None:
    """Moves damaged checkpoints to `damaged/`; all processes must call it.

    Raises:
      RunError: they cannot be moved, or processes found different ones.
    """
    if jax.process_count() > 1:
      counts = multihost_utils.process_allgather(np.int32(len(damaged)))
      if len({*counts.tolist()}) > 1:
        raise errors.RunError(
          f'Not all processes can read the same checkpoints in {self._folder}: '
          'give a --workdir that all of them share.'
        )
    if not damaged:
      return
    target = self._workdir / DAMAGED
    try:
      for name, step in damaged if jax.process_index() == 0 else ():
        target.mkdir(exist_ok=True)
        free, number = target / f'{name}_{step}', 1
        while free.exists():
          number += 1
          free = target / f'{name}_{step}_{number}'
        (self._folder / name / str(step)).rename(free)
    except OSError as e:
      raise errors.RunError(
        f'The damaged checkpoints in {self._folder} cannot be moved to '
        f'{target} ({e.strerror}): move them away, and run the same command '
        'again to resume from the checkpoint before.'
      ) from e
    _barrier('damaged checkpoints are moved')
    for manager in self._managers.values():
      manager.reload()

  def _check_best(self, meta: dict[str, Any]) -> None:
    """Refuses a run that lost the best checkpoint that its values name."""
    step = (meta.get('best_record') or {}).get('step')
    if step is not None and step not in self._steps('best'):
      there = step in self._steps('latest')
      raise errors.InputError(
        f'{self._folder / "best"} has no checkpoint of step {step}, the best '
        'of the run: put it back'
        + (f' (latest/{step} is a copy)' if there else '')
        + ', or start again in another --workdir.'
      )

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
        f'{self._workdir} has no best checkpoint: train first, or give the '
        '--workdir of a run that has finished an epoch.'
      )
    try:
      (state, meta, _), _ = self._restore_first(candidates, like, warn)
      return state, meta
    except ValueError as e:
      raise errors.InputError(
        f'The best checkpoint in {self._workdir} is of another model than its '
        f'config.json, or is damaged ({e}): restore the original config.json.'
      ) from e

  def _restore_first(
    self,
    candidates: Sequence[Place],
    like: TrainState,
    warn: Callable[[str], None],
    kernels: Sequence[jax.ShapeDtypeStruct] | None = None,
    moved: str = '',
  ) -> tuple[Restored, list[Place]]:
    """The first readable one of some checkpoints, and the damaged ones.

    Args:
      candidates: where they are.
      like: as in `restore_latest`.
      warn: called with a message if the first one is damaged.
      kernels: as in `restore_latest`.
      moved: end of that message.

    Raises:
      ValueError: none can be read; with the reason for each.
    """
    damaged: dict[Place, str] = {}
    for name, step in candidates:
      try:
        restored = self._restore(self._managers[name], step, like, kernels)
      except MemoryError:
        raise
      # What damaged values make of the arrays can be an error of any type.
      except Exception as e:
        if 'RESOURCE_EXHAUSTED' in str(e):
          raise
        damaged[name, step] = self._reason(e)
        continue
      if damaged:
        found = (f'{n}/{s} is damaged ({r})' for (n, s), r in damaged.items())
        warn(
          f'The checkpoint {" and ".join(found)}: {name}/{step} is used instead'
          f'{moved}.'
        )
      return restored, list(damaged)
    raise ValueError(
      '; '.join(f'{n}/{s}: {r}' for (n, s), r in damaged.items())
    )

  def _read(
    self,
    manager: ocp.CheckpointManager,
    step: int,
    name: str,
    how: ocp.args.CheckpointArgs,
  ) -> Any:
    """The item `name` of a checkpoint.

    Raises:
      ValueError: it is damaged.
    """
    args = ocp.args.Composite(**{name: how})
    try:
      return manager.restore(step, args=args)[name]
    except MemoryError:
      raise
    # A damaged file can cause an error of any type.
    except Exception as e:
      raise ValueError(f'{name}/ cannot be read: {self._reason(e)}') from e

  def _read_bytes(
    self, manager: ocp.CheckpointManager, step: int, size: int
  ) -> np.ndarray:
    """The bytes of a checkpoint's arrays."""
    like = {'bytes': np.zeros(size, np.uint8)}
    how = ocp.args.StandardRestore(like)
    return self._read(manager, step, 'state', how)['bytes']

  def _restore(
    self,
    manager: ocp.CheckpointManager,
    step: int,
    like: TrainState,
    kernels: Sequence[jax.ShapeDtypeStruct] | None,
  ) -> Restored:
    meta = self._read(manager, step, 'meta', ocp.args.JsonRestore())
    tree = packing.to_tree(like)
    if 'cut_short' in meta:
      tree['kernels'] = kernels
    saved = meta.pop('arrays')
    # A checkpoint of an earlier version has none: see below.
    lacks = bool(like.averaged_stats.vectors) and not any(
      name.startswith('averaged_stats.') for name, *_ in saved
    )
    if lacks:
      del tree['averaged_stats']
    table = packing.table(tree)
    packing.check_table(saved, table)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    data = self._read_bytes(manager, step, size)
    if packing.checksum(data, meta | {'arrays': table}) != meta['crc32']:
      raise ValueError('its checksum is wrong')
    tree = packing.unpack(data, tree)
    tree['key'] = jax.random.wrap_key_data(tree['key'])
    before = tree.pop('kernels', None)
    if lacks:
      # That version evaluated with the running statistics.
      running = packing.pack(tree['batch_stats'])
      tree['averaged_stats'] = packing.unpack(running, like.averaged_stats)
    return TrainState(**tree), meta, before

  def close(self) -> None:
    """Waits, and ends the background threads."""
    try:
      self.wait()
      for manager in self._managers.values():
        manager.close()
    finally:
      self._opened.close()
