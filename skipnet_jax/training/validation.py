"""Validates a network after each epoch, and makes the epoch's record."""

from collections.abc import Iterator
import math
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.step import calls
from skipnet_jax.step import metrics as metrics_lib
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step.state import TrainState
from skipnet_jax.training import epoch as epoch_lib
from skipnet_jax.training import prepare


class Validation:
  """Evaluates the validation slices; compiles when it is made.

  Args:
    prepared: devices, data, network and steps.
    state: a state as replicated, for its shapes.
  """

  def __init__(self, prepared: prepare.Prepared, state: TrainState):
    self._prepared = prepared
    call = calls.make_eval_call(
      prepared.training.eval_step, prepared.pipeline, prepared.parallel
    )
    self._call = call.lower(state, *next(self._batches())).compile()

  def _batches(self) -> Iterator[Any]:
    pipeline, parallel = self._prepared.pipeline, self._prepared.parallel
    shards = len(parallel.devices)
    size = -(-min(pipeline.batch_size, len(pipeline.valid)) // shards) * shards
    for plan in pipeline.eval_plans(size):
      raw = pipeline.read_host(self._prepared.arrays, plan)
      yield parallel.place_batch((raw, plan['seen']))

  def __call__(self, state: TrainState) -> dict[str, float]:
    """Metrics of a replicated state, see `metrics.divide_eval`."""
    total: dict[str, float] = {}
    for arguments in self._batches():
      metrics = self._prepared.parallel.unreplicate(
        self._call(state, *arguments)
      )
      for name, value in parallel_lib.to_host(metrics).items():
        total[name] = total.get(name, 0.0) + float(value)
    return metrics_lib.divide_eval(total, self._prepared.training.loss)


def make_record(
  prepared: prepare.Prepared,
  epoch: int,
  part: epoch_lib.Part,
  valid: dict[str, float],
) -> dict[str, Any]:
  """The line of metrics.jsonl of a finished epoch, which counts from 1.

  Args:
    prepared: devices, data, network and steps.
    epoch: its number.
    part: the sums of its steps.
    valid: from `Validation`.

  Raises:
    RunError: a validation loss that is not finite.
  """
  pipeline = prepared.pipeline
  per_epoch = pipeline.steps_per_epoch
  images, step = per_epoch * pipeline.batch_size, epoch * per_epoch
  rate = prepared.training.schedule(step // prepared.config.optim.accumulate)
  trained = metrics_lib.divide(part.sums)
  if not math.isfinite(valid['loss']):
    raise errors.RunError(
      f'The validation loss of epoch {epoch} is {valid["loss"]}: '
      'lower optim.learning_rate, and start again in another --workdir.'
    )
  return {
    'epoch': epoch,
    'step': step,
    **{f'train_{name}': float(value) for name, value in trained.items()},
    **{f'valid_{name}': value for name, value in valid.items()},
    'learning_rate': float(np.asarray(rate)),
    'seconds': round(part.seconds, 4),
    'images_per_second': round(images / part.seconds, 4),
  }
