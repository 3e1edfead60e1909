"""`train_and_evaluate`: a run from its config to its summary."""

from collections.abc import Iterator
import math
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax import streams
from skipnet_jax.analysis import layers as layers_lib
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.evaluation import inference
from skipnet_jax.evaluation import scores
from skipnet_jax.training import calls
from skipnet_jax.training import checkpoint
from skipnet_jax.training import logging
from skipnet_jax.training import losses
from skipnet_jax.training import optim
from skipnet_jax.training import parallel as parallel_lib
from skipnet_jax.training import state as state_lib
from skipnet_jax.training import step as step_lib
from skipnet_jax.training import telemetry
from skipnet_jax.training import workdir as workdir_lib

Config = ml_collections.ConfigDict


def train_and_evaluate(
  config: Config, workdir: str | os.PathLike
) -> dict[str, Any]:
  """Trains, validates, checkpoints and scores; resumes what is there.

  Args:
    config: a whole config.
    workdir: the run's folder, see the README for what it holds.

  Returns:
    What summary.json holds.

  Raises:
    InputError: a config, data set or folder that cannot be used; before
      anything is compiled or overwritten.
    RunError: a loss that is not finite, a checkpoint that cannot be written.
  """
  config_lib.validate(config)
  parallel_lib.start_processes(config.parallel)
  return Run(config, workdir).finish()


class Run:
  """A run: everything checked and built, nothing trained.

  Args:
    config: a validated config.
    workdir: the run's folder.
  """

  def __init__(self, config: Config, workdir: str | os.PathLike):
    self.config = config
    self.parallel = parallel = parallel_lib.make_parallel(config.parallel)
    self.model = models.build_model(config.model, parallel.axis_name)
    self.data = sources.load(config)
    self.pipeline = pipeline = pipeline_lib.make_pipeline(
      config, self.data, parallel.num_shards
    )
    self.model.check_size(pipeline.window)
    self.arrays = pipeline_lib.host_arrays(self.data)
    dataset = {
      'name': self.data.name, 'fingerprint': self.data.fingerprint()
    }
    self.main_process = jax.process_index() == 0
    self.path = workdir_lib.check(workdir, config, dataset)

    self.schedule = optim.make_schedule(
      config.optim, pipeline.steps_per_epoch, config.train.epochs
    )
    optimizer = optim.make_optimizer(config.optim, self.schedule)
    self.loss = losses.LOSSES[config.train.loss]
    self.table = layers_lib.layer_table(self.model, (1, *pipeline.window, 1))
    self.kernels = [row.name for row in self.table if row.flops]
    self.train_step = step_lib.make_train_step(
      self.model, optimizer, self.loss, l2=config.optim.l2,
      record=self.kernels, axis_name=parallel.axis_name,
    )
    eval_step = step_lib.make_eval_step(
      self.model, self.loss, l2=config.optim.l2, axis_name=parallel.axis_name
    )
    self.eval_call = calls.make_eval_call(eval_step, pipeline, parallel)
    self.state = parallel.replicate(
      state_lib.create_state(self.model, optimizer, config.seed)
    )
    self.parameters = state_lib.parameter_count(
      parallel.unreplicate(self.state.params)
    )
    self.checkpoints = checkpoint.Checkpoints(self.path)
    # What the latest checkpoint carries beside the arrays.
    self.meta: dict[str, Any] = {'epoch': 0, 'step': 0, 'best_loss': math.inf}
    messages: list[str] = []
    restored = self.checkpoints.restore_latest(
      parallel.unreplicate(self.state), messages.append
    )
    if restored is not None:
      state, self.meta = restored
      self.state = (
        parallel.replicate(state) if parallel.axis_name else state
      )
      messages.append(f'Resuming after epoch {self.meta["epoch"]}.')
    if self.main_process:
      workdir_lib.describe(self.path, config, dataset)
      logging.keep_records(self.path / 'metrics.jsonl', self.meta['epoch'])
      self.flow_file = telemetry.FlowFile(
        self.path / 'gradient_flow.npz', self.kernels, self.meta['epoch']
      )
    self.log = logging.RunLog(
      self.path,
      total_steps=config.train.epochs * pipeline.steps_per_epoch,
      first_step=self.meta['step'],
      tensorboard=config.log.tensorboard,
      progress=config.log.progress,
      active=self.main_process,
    )
    self.log.say(self.banner())
    for message in messages:
      self.log.say(message)

  def banner(self) -> str:
    """What a person wants to know before the first step."""
    c, p, pipe = self.config, self.parallel, self.pipeline
    # A backward pass does twice the work of a forward pass.
    flops = 3 * pipe.batch_size * sum(row.flops for row in self.table)
    inside = float(np.mean([self.data.label[i].mean() for i in pipe.valid]))
    self.constant_bce = _entropy(inside)
    lines = [
      f'{c.experiment or c.model.name}: {c.model.name}, '
      f'{len(self.kernels)} convolutions, '
      f'{self.parameters:,} parameters, {c.model.dtype}',
      f'data:    {self.data.name}, {len(pipe.train)} slices to train, '
      f'{len(pipe.valid)} to validate, examples '
      f'{pipe.window[0]}x{pipe.window[1]}',
      f'devices: {len(p.devices)} x {p.devices[0].device_kind}, mode {p.mode}'
      + (f', {jax.process_count()} processes' if p.mode == 'sharded' else ''),
      f'step:    batch {pipe.batch_size}, {c.train.loss}, {c.optim.name}, '
      f'about {flops / 1e9:,.3g} GFLOPs; {pipe.steps_per_epoch} steps an '
      f'epoch, {c.train.epochs} epochs',
      f'workdir: {self.path} (config {config_lib.hash_of(c)})',
      f'To beat: validation BCE {self.constant_bce:.4f} of a constant '
      'prediction',
    ]
    if self.data.warning:
      lines.append(self.data.warning)
    return '\n'.join(lines)

  def finish(self) -> dict[str, Any]:
    """Trains what is left, then writes the summary."""
    try:
      self._train()
      return self._summarise()
    finally:
      self.log.close()
      self.checkpoints.close()

  def _train(self) -> None:
    epochs, every = self.config.train.epochs, self.config.train.checkpoint_every
    epoch = self.meta['epoch']
    if epoch >= epochs:
      return
    call_epoch = self._make_epoch()
    copy_kernels = self.parallel.compile(
      lambda params: telemetry.kernels(self.kernels, params)
    )
    net_change = self.parallel.compile(
      lambda before, params: telemetry.net_change(self.kernels, before, params)
    )
    while epoch < epochs:
      before = copy_kernels(self.state.params)
      begin, self.compile_seconds = time.perf_counter(), 0.0
      sums = call_epoch()
      seconds = time.perf_counter() - begin - self.compile_seconds
      epoch += 1
      record = self._record(epoch, sums, seconds)
      best = record['valid_loss'] < self.meta['best_loss']
      self.meta |= {'epoch': epoch, 'step': record['step']}
      self.meta['seconds'] = self.meta.get('seconds', 0.0) + seconds
      if best:
        self.meta |= {
          'best_loss': record['valid_loss'],
          'best_epoch': epoch,
          'best_record': record,
        }
      change = net_change(before, self.state.params)
      if self.main_process:
        change = parallel_lib.to_host(self.parallel.unreplicate(change))
        self.flow_file.append(change, sums['flow'] / sums['steps'])
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
          self.parallel.unreplicate(self.state), dict(self.meta), best=best
        )
      if self.config.log.sample_every and (
        epoch % self.config.log.sample_every == 0
      ):
        self._samples(self._predictor(self.state), f'epoch_{epoch:04d}')
    self.checkpoints.wait()

  def _make_epoch(self):
    """A function that trains one epoch and returns its metrics' sums."""
    pipe, parallel = self.pipeline, self.parallel
    per_epoch = pipe.steps_per_epoch
    on_device = self._fits_on_device()
    if on_device:
      wanted = self.config.train.steps_per_call or (
        1 if parallel.devices[0].platform == 'cpu' else per_epoch
      )
      # Calls of one length, so that only one is compiled.
      steps = max(
        k for k in range(1, min(wanted, per_epoch) + 1) if per_epoch % k == 0
      )
      call = calls.make_train_call(self.train_step, pipe, parallel, steps)
      data = parallel.replicate(self.arrays)
    else:
      steps = 1
      call = calls.make_host_train_call(self.train_step, pipe, parallel)
      self.log.say(
        'The data set stays on the host, memory-mapped: it exceeds '
        f'data.device_share={self.config.data.device_share} of the device.'
      )

    compiled: list[Any] = []

    def run(argument: Any) -> Any:
      if not compiled:
        begin = time.perf_counter()
        compiled.append(call.lower(self.state, argument).compile())
        self.compile_seconds = time.perf_counter() - begin
        self.log.say(
          f'Compiled the training step in {self.compile_seconds:.1f} s.'
        )
      return compiled[0](self.state, argument)

    def train_epoch() -> dict[str, Any]:
      total: dict[str, Any] = {}
      pending: list[Any] = []
      feed = None
      begin, done = time.perf_counter(), 0

      def settle() -> None:
        nonlocal done
        metrics = parallel_lib.to_host(pending.pop(0))
        if metrics['nonfinite']:
          self._diagnose()
        for name, value in metrics.items():
          total[name] = total.get(name, 0.0) + value.astype(np.float64)
        done += steps
        rate = done * pipe.batch_size / (time.perf_counter() - begin)
        self.log.advance(steps, metrics['loss'] / metrics['steps'], rate)

      if not on_device:
        feed = pipeline_lib.HostFeed(self._read_step, self._step())
        source: Iterator[Any] = iter(feed)
      try:
        for _ in range(per_epoch // steps):
          argument = data if on_device else next(source)
          self.state, metrics = run(argument)
          # One call stays under way while the one before is read.
          pending.append(parallel.unreplicate(metrics))
          if len(pending) > 1:
            settle()
        settle()
      finally:
        if feed is not None:
          feed.close()
      return total

    return train_epoch

  def _step(self) -> int:
    return int(parallel_lib.to_host(self.parallel.unreplicate(self.state.step)))

  def _fits_on_device(self) -> bool:
    device = self.parallel.devices[0]
    stats = device.memory_stats() if device.platform != 'cpu' else None
    limit = (stats or {}).get('bytes_limit') or (
      os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    )
    size = sum(a.nbytes for a in self.arrays.values())
    return size <= self.config.data.device_share * limit

  def _read_step(self, step: int) -> Any:
    plan = jax.jit(self.pipeline.plan)(jax.random.key(self.config.seed), step)
    raw = pipeline_lib.read_host(self.arrays, plan, self.pipeline.window)
    keys = jax.random.key_data(plan['key'])
    return self.parallel.place_batch((raw, np.asarray(keys)))

  def _evaluate(self) -> dict[str, float]:
    shards = self.parallel.num_shards
    size = -(-min(self.pipeline.batch_size, len(self.data.valid)) // shards)
    total: dict[str, float] = {}
    for plan in self.pipeline.eval_plans(size * shards):
      raw = pipeline_lib.read_host(self.arrays, plan, self.pipeline.window)
      metrics = self.eval_call(
        self.state, *self.parallel.place_batch((raw, plan['seen']))
      )
      metrics = parallel_lib.to_host(self.parallel.unreplicate(metrics))
      for name, value in metrics.items():
        total[name] = total.get(name, 0.0) + float(value)
    return step_lib.divide_eval(total, self.loss)

  def _record(
    self, epoch: int, sums: dict[str, float], seconds: float
  ) -> dict[str, Any]:
    step = epoch * self.pipeline.steps_per_epoch
    updates = step // self.config.optim.accumulate
    record = {'epoch': epoch, 'step': step}
    record |= {
      f'train_{k}': float(v) for k, v in step_lib.divide(sums).items()
    }
    record |= {f'valid_{k}': v for k, v in self._evaluate().items()}
    record |= {
      'learning_rate': float(self.schedule(updates)),
      'seconds': round(seconds, 4),
      'images_per_second': round(len(self.pipeline.train) / seconds, 4),
    }
    if not math.isfinite(record['valid_loss']):
      raise errors.RunError(
        f'The validation loss of epoch {epoch} is {record["valid_loss"]}: '
        'lower optim.learning_rate, and start anew.'
      )
    return record

  def _diagnose(self) -> None:
    """Raises RunError that names the step and the layer of a bad loss."""
    state = parallel_lib.to_host(self.parallel.unreplicate(
      self.state.replace(key=jax.random.key_data(self.state.key))
    ))
    step = int(state.step)
    key = jax.random.key(self.config.seed)
    plan = self.pipeline.plan(key, step)
    raw = pipeline_lib.read_host(self.arrays, plan, self.pipeline.window)
    batch = self.pipeline.train_batch(raw, plan['key'])
    layer = layers_lib.first_nonfinite(
      models.build_model(self.config.model),
      {'params': state.params, 'batch_stats': state.batch_stats},
      batch['image'],
      {'dropout': streams.key_at(key, 'dropout', step)},
    )
    where = (
      f'the first layer whose output is not finite is {layer}'
      if layer
      else 'every layer\'s output is finite, its gradient is not'
    )
    raise errors.RunError(
      f'The loss or its gradient is not finite at step {step}: {where}. Lower '
      'optim.learning_rate; the checkpoints before it are kept.'
    )

  def _predictor(self, state: state_lib.TrainState) -> inference.Predictor:
    state = self.parallel.unreplicate(state)
    params = optim.eval_params(state.params, state.opt_state)
    variables = {'params': params, 'batch_stats': state.batch_stats}
    return inference.Predictor(
      models.build_model(self.config.model), [parallel_lib.to_host(variables)]
    )

  def _samples(self, predictor: inference.Predictor, name: str) -> None:
    """Image, label and prediction of some validation slices, side by side."""
    if not self.main_process:
      return
    folder = self.path / 'samples'
    folder.mkdir(exist_ok=True)
    tiling = predictor.tiling(self.pipeline.size, say=self.log.say)
    for z in self.data.valid[: self.config.log.samples]:
      mean, _ = predictor(self.data.image[z], tiling)
      picture = side_by_side(self.data.image[z], self.data.label[z], mean)
      volume.write_png(folder / f'{name}_slice_{z:03d}.png', picture)
      self.log.picture(f'slice_{z:03d}', picture, self.meta['step'])

  def _summarise(self) -> dict[str, Any]:
    """Scores the best checkpoint on the validation slices."""
    like = self.parallel.unreplicate(self.state)
    state, meta = self.checkpoints.restore_best(like)
    record = meta['best_record']
    summary: dict[str, Any] = {
      'experiment': self.config.experiment or self.config.model.name,
      'dataset': self.data.name,
      'parameters': self.parameters,
      'epochs': self.meta['epoch'],
      'best_epoch': meta['best_epoch'],
      'best_val_loss': record['valid_loss'],
      'best_val_loss_with_l2': record['valid_loss_with_l2'],
      'best_val_bce': record['valid_bce'],
      'constant_val_bce': self.constant_bce,
      'train_loss_at_best': record['train_loss'],
      'train_loss_with_l2_at_best': record['train_loss_with_l2'],
    }
    if self.parallel.axis_name:
      state = self.parallel.replicate(state)
    predictor = self._predictor(state)
    if self.main_process:
      tiling = predictor.tiling(self.pipeline.size, say=self.log.say)
      valid = list(self.data.valid)
      predictions = np.stack(
        [predictor(self.data.image[z], tiling)[0] for z in valid]
      )
      result = scores.score_stack(predictions, self.data.label[valid])
      summary |= {k: result[k] for k in ('v_rand', 'v_info')}
      self._samples(predictor, 'best')
      rates = logging.read_records(self.path / 'metrics.jsonl')
      rate = float(np.median([r['images_per_second'] for r in rates]))
      summary |= {
        'seconds': round(self.meta['seconds'], 3),
        'images_per_second': rate,
      }
      if self.data.warning:
        summary['warning'] = self.data.warning
      workdir_lib.write_json(self.path / 'summary.json', summary)
      self.log.say(_format_summary(summary, self.path))
    return summary


def side_by_side(
  image: np.ndarray, label: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
  """Image, label and prediction, each `[y, x]`, as one `[y, 3x+8]` uint8."""
  low, high = np.percentile(image, (0.5, 99.5))
  grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
  gap = np.full((image.shape[0], 4), 1.0)
  row = np.hstack([grey, gap, label.astype(float), gap, prediction])
  return np.round(255 * row).astype(np.uint8)


def _entropy(p: float) -> float:
  """BCE of predicting the share p everywhere, in nats."""
  return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def _format_summary(summary: dict[str, Any], path: pathlib.Path) -> str:
  lines = [
    '',
    f'{summary["experiment"]} on {summary["dataset"]}: '
    f'{summary["epochs"]} epochs, best after {summary["best_epoch"]}',
    f'validation loss {summary["best_val_loss"]:.4f} (with L2 '
    f'{summary["best_val_loss_with_l2"]:.4f}), BCE '
    f'{summary["best_val_bce"]:.4f}, constant prediction '
    f'{summary["constant_val_bce"]:.4f}',
    f'V_rand {summary["v_rand"]:.4f}  V_info {summary["v_info"]:.4f}',
    f'results: {path}/summary.json, metrics.jsonl, samples/',
  ]
  if 'warning' in summary:
    lines.append(summary['warning'])
  return '\n'.join(lines)


def describe(config: Config) -> str:
  """The layer table of a config's network, and its number of parameters.

  Raises:
    InputError: a config that cannot be used.
  """
  config_lib.validate(config)
  side = config.data.crop or config.data.size or 512
  model = models.build_model(config.model)
  model.check_size((side, side))
  table = layers_lib.layer_table(model, (1, side, side, 1))
  return layers_lib.format_table(table)
