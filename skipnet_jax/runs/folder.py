"""The folder of a run in progress: locked, written to, and closed."""

from collections.abc import Callable, Sequence
import contextlib
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir
from skipnet_jax.step import state as state_lib


class Folder(contextlib.ExitStack):
  """A context manager that locks the folder and closes what it opened.

  First call `restore`, then `begin`, then the rest.

  Attributes:
    path: from `workdir.check`.
    writes: whether this process locks the folder and writes its files; all
      processes write the arrays of a checkpoint.
    checkpoints: after `restore`.
    log: after `begin`.

  Raises:
    InputError: another process trains there.
  """

  checkpoints: checkpoint.Checkpoints
  log: run_log.RunLog
  _flow: flow_file.FlowFile

  def __init__(self, path: pathlib.Path, *, writes: bool):
    super().__init__()
    self.path, self.writes = path, writes

  def __enter__(self) -> 'Folder':
    if self.writes:
      self.enter_context(workdir.claim(self.path))
    return self

  def restore(
    self,
    like: state_lib.TrainState,
    kernels: list[jax.Array],
    warn: Callable[[str], None],
  ) -> checkpoint.Restored | None:
    """The latest checkpoint, see `Checkpoints.restore_latest`."""
    self.checkpoints = self.enter_context(
      contextlib.closing(checkpoint.Checkpoints(self.path))
    )
    return self.checkpoints.restore_latest(like, warn, kernels)

  def begin(
    self,
    config: ml_collections.ConfigDict,
    dataset: dict[str, str],
    names: Sequence[str],
    progress: progress_lib.Progress,
    total_steps: int,
    warn: Callable[[str], None],
  ) -> None:
    """Opens the files, and cuts them to the epochs of the checkpoint.

    Args:
      config: of the run.
      dataset: name and fingerprint of the data set.
      names: layers whose kernels are recorded, in forward order.
      progress: of the checkpoint.
      total_steps: for the progress bar.
      warn: called with a message for records that are lost.
    """
    if self.writes:
      workdir.describe(self.path, config, dataset)
      warning = run_log.keep_records(
        self.path / 'metrics.jsonl', progress.epoch, progress.records
      )
      if warning:
        warn(warning)
      self._flow = flow_file.FlowFile(
        self.path / 'gradient_flow.npz', names, progress.epoch, warn
      )
    log = run_log.RunLog(
      self.path,
      total_steps=total_steps,
      first_step=progress.step,
      tensorboard=config.log.tensorboard,
      progress=config.log.progress,
      active=self.writes,
    )
    self.log = self.enter_context(contextlib.closing(log))

  def record(
    self, record: dict[str, Any], change: np.ndarray, flow: np.ndarray
  ) -> None:
    """Adds an epoch to `gradient_flow.npz`, metrics.jsonl and TensorBoard.

    Args:
      record: numbers by name, with epoch and step.
      change: from `telemetry.net_change`.
      flow: from `telemetry.step_flow`, averaged over the epoch's steps.
    """
    if self.writes:
      self._flow.append(change, flow)
    self.log.write(record)
