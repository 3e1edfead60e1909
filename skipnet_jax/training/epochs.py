"""All epochs of a run: train, validate, record, keep the best."""

from collections.abc import Iterator
import math
from typing import Any, NoReturn, Protocol

import jax
import numpy as np

from skipnet_jax import errors
from skipnet_jax.runs import folder as folder_lib
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib
from skipnet_jax.training import epoch as epoch_lib
from skipnet_jax.training import nonfinite
from skipnet_jax.training import preemption
from skipnet_jax.training import prepare
from skipnet_jax.training import processes

TrainState = state_lib.TrainState


class Showing(Protocol):
  """Who draws the pictures of an epoch."""

  def has_samples(self, name: str) -> bool:
    """Whether the pictures of this name are there."""

  def draw_samples(self, name: str, state: TrainState, step: int) -> None:
    """Draws them from one copy of the state."""


class Epochs:
  """Trains the epochs that are left of a run.

  Attributes:
    state: as replicated; the latest.
    progress: of the epochs that are done.

  Args:
    prepared: what is trained.
    folder: where to, begun.
    told: when to stop.
    showing: draws samples.
    state: to begin with, as replicated.
    progress: the same.
    part: what is done of the next epoch, if it was cut short.
    kernels: at the beginning of that epoch, as replicated.
  """

  def __init__(
    self,
    prepared: prepare.Prepared,
    folder: folder_lib.Folder,
    told: preemption.Preemption,
    showing: Showing,
    state: TrainState,
    progress: progress_lib.Progress,
    part: epoch_lib.Part | None = None,
    kernels: list[jax.Array] | None = None,
  ):
    self._config, self._training = prepared.config, prepared.training
    self._pipeline, self._parallel = prepared.pipeline, prepared.parallel
    self._prepared, self._folder = prepared, folder
    self._told, self._showing = told, showing
    self.state, self.progress = state, progress
    self._part, self._kernels = part, kernels

  def train(self) -> None:
    """Trains them.

    Raises:
      RunError: a loss that is not finite, a checkpoint that cannot be written.
      Stopped: told so; a checkpoint of all that was trained is written.
    """
    epochs, every = (
      self._config.train.epochs,
      self._config.train.checkpoint_every,
    )
    if self.progress.epoch >= epochs:
      return
    folder, parallel, part = self._folder, self._parallel, self._part
    train_epoch = epoch_lib.Epoch(
      self._config,
      self._training.train_step,
      self._pipeline,
      parallel,
      self._prepared.arrays,
      folder.log,
      lambda state: nonfinite.refuse(self._prepared, state),
      done=part.steps if part else 0,
      stop=self._told.reached,
    )
    copy_kernels, net_change = calls.make_kernel_calls(
      self._training.kernels, parallel
    )
    with self._told.nothing_to_lose():
      train_epoch.compile(self.state)
      # Now, when nothing is lost by a long compilation that is cut off.
      call = calls.make_eval_call(
        self._training.eval_step, self._pipeline, parallel
      )
      batch = next(self._eval_batches())
      evaluate = call.lower(self.state, *batch).compile()
    # Or a run cut off between a checkpoint and its pictures would lack them.
    self._sample(missing=True)
    processes.meet('compiled')
    before = self._kernels
    while self.progress.epoch < epochs:
      before = before or copy_kernels(self.state.params)
      self.state, part = train_epoch(self.state, part)
      if part.stopped:
        self._stop(before, part)
      change = net_change(before, self.state.params)
      record = self._record(part, self._evaluate(evaluate))
      best = record['valid_loss'] < self.progress.best_loss
      self.progress = self.progress.after(record, part.seconds, every)
      folder.record(
        record,
        parallel_lib.to_host(parallel.unreplicate(change)),
        part.sums['flow'] / part.sums['steps'],
      )
      folder.log.say(
        f'epoch {record["epoch"]:4d}  loss {record["train_loss"]:.4f}  '
        f'valid {record["valid_loss"]:.4f}  '
        f'accuracy {record["valid_accuracy"]:.4f}  '
        f'{record["images_per_second"]:.2f} images/s'
        + ('  best' if best else '')
      )
      if best or record['epoch'] % every == 0 or record['epoch'] == epochs:
        state = parallel.unreplicate(self.state)
        folder.checkpoints.save(state, self.progress.to_json(), best=best)
      self._sample()
      part = before = None
    folder.checkpoints.wait()

  def _stop(self, before: list[jax.Array], part: epoch_lib.Part) -> NoReturn:
    """Keeps an epoch that is cut short, and raises Stopped."""
    epoch = self.progress.epoch
    step = epoch * self._pipeline.steps_per_epoch + part.steps
    checkpoints = self._folder.checkpoints
    checkpoints.save(
      self._parallel.unreplicate(self.state),
      self.progress.to_json() | {'step': step, 'cut_short': part.to_json()},
      kernels=self._parallel.unreplicate(before),
    )
    checkpoints.wait()
    raise errors.Stopped(
      f'Stopped {self._told.reason} after epoch {epoch} and {part.steps} '
      'steps: all is kept, and the same command goes on from there.'
    )

  def _eval_batches(self) -> Iterator[Any]:
    shards, valid = self._parallel.num_shards, self._prepared.data.valid
    size = -(-min(self._pipeline.batch_size, len(valid)) // shards)
    for plan in self._pipeline.eval_plans(size * shards):
      raw = self._pipeline.read_host(self._prepared.arrays, plan)
      yield self._parallel.place_batch((raw, plan['seen']))

  def _evaluate(self, evaluate: jax.stages.Compiled) -> dict[str, float]:
    total: dict[str, float] = {}
    for arguments in self._eval_batches():
      metrics = evaluate(self.state, *arguments)
      metrics = parallel_lib.to_host(self._parallel.unreplicate(metrics))
      for name, value in metrics.items():
        total[name] = total.get(name, 0.0) + float(value)
    return step_lib.divide_eval(total, self._training.loss)

  def _record(
    self, part: epoch_lib.Part, valid: dict[str, float]
  ) -> dict[str, Any]:
    """An epoch's line of metrics.jsonl."""
    epoch = self.progress.epoch + 1
    step = epoch * self._pipeline.steps_per_epoch
    updates = step // self._config.optim.accumulate
    trained = step_lib.divide(part.sums)
    record: dict[str, Any] = {'epoch': epoch, 'step': step}
    record |= {f'train_{k}': float(v) for k, v in trained.items()}
    record |= {f'valid_{k}': v for k, v in valid.items()}
    images = len(self._pipeline.train)
    record |= {
      'learning_rate': float(np.asarray(self._training.schedule(updates))),
      'seconds': round(part.seconds, 4),
      'images_per_second': round(images / part.seconds, 4),
    }
    if not math.isfinite(record['valid_loss']):
      raise errors.RunError(
        f'The validation loss of epoch {epoch} is {record["valid_loss"]}: '
        'lower optim.learning_rate, and start anew.'
      )
    return record

  def _sample(self, *, missing: bool = False) -> None:
    """Draws the pictures of this epoch, if it is one of those that have some.

    With `missing`, only where they are not there.
    """
    epoch, every = self.progress.epoch, self._config.log.sample_every
    name = f'epoch_{epoch:04d}'
    if not (every and epoch) or epoch % every:
      return
    if missing and self._showing.has_samples(name):
      return
    self._folder.checkpoints.wait()
    with self._told.nothing_to_lose():
      state = self._parallel.unreplicate(self.state)
      self._showing.draw_samples(name, state, self.progress.step)
