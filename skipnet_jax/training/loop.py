"""`train_and_evaluate`: a run from its config to its summary."""

from collections.abc import Iterator
import math
import os
from typing import Any

import jax
import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.models import layer_table
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import calls
from skipnet_jax.step import optim
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib
from skipnet_jax.step import telemetry
from skipnet_jax.training import epoch as epoch_lib
from skipnet_jax.training import nonfinite
from skipnet_jax.training import preemption
from skipnet_jax.training import processes
from skipnet_jax.training import summary as summary_lib

Config = ml_collections.ConfigDict
# Records in a checkpoint beyond those since the one before.
_SPARE = 10


def train_and_evaluate(
  config: Config,
  workdir: str | os.PathLike,
  told: preemption.Preemption | None = None,
) -> dict[str, Any]:
  """Trains, validates, checkpoints and scores; resumes what is there.

  Args:
    config: a whole config.
    workdir: the run's folder, see the README for what it holds.
    told: when to stop; at SIGTERM by default.

  Returns:
    What summary.json holds.

  Raises:
    InputError: a config, data set or folder that cannot be used; before
      anything is compiled or overwritten.
    RunError: a loss that is not finite, a checkpoint that cannot be written.
    Stopped: told so; a checkpoint of all that was trained is written.
  """
  config_lib.validate(config)
  processes.start(config.parallel)
  with told or preemption.Preemption() as told:
    with told.nothing_to_lose(), processes.breaking_off_together():
      run = Run(config, workdir, told)
    return run.finish()


class Run:
  """A run: everything checked and built, nothing trained.

  Args:
    config: a validated config.
    workdir: the run's folder.
    told: when to stop; never by default.
  """

  def __init__(
    self,
    config: Config,
    workdir: str | os.PathLike,
    told: preemption.Preemption | None = None,
  ):
    self.config = config
    self.told = told or preemption.Preemption()
    self.main_process = jax.process_index() == 0
    with processes.refusing_together():
      self.parallel = parallel = parallel_lib.make_parallel(config.parallel)
      if config.train.deterministic:
        parallel_lib.require_determinism(parallel.devices[0].platform)
      self.data = sources.load(config)
      self.pipeline = pipeline = pipeline_lib.make_pipeline(
        config, self.data, parallel.num_shards
      )
      self.training = training = build_lib.build(
        config,
        pipeline.window,
        pipeline.steps_per_epoch,
        parallel.axis_name,
      )
      self.arrays = pipeline_lib.host_arrays(self.data)
      name, digits = self.data.name, self.data.fingerprint()
      dataset = {'name': name, 'fingerprint': digits}
      self.constant_bce = summary_lib.constant_bce(self.data)
      self.path = workdir_lib.check(workdir, config, dataset)
      self.claim = workdir_lib.claim(self.path) if self.main_process else None

    self.eval_call = calls.make_eval_call(
      training.eval_step, pipeline, parallel
    )
    self.state = parallel.replicate(training.create_state(config.seed))
    self.checkpoints = checkpoint.Checkpoints(self.path)
    # What the latest checkpoint carries beside the arrays.
    self.meta: dict[str, Any] = {'epoch': 0, 'step': 0, 'best_loss': math.inf}
    messages = self._restore()
    if self.main_process:
      workdir_lib.describe(self.path, config, dataset)
      messages += run_log.keep_records(
        self.path / 'metrics.jsonl',
        self.meta['epoch'],
        self.meta.get('records', []),
      )
      self.flow_file = flow_file.FlowFile(
        self.path / 'gradient_flow.npz',
        training.kernels,
        self.meta['epoch'],
        messages.append,
      )
    self.log = run_log.RunLog(
      self.path,
      total_steps=config.train.epochs * pipeline.steps_per_epoch,
      first_step=self.meta['step'],
      tensorboard=config.log.tensorboard,
      progress=config.log.progress,
      active=self.main_process,
    )
    for message in (summary_lib.banner(self), *messages):
      self.log.say(message)

  def _restore(self) -> list[str]:
    """Goes on from the latest checkpoint; what there is to say of it."""
    messages: list[str] = []
    # Of an epoch that was cut short: how far it came, its first kernels.
    self.progress = self.first_kernels = None
    like = self.parallel.unreplicate(self.state)
    found = self.checkpoints.restore_latest(
      like,
      messages.append,
      [telemetry.kernel(like.params, n) for n in self.training.kernels],
    )
    if found is None:
      return messages
    restored, self.meta, kernels = found
    place = self.parallel.replicate if self.parallel.axis_name else lambda x: x
    self.state = place(restored)
    resuming = f'Resuming after epoch {self.meta["epoch"]}'
    if kernels is not None:
      progress = epoch_lib.Progress.from_json(self.meta.pop('cut_short'))
      self.progress, self.first_kernels = progress, place(kernels)
      resuming += f' and {progress.steps} steps'
    return [*messages, f'{resuming}.']

  def finish(self) -> dict[str, Any]:
    """Trains what is left, then writes the summary."""
    try:
      with processes.breaking_off_together():
        if self.meta['epoch'] < self.config.train.epochs:
          self._train()
        with self.told.nothing_to_lose():
          return self._summarise()
    finally:
      self.log.close()
      self.checkpoints.close()
      if self.claim:
        self.claim.close()

  def _train(self) -> None:
    epochs, every = self.config.train.epochs, self.config.train.checkpoint_every
    progress = self.progress
    train_epoch = epoch_lib.Epoch(
      self.config,
      self.training.train_step,
      self.pipeline,
      self.parallel,
      self.arrays,
      self.log,
      lambda state: nonfinite.refuse(self, state),
      done=progress.steps if progress else 0,
      stop=self.told.reached,
    )
    copy_kernels, net_change = calls.make_kernel_calls(
      self.training.kernels, self.parallel
    )
    with self.told.nothing_to_lose():
      train_epoch.compile(self.state)
      self._compile_evaluation()
    # Or a run cut off between a checkpoint and its pictures would lack them.
    self._sample_epoch(missing=True)
    processes.meet('compiled')
    for epoch in range(self.meta['epoch'] + 1, epochs + 1):
      before = self.first_kernels or copy_kernels(self.state.params)
      self.state, progress = train_epoch(self.state, progress)
      if progress.stopped:
        self._stop(before, progress)
      change = net_change(before, self.state.params)
      record = self._record(epoch, progress.sums, progress.seconds)
      best = record['valid_loss'] < self.meta['best_loss']
      self.meta |= {'epoch': epoch, 'step': record['step']}
      self.meta['seconds'] = self.meta.get('seconds', 0.0) + progress.seconds
      # The newest ones, should metrics.jsonl lose its end.
      kept = [*self.meta.get('records', []), record]
      self.meta['records'] = kept[-(every + _SPARE) :]
      if best:
        self.meta |= {
          'best_loss': record['valid_loss'],
          'best_epoch': epoch,
          'best_record': record,
        }
      if self.main_process:
        change = parallel_lib.to_host(self.parallel.unreplicate(change))
        self.flow_file.append(
          change, progress.sums['flow'] / progress.sums['steps']
        )
      self.log.write(record)
      self.log.say(
        f'epoch {epoch:4d}  loss {record["train_loss"]:.4f}  '
        f'valid {record["valid_loss"]:.4f}  '
        f'accuracy {record["valid_accuracy"]:.4f}  '
        f'{record["images_per_second"]:.2f} images/s'
        + ('  best' if best else '')
      )
      if best or epoch % every == 0 or epoch == epochs:
        self.checkpoints.save(
          self.parallel.unreplicate(self.state),
          dict(self.meta),
          best=best,
        )
      self._sample_epoch()
      progress = self.first_kernels = None
    self.checkpoints.wait()

  def _stop(self, before: list[Any], progress: epoch_lib.Progress) -> None:
    """Keeps an epoch that is cut short, and raises Stopped."""
    epoch = self.meta['epoch']
    step = epoch * self.pipeline.steps_per_epoch + progress.steps
    self.checkpoints.save(
      self.parallel.unreplicate(self.state),
      self.meta | {'step': step, 'cut_short': progress.to_json()},
      kernels=self.parallel.unreplicate(before),
    )
    self.checkpoints.wait()
    raise errors.Stopped(
      f'Stopped {self.told.reason} after epoch {epoch} and {progress.steps} '
      'steps: all is kept, and the same command goes on from there.'
    )

  def _compile_evaluation(self) -> None:
    """Now, when nothing is lost by a long compilation that is cut off."""
    arguments = next(self._eval_batches())
    self.eval_call = self.eval_call.lower(self.state, *arguments).compile()

  def _eval_batches(self) -> Iterator[Any]:
    shards = self.parallel.num_shards
    size = -(-min(self.pipeline.batch_size, len(self.data.valid)) // shards)
    for plan in self.pipeline.eval_plans(size * shards):
      raw = self.pipeline.read_host(self.arrays, plan)
      yield self.parallel.place_batch((raw, plan['seen']))

  def _evaluate(self) -> dict[str, float]:
    total: dict[str, float] = {}
    for arguments in self._eval_batches():
      metrics = self.eval_call(self.state, *arguments)
      metrics = parallel_lib.to_host(self.parallel.unreplicate(metrics))
      for name, value in metrics.items():
        total[name] = total.get(name, 0.0) + float(value)
    return step_lib.divide_eval(total, self.training.loss)

  def _record(
    self, epoch: int, sums: dict[str, float], seconds: float
  ) -> dict[str, Any]:
    step = epoch * self.pipeline.steps_per_epoch
    updates = step // self.config.optim.accumulate
    record: dict[str, Any] = {'epoch': epoch, 'step': step}
    record |= {f'train_{k}': float(v) for k, v in step_lib.divide(sums).items()}
    record |= {f'valid_{k}': v for k, v in self._evaluate().items()}
    record |= {
      'learning_rate': float(self.training.schedule(updates)),
      'seconds': round(seconds, 4),
      'images_per_second': round(len(self.pipeline.train) / seconds, 4),
    }
    if not math.isfinite(record['valid_loss']):
      raise errors.RunError(
        f'The validation loss of epoch {epoch} is {record["valid_loss"]}: '
        'lower optim.learning_rate, and start anew.'
      )
    return record

  def _predictor(self, state: state_lib.TrainState) -> inference.Predictor:
    params = optim.eval_params(state.params, state.opt_state)
    variables = {'params': params, 'batch_stats': state.batch_stats}
    return inference.Predictor(
      models.build_model(self.config.model), [parallel_lib.to_host(variables)]
    )

  def _sample_epoch(self, *, missing: bool = False) -> None:
    """Draws the pictures of this epoch, if it is one of those that have some.

    With `missing`, only where they are not there.
    """
    epoch, every = self.meta['epoch'], self.config.log.sample_every
    name = f'epoch_{epoch:04d}'
    if not (every and epoch) or epoch % every:
      return
    folder = self.path / 'samples'
    if missing and summary_lib.has_samples(folder, name, self.data):
      return
    self.checkpoints.wait()
    with self.told.nothing_to_lose():
      state = self.parallel.unreplicate(self.state)
      self._samples(self._predictor(state), name)

  def _samples(self, predictor: inference.Predictor, name: str) -> None:
    if self.main_process:
      summary_lib.write_samples(
        self.path / 'samples',
        name,
        predictor,
        self.data,
        self.config.log.samples,
        self.meta['step'],
        self.log,
      )

  def _summarise(self) -> dict[str, Any]:
    """Scores the best checkpoint on the validation slices."""
    like = self.parallel.unreplicate(self.state)
    state, meta = self.checkpoints.restore_best(like, self.log.say)
    summary = summary_lib.losses(self, meta)
    if not self.main_process:
      return summary
    predictor = self._predictor(state)
    _, scores = run_predictor.score_slices(
      predictor, self.data, self.data.valid, self.log.say
    )
    self._samples(predictor, 'best')
    summary |= summary_lib.scores(self, scores)
    workdir_lib.write_json(self.path / 'summary.json', summary)
    self.log.say(summary_lib.format_summary(summary, self.path))
    return summary


def describe(config: Config) -> str:
  """The layer table of a config's network, and its number of parameters.

  Raises:
    InputError: a config that cannot be used.
  """
  config_lib.validate(config)
  side = config.data.crop or config.data.size or 512
  training = build_lib.build(config, (side, side), 1)
  return layer_table.format_table(training.table, training.parameters)
