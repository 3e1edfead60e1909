"""One epoch: the compiled call, fed from the device or from the host."""

from collections.abc import Callable
import dataclasses
import itertools
import math
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.runs import run_log
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib

TrainState = state_lib.TrainState


@dataclasses.dataclass
class Part:
  """How much of an epoch is done.

  Attributes:
    steps: done so far.
    sums: of these steps' metrics, numpy float64.
    seconds: they took, without compiling.
    stopped: whether the run was told to stop.
  """

  steps: int = 0
  sums: dict[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  stopped: bool = False

  def to_json(self) -> dict[str, Any]:
    """JSON values that `from_json` reads back exactly."""
    sums = {name: np.asarray(v).tolist() for name, v in self.sums.items()}
    return {'steps': self.steps, 'sums': sums, 'seconds': self.seconds}

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'Part':
    """What `to_json` gave."""
    sums = {name: np.float64(v) for name, v in value['sums'].items()}
    return cls(value['steps'], sums, value['seconds'])


class Epoch:
  """Trains an epoch whenever called; `compile` before, or the first call does.

  Attributes:
    on_device: whether the data set lies on the devices.
    steps: steps in one compiled call.

  Args:
    config: a whole config.
    step: from `build.Training`.
    pipeline: makes the batches.
    parallel: where to run.
    arrays: the data set on the host, from `pipeline.host_arrays`.
    log: told of progress.
    refused: called with the state when a step was not finite; it raises.
    done: steps of the epoch that were done before, if it was cut short.
    stop: asked after each call whether to stop there.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    step: step_lib.Step,
    pipeline: pipeline_lib.Pipeline,
    parallel: parallel_lib.Parallel,
    arrays: pipeline_lib.Arrays,
    log: run_log.Log,
    refused: Callable[[TrainState], None],
    *,
    done: int = 0,
    stop: Callable[[], bool] = lambda: False,
  ):
    self._seed, self._log, self._refused = config.seed, log, refused
    self._pipeline, self._parallel = pipeline, parallel
    self._arrays, self._stop = arrays, stop
    self._compiled: Any = None
    device, per_epoch = parallel.devices[0], pipeline.steps_per_epoch
    self.on_device = _fits(arrays, device, config.data.device_share)
    if self.on_device:
      # On a CPU, XLA runs convolutions inside a scan many times slower.
      wanted = config.train.steps_per_call or (
        1 if device.platform == 'cpu' else per_epoch
      )
      # Calls of one length, so that only one is compiled.
      whole = math.gcd(per_epoch, done)
      self.steps = max(
        k for k in range(1, min(wanted, whole) + 1) if whole % k == 0
      )
      self._call = calls.make_train_call(step, pipeline, parallel, self.steps)
      self._data = parallel.replicate(arrays)
    else:
      self.steps = 1
      self._call = calls.make_host_train_call(step, pipeline, parallel)
      log.say(
        'The data set stays on the host, memory-mapped: it exceeds '
        f'data.device_share={config.data.device_share} of the device.'
      )

  def program(
    self, state: TrainState
  ) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """The call that `steps` steps are, and its arguments: for who compiles it.

    What was compiled is handed to `use`.
    """
    if self.on_device:
      return self._call, (state, self._data)
    return self._call, (state, self._read(self._step(state)))

  def use(self, compiled: Any) -> None:
    """Trains by a compiled `program`, which is then not compiled again."""
    self._compiled = compiled

  def compile(self, state: TrainState) -> None:
    """Compiles the call and says how long that took."""
    call, arguments = self.program(state)
    begin = time.perf_counter()
    self._compiled = call.lower(*arguments).compile()
    self._log.say(
      f'Compiled the training step in {time.perf_counter() - begin:.1f} s.'
    )

  def __call__(
    self, state: TrainState, before: Part | None = None
  ) -> tuple[TrainState, Part]:
    """Trains an epoch, or what is left of one.

    Args:
      state: as replicated; its buffers are reused.
      before: what was done of it.

    Returns:
      The new state, and what is done now.
    """
    before = before or Part()
    left = range(before.steps, self._pipeline.steps_per_epoch, self.steps)
    if not left:
      return state, before
    if self._compiled is None:
      self.compile(state)
    feed = self._feed(state)
    arguments = iter(feed) if feed else itertools.repeat(self._data)
    try:
      argument = next(arguments)
      sums = _Sums(self._log, self.steps, self._pipeline.batch_size, before)
      pending = []
      for step in left:
        argument = argument if step == left[0] else next(arguments)
        state, metrics = self._compiled(state, argument)
        pending.append(self._parallel.unreplicate(metrics))
        # One call stays under way while the one before is read. Not from the
        # host: after a refused step, its next batch would be the wrong one.
        if len(pending) > self.on_device:
          sums.add(pending.pop(0))
        if not sums.finite:
          self._refused(state)
        stopped = self._stop()
        if stopped:
          break
      for metrics in pending:
        sums.add(metrics)
      if not sums.finite:
        self._refused(state)
    finally:
      if feed:
        feed.close()
    return state, dataclasses.replace(sums.part(), stopped=stopped)

  def _feed(self, state: TrainState) -> pipeline_lib.HostFeed | None:
    if self.on_device:
      return None
    return pipeline_lib.HostFeed(self._read, self._step(state))

  def _step(self, state: TrainState) -> int:
    step = self._parallel.unreplicate(state.step)
    return int(parallel_lib.to_host(step))

  def _read(self, step: int) -> Any:
    plan = jax.jit(self._pipeline.plan)(jax.random.key(self._seed), step)
    raw = self._pipeline.read_host(self._arrays, plan)
    keys = np.asarray(jax.random.key_data(plan['key']))
    return self._parallel.place_batch((raw, keys))


class _Sums:
  """Adds up the metrics of calls and moves the progress bar."""

  def __init__(
    self, log: run_log.Log, steps: int, batch_size: int, before: Part
  ):
    self._total, self._before = dict(before.sums), before
    self._begin = time.perf_counter()
    self._log, self._steps, self._batch_size = log, steps, batch_size
    self._calls = 0

  @property
  def finite(self) -> bool:
    """Whether no step was refused so far."""
    return not self._total.get('nonfinite')

  def add(self, metrics: Any) -> None:
    """Waits for the metrics of a call and adds them."""
    metrics = parallel_lib.to_host(metrics)
    for name, value in metrics.items():
      self._total[name] = self._total.get(name, 0.0) + value.astype(np.float64)
    self._calls += 1
    images = self._calls * self._steps * self._batch_size
    self._log.advance(
      self._steps,
      float(metrics['loss'] / metrics['steps']),
      images / (time.perf_counter() - self._begin),
    )

  def part(self) -> Part:
    """All that was added, and what was done before."""
    return Part(
      self._before.steps + self._calls * self._steps,
      self._total,
      self._before.seconds + time.perf_counter() - self._begin,
    )


def _fits(arrays: pipeline_lib.Arrays, device: Any, share: float) -> bool:
  """Whether the data set takes at most `share` of the device's memory."""
  stats = device.memory_stats() if device.platform != 'cpu' else None
  limit = (stats or {}).get('bytes_limit') or (
    os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  )
  return sum(a.nbytes for a in arrays.values()) <= share * limit
