"""Trains a config, from its first or latest checkpoint to its summary."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import pathlib
import time
from typing import Any, NoReturn

import jax
import ml_collections

from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import lock
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import telemetry
from skipnet_jax.training import critical as critical_lib
from skipnet_jax.training import epoch as epoch_lib
from skipnet_jax.training import nonfinite
from skipnet_jax.training import preemption
from skipnet_jax.training import prepare
from skipnet_jax.training import processes
from skipnet_jax.training import samples as samples_lib
from skipnet_jax.training import summary as summary_lib
from skipnet_jax.training import validation
from skipnet_jax.training import warm_start


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  stop_signal: preemption.StopSignal | None = None,
) -> dict[str, Any]:
  """Trains, validates, saves checkpoints and scores; resumes an earlier run.

  Its public name is `skipnet_jax.train`.

  Args:
    config: a whole config.
    workdir: the run's folder, see docs/run_files.md.
    stop_signal: says when to stop; by default at SIGTERM.

  Returns:
    The content of summary.json.

  Raises:
    InputError: a config, data set or folder that cannot be used; before
      anything is compiled or overwritten.
    RunError: a loss that is not finite, a checkpoint that cannot be written.
    Stopped: the stop signal came; all finished steps are in a checkpoint.

  Example:
    >>> import pathlib
    >>> import skipnet_jax
    >>> from skipnet_jax import config as config_lib
    >>> file = pathlib.Path('experiments/long_short.py')
    >>> config = config_lib.load_experiment(file, 'smoke')
    >>> config.model.blocks = 'simple'  # Any field may be changed.
    >>> summary = skipnet_jax.train(config, 'runs/smoke')  # doctest: +ELLIPSIS
    long_short: fc_resnet, 19 convolutions, 20,677 parameters, float32
    ...
    >>> 0 <= summary['v_rand'] <= 1
    True
  """
  config_checks.validate(config)
  processes.start(config.parallel)
  with (
    stop_signal or preemption.StopSignal() as stop_signal,
    contextlib.ExitStack() as stack,
    # Inside the stack: closing the folder would wait for the other processes.
    processes.abort_together(),
  ):
    with stop_signal.exit_at_once_on_sigterm():
      run = stack.enter_context(open_run(config, workdir, stop_signal))
    run.train()
    with stop_signal.exit_at_once_on_sigterm():
      summary = run.summarise()
    # The next run of a comparison begins with a collective.
    processes.barrier()
    return summary


@contextlib.contextmanager
def open_run(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  stop_signal: preemption.StopSignal | None = None,
) -> Iterator['Run']:
  """Checks, builds and restores a run; trains nothing.

  The folder is locked inside the context. Arguments and errors are those of
  `train_and_evaluate`; the config must be validated.
  """
  with contextlib.ExitStack() as stack:
    with processes.raise_input_errors_everywhere():
      prepared = prepare.prepare(config)
    start = warm_start.load(config, prepared.training, workdir)
    with processes.raise_input_errors_everywhere():
      path = workdir_lib.check(workdir, config, prepared.data)
      holder = ''
      if jax.process_index() == 0:
        stack.enter_context(lock.claim(path))
        holder = lock.owner(path)
    if jax.process_count() > 1:
      with processes.raise_input_errors_everywhere():
        lock.require_shared(path, processes.from_first(holder))
        identity = {
          'fingerprint of the data': prepared.data.fingerprint(),
          'packages': workdir_lib.packages(),
          'SHA-256 of train.init_from': start and start.record['sha256'],
        }
        processes.require_equal(config, identity)
    stop_signal = stop_signal or preemption.StopSignal()
    yield Run(prepared, path, stack, stop_signal, start)


class Run:
  """A run whose folder is open; made by `open_run`, trained by `train`.

  All processes write the arrays of a checkpoint, and process 0 the other files.

  Attributes:
    prepared: devices, data, network and steps.
    state: the latest state, as replicated.
    progress: number of finished epochs, and the best of them.
  """

  _flow: flow_file.FlowFile

  def __init__(
    self,
    prepared: prepare.Prepared,
    path: pathlib.Path,
    stack: contextlib.ExitStack,
    stop_signal: preemption.StopSignal,
    start: warm_start.Start | None,
  ):
    self.prepared, self._path = prepared, path
    self._stop_signal = stop_signal
    self._identity = config_identity.identity(prepared.config)
    self._data = prepared.data.fingerprint()
    config, training = prepared.config, prepared.training
    self.state = prepared.parallel.replicate(
      start.state(training, config.seed)
      if start
      else training.create_state(config.seed)
    )
    # Of a warm start, also of one before this process.
    self._init_from = start.record if start else None
    self.progress = progress_lib.Progress()
    # The finished steps of an interrupted epoch, and the kernels before it.
    self._part: epoch_lib.Part | None = None
    self._before: jax.Array | None = None
    self._checkpoints = stack.enter_context(
      contextlib.closing(checkpoint.Checkpoints(path))
    )
    messages: list[str] = []
    self._restore(messages.append)
    epoch, records = self.progress.epoch, self.progress.records
    writes = jax.process_index() == 0
    if writes:
      identity = prepared.data.identity()
      workdir_lib.describe(path, config, identity, self._init_from)
      messages.append(
        run_log.keep_records(path / 'metrics.jsonl', epoch, records)
      )
      done = self._part.steps if self._part else 0
      self._flow = flow_file.FlowFile(
        path / 'gradient_flow.npz',
        training.kernels,
        epoch,
        epoch * prepared.pipeline.steps_per_epoch + done,
        messages.append,
      )
    self._log = run_log.RunLog(
      path,
      total_steps=config.train.epochs * prepared.pipeline.steps_per_epoch,
      first_step=self.progress.step,
      tensorboard=config.log.tensorboard,
      progress=config.log.progress,
      active=writes,
    )
    stack.callback(self._log.close)
    self._samples = samples_lib.Samples(prepared, path / 'samples', self._log)
    self._lacking = prepared.data.lacking()
    self._log.print(summary_lib.banner(prepared, path, self._init_from))
    for message in filter(None, messages):
      self._log.print(message)

  def _restore(self, log: Callable[[str], None]) -> None:
    """Restores the latest checkpoint, if there is one."""
    parallel = self.prepared.parallel
    self._like = like = parallel.unreplicate(self.state)
    kernels = self._kernels()
    vector = telemetry.vector(like.params)
    like_kernels = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=vector.sharding)
      for x in jax.eval_shape(kernels.split, vector)
    ]
    restored = self._checkpoints.restore_latest(like, log, like_kernels)
    if restored is None:
      workdir_lib.check_new(self._path)
      return
    place = parallel.replicate if parallel.axis_name else lambda x: x
    state, meta, before = restored
    now = self._identity
    # One of an earlier version has no config, or not all of its fields.
    saved = {k: v for k, v in meta.get('config', now).items() if k in now}
    changed = config_identity.differences(saved, {k: now[k] for k in saved})
    if meta.get('data', self._data) != self._data:
      changed = [*changed, f'data ({meta["data"]}, now {self._data})']
    if changed:
      raise errors.InputError(
        f'{self._path / "checkpoints"} has the checkpoints of another run: '
        f'{", ".join(changed)}. Put back those of this run, or choose another '
        '--workdir.'
      )
    self.state = place(state)
    self.progress = progress_lib.Progress.from_json(meta)
    self._init_from = meta.get('init_from')
    resuming = f'Resuming after epoch {self.progress.epoch}'
    if before is not None:
      join = jax.jit(kernels.join, static_argnums=1)
      self._part = epoch_lib.Part.from_json(meta['cut_short'])
      self._before = place(join(before, vector.size))
      resuming += f' and {self._part.steps} steps'
    log(f'{resuming}.')

  def train(self) -> None:
    """Trains the epochs that are left.

    Raises:
      RunError: a loss that is not finite, a checkpoint that cannot be written.
      Stopped: the stop signal came; all finished steps are in a checkpoint.
    """
    prepared, log = self.prepared, self._log
    training, parallel = prepared.training, prepared.parallel
    begin, before_it = time.perf_counter(), self.progress.wall_seconds
    epochs = prepared.config.train.epochs
    every = prepared.config.train.checkpoint_every
    if self.progress.epoch >= epochs:
      return

    def wall() -> float | None:
      spent = time.perf_counter() - begin
      return None if before_it is None else before_it + spent

    part, before = self._part, self._before
    train_epoch = epoch_lib.Epoch(
      prepared.config,
      training.train_step,
      prepared.pipeline,
      parallel,
      prepared.arrays,
      log=log.print,
      advance=log.advance,
      on_nonfinite=lambda state: nonfinite.fail(prepared, state),
      on_flow=self._flow.add_steps if log.active else lambda flow: None,
      estimate_step=training.estimate_step,
      done=part.steps if part else 0,
      should_stop=self._stop_signal.should_stop,
    )
    copy_kernels, net_change = calls.make_kernel_calls(
      training.kernels, parallel
    )
    with self._stop_signal.exit_at_once_on_sigterm():
      train_epoch.compile(self.state)
      # Compiled before the first epoch, while nothing can be lost.
      validate = validation.Validation(prepared, self.state)
      critical = self._critical_sharpness()
    # A run that ended between a checkpoint and its samples lacks them.
    self._draw_samples()
    processes.barrier()
    log.start_clock()
    while self.progress.epoch < epochs:
      if before is None:
        before = copy_kernels(self.state.params)
      self.state, part = train_epoch(self.state, part)
      if part.stopped:
        self.progress = dataclasses.replace(self.progress, wall_seconds=wall())
        self._stop(before, part)
      change = parallel.unreplicate(net_change(before, self.state.params))
      record = validation.make_record(
        prepared, self.progress.epoch + 1, part, validate(self.state)
      )
      if critical is not None:
        record |= critical(parallel.unreplicate(self.state))
      best = record['valid_loss'] < self.progress.best_loss
      self.progress = self.progress.after(record, part.seconds, every, wall())
      if log.active:
        flow = part.sums['flow'] / part.sums['steps']
        self._flow.append(parallel_lib.to_host(change), flow)
      log.write(record)
      log.print(
        f'epoch {record["epoch"]:4d}  loss {record["train_loss"]:.4f}  '
        f'valid {record["valid_loss"]:.4f}  '
        f'accuracy {record["valid_accuracy"]:.4f}  '
        f'{record["images_per_second"]:.2f} images/s'
        + ('  best' if best else '')
      )
      # Chunks that were not read before, or are gone since.
      lacking = prepared.data.lacking()
      if lacking != self._lacking:
        log.print(lacking)
        self._lacking = lacking
      if best or record['epoch'] % every == 0 or record['epoch'] == epochs:
        state = parallel.unreplicate(self.state)
        self._checkpoints.save(state, self._meta(), best=best)
      self._draw_samples()
      part = before = None
    self._checkpoints.wait()

  def _critical_sharpness(self) -> critical_lib.CriticalSharpness | None:
    """Measures the record's critical sharpness, where one is written."""
    prepared = self.prepared
    if not (prepared.config.log.critical_sharpness and self._log.active):
      return None
    state = prepared.parallel.unreplicate(self.state)
    return critical_lib.CriticalSharpness(prepared, state)

  def _meta(self) -> dict[str, Any]:
    meta = self.progress.to_json()
    meta |= {'config': self._identity, 'data': self._data}
    return meta | ({'init_from': self._init_from} if self._init_from else {})

  def _kernels(self) -> telemetry.Kernels:
    names = self.prepared.training.kernels
    return telemetry.Kernels(names, self.state.params.layout)

  def _stop(self, before: jax.Array, part: epoch_lib.Part) -> NoReturn:
    """Saves an interrupted epoch, and raises Stopped."""
    epoch, unreplicate = self.progress.epoch, self.prepared.parallel.unreplicate
    if self._log.active:
      self._flow.write()
    step = epoch * self.prepared.pipeline.steps_per_epoch + part.steps
    self._checkpoints.save(
      unreplicate(self.state),
      self._meta() | {'step': step, 'cut_short': part.to_json()},
      kernels=jax.jit(self._kernels().split)(unreplicate(before)),
    )
    self._checkpoints.wait()
    raise errors.Stopped(
      f'Stopped {self._stop_signal.reason} after epoch {epoch} and '
      f'{part.steps} steps. Everything is saved; run the same command again to '
      'resume.'
    )

  def _draw_samples(self) -> None:
    """Draws missing samples, if log.sample_every selects the epoch."""
    epoch = self.progress.epoch
    every = self.prepared.config.log.sample_every
    name = f'epoch_{epoch:04d}'
    if not (every and epoch) or epoch % every or self._samples.exist(name):
      return
    self._checkpoints.wait()
    with self._stop_signal.exit_at_once_on_sigterm():
      state = self.prepared.parallel.unreplicate(self.state)
      self._samples.draw(name, state, self.progress.step)

  def summarise(self) -> dict[str, Any]:
    """Scores the best checkpoint on the validation slices.

    Returns:
      The content of summary.json, which it writes. A process that writes no
      files computes no scores, and returns the rest.
    """
    log = self._log
    state, meta = self._checkpoints.restore_best(self._like, log.print)
    best = progress_lib.Progress.from_json(meta)
    scores = self._samples.score(state) if log.active else None
    self._samples.draw('best', state, self.progress.step)
    summary = summary_lib.content(
      self.prepared, self._path, self.progress, best, scores, self._init_from
    )
    if log.active:
      files.write_json(self._path / 'summary.json', summary)
      log.print(summary_lib.format_summary(summary, self._path))
    return summary
