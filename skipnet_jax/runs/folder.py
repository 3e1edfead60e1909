"""A run's folder while the run lasts: claimed, written to, and closed."""

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

Progress = progress_lib.Progress


class Folder:
  """As a context manager it claims the folder and closes what it opened.

  Whatever is raised within, the lock, the checkpoints and the files are closed
  in the end. First `restore`, then `begin`, then all else.

  Attributes:
    path: from `workdir.check`.
    writes: whether this process claims the folder and writes its files; the
      arrays of a checkpoint are written by all processes.
    checkpoints: from `restore` on.
    log: from `begin` on.

  Raises:
    InputError: another process trains there.
  """

  checkpoints: checkpoint.Checkpoints
  log: run_log.RunLog
  _flow: flow_file.FlowFile

  def __init__(self, path: pathlib.Path, *, writes: bool):
    self.path, self.writes = path, writes
    self._opened = contextlib.ExitStack()

  def __enter__(self) -> 'Folder':
    if self.writes:
      self._opened.enter_context(workdir.claim(self.path))
    return self

  def __exit__(self, *error: Any) -> None:
    self._opened.__exit__(*error)

  def restore(
    self,
    like: state_lib.TrainState,
    kernels: list[jax.Array],
    warn: Callable[[str], None],
  ) -> checkpoint.Restored | None:
    """What the latest checkpoint holds, see `Checkpoints.restore_latest`."""
    self.checkpoints = self._opened.enter_context(
      contextlib.closing(checkpoint.Checkpoints(self.path))
    )
    return self.checkpoints.restore_latest(like, warn, kernels)

  def begin(
    self,
    config: ml_collections.ConfigDict,
    dataset: dict[str, str],
    names: Sequence[str],
    progress: Progress,
    total_steps: int,
  ) -> list[str]:
    """Opens the files, and leaves in them what the checkpoint knows of.

    Args:
      config: of the run.
      dataset: name and fingerprint of the data set.
      names: layers whose kernels are recorded, in forward order.
      progress: of the checkpoint.
      total_steps: for the progress bar.

    Returns:
      What there is to say of records that are lost.
    """
    messages: list[str] = []
    if self.writes:
      workdir.describe(self.path, config, dataset)
      messages += run_log.keep_records(
        self.path / 'metrics.jsonl', progress.epoch, progress.records
      )
      self._flow = flow_file.FlowFile(
        self.path / 'gradient_flow.npz', names, progress.epoch, messages.append
      )
    log = run_log.RunLog(
      self.path,
      total_steps=total_steps,
      first_step=progress.step,
      tensorboard=config.log.tensorboard,
      progress=config.log.progress,
      active=self.writes,
    )
    self.log = self._opened.enter_context(contextlib.closing(log))
    return messages

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
