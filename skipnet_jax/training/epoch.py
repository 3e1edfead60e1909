"""One epoch: the compiled training call, fed from the device or the host."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import itertools
import json
import math
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import programs
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib

TrainState = state_lib.TrainState


@dataclasses.dataclass
class Part:
  """The finished part of an epoch.

  Attributes:
    steps: number of finished steps.
    sums: sums of their metrics, numpy float64.
    seconds: time of these steps, without compiling.
    stopped: whether the epoch stopped early because it should.
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
    """Reads the values of `to_json`."""
    sums = {name: np.float64(v) for name, v in value['sums'].items()}
    return cls(value['steps'], sums, value['seconds'])


class Epoch:
  """Trains one epoch per call; the first call compiles unless `compile` did.

  At the end of an epoch, it estimates BatchNorm's statistics for the averaged
  parameters, if there is a step for that.

  Attributes:
    on_device: whether the data set is on the devices.
    steps_per_call: steps in one compiled call.
    compiled: the compiled `program`, or None.

  Args:
    config: a whole config.
    step: `train_step` of `build.Training`.
    pipeline: makes the batches.
    parallel: where to run.
    arrays: the data set on the host, from `pipeline.host_arrays`.
    log: prints a message.
    advance: shows progress: steps, loss, images per second.
    on_nonfinite: called with the state when a loss or gradient is not finite;
      raises.
    on_flow: called with the `flow` of the next steps, `[steps, 4, layers]`, in
      the order of the steps.
    estimate_step: of `build.Training`.
    done: finished steps of the first epoch, if it was interrupted.
    should_stop: asked after each call whether to stop there.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    step: step_lib.Step,
    pipeline: pipeline_lib.Pipeline,
    parallel: parallel_lib.Parallel,
    arrays: pipeline_lib.Arrays,
    *,
    log: Callable[[str], None],
    advance: Callable[[int, float, float], None],
    on_nonfinite: Callable[[TrainState], None],
    on_flow: Callable[[np.ndarray], None] = lambda flow: None,
    estimate_step: step_lib.Step | None = None,
    done: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
  ):
    self._seed, self._log, self._advance = config.seed, log, advance
    self._on_nonfinite, self._should_stop = on_nonfinite, should_stop
    self._on_flow = on_flow
    self._pipeline, self._parallel, self._arrays = pipeline, parallel, arrays
    self.compiled: Any = None
    self._names = _names(config, parallel)
    device, per_epoch = parallel.devices[0], pipeline.steps_per_epoch
    size = sum(a.nbytes for a in arrays.values())
    room = config.data.device_share * parallel_lib.memory(device)
    self.on_device = size <= room
    # On a CPU, XLA runs convolutions inside a scan many times slower.
    self._wanted = config.train.steps_per_call or (
      1 if device.platform == 'cpu' else per_epoch
    )
    if self.on_device:
      self._data = parallel.replicate(pipeline_lib.in_memory(arrays))
    else:
      log(
        'The data set stays on the host: it exceeds '
        f'data.device_share={config.data.device_share} of the device.'
      )
    self._call, self.steps_per_call = self._make_call(
      step, math.gcd(per_epoch, done)
    )
    self._estimates: range | None = None
    self._estimate: Any = None
    if estimate_step is not None:
      batches = step_lib.estimate_batches(per_epoch)
      self._estimate_call, steps = self._make_call(estimate_step, batches)
      self._estimates = range(0, batches, steps)

  def _make_call(
    self, step: step_lib.Step, count: int
  ) -> tuple[jax.stages.Wrapped, int]:
    """A call of several steps, and their number, which divides `count`."""
    pipeline, parallel = self._pipeline, self._parallel
    if not self.on_device:
      return calls.make_host_train_call(step, pipeline, parallel), 1
    # All calls have the same number of steps, so that one is compiled.
    steps = max(
      k for k in range(1, min(self._wanted, count) + 1) if count % k == 0
    )
    return calls.make_train_call(step, pipeline, parallel, steps), steps

  def program(
    self, state: TrainState
  ) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """The call that trains `steps_per_call` steps, and its arguments."""
    data = self._data if self.on_device else self._read(self._step(state))
    return self._call, (state, data)

  def compile(self, state: TrainState) -> None:
    """Compiles what an epoch runs; prints how long its program takes."""
    call, arguments = self.program(state)
    expected = programs.expected_seconds(*self._names)
    about = f', about {expected:.0f} s.' if expected else ' ...'
    self._log(f'Compiling the training step{about}')
    begin, kept = time.perf_counter(), programs.count()
    self.compiled = call.lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    self._log(f'Compiled the training step in {seconds:.1f} s.')
    programs.record(*self._names, seconds, kept=programs.count() == kept)
    if self._estimates:
      self._estimate = self._estimate_call.lower(*arguments).compile()

  def __call__(
    self, state: TrainState, before: Part | None = None
  ) -> tuple[TrainState, Part]:
    """Trains an epoch, or the rest of an interrupted one.

    Args:
      state: as replicated; its buffers are reused.
        before: the finished part of the epoch; it is updated.

    Returns:
      The new state, and the part of the epoch that is finished now.
    """
    part = before or Part()
    per_epoch = self._pipeline.steps_per_epoch
    left = range(part.steps, per_epoch, self.steps_per_call)
    if self.compiled is None:
      self.compile(state)
    if left:
      state = self._train(state, part, left)
    if self._estimates and not part.stopped:
      state = self._estimate_statistics(state, self._estimates)
    return state, part

  def _train(self, state: TrainState, part: Part, left: range) -> TrainState:
    """Trains the calls that are left of an epoch, and updates `part`."""

    def add(metrics: Any) -> None:
      metrics = parallel_lib.to_host(metrics)
      if 'flow' in metrics:
        steps = metrics['flow'].reshape(-1, *metrics['flow'].shape[-2:])
        self._on_flow(steps)
        metrics['flow'] = steps.sum(0, dtype=np.float64)
      for name, value in metrics.items():
        part.sums[name] = part.sums.get(name, 0.0) + value.astype(np.float64)
      part.steps += self.steps_per_call
      part.seconds = time.perf_counter() - begin
      self._advance(
        self.steps_per_call,
        float(metrics['loss'] / metrics['steps']),
        part.steps * self._pipeline.batch_size / part.seconds,
      )
      if part.sums['nonfinite']:
        self._on_nonfinite(state)

    with self._feed(state) as arguments:
      # The first batch is read before the clock starts.
      arguments = itertools.chain([next(arguments)], arguments)
      begin = time.perf_counter() - part.seconds
      pending = []
      for _, argument in zip(left, arguments, strict=False):
        state, metrics = self.compiled(state, argument)
        pending.append(self._parallel.unreplicate(metrics))
        # On the device, the metrics of a call are read while the next one runs.
        # With batches from the host, that one would have the wrong batch after
        # a step that changed nothing, because it was not finite.
        if len(pending) > self.on_device:
          add(pending.pop(0))
        part.stopped = self._should_stop()
        if part.stopped:
          break
      for metrics in pending:
        add(metrics)
    return state

  def _estimate_statistics(self, state: TrainState, left: range) -> TrainState:
    """Runs the estimating calls on the last batches of a finished epoch."""
    first = np.asarray(self._step(state) - left.stop, np.int32)
    state = state.replace(step=self._parallel.replicate(first))
    with self._feed(state) as arguments:
      for _, argument in zip(left, arguments, strict=False):
        state, _ = self._estimate(state, argument)
        # On a CPU, devices that wait for each other need a thread a call.
        jax.block_until_ready(state.step)
    return state

  @contextlib.contextmanager
  def _feed(self, state: TrainState) -> Iterator[Iterator[Any]]:
    """The second arguments of the calls that follow a state."""
    if self.on_device:
      yield itertools.repeat(self._data)
      return
    feed = pipeline_lib.read_ahead(self._read, self._step(state))
    with contextlib.closing(feed):
      yield feed

  def _step(self, state: TrainState) -> int:
    step = self._parallel.unreplicate(state.step)
    return int(parallel_lib.to_host(step))

  def _read(self, step: int) -> Any:
    plan = jax.jit(self._pipeline.plan)(jax.random.key(self._seed), step)
    raw = self._pipeline.read_host(self._arrays, plan)
    keys = np.asarray(jax.random.key_data(plan['key']))
    return self._parallel.place_batch((raw, keys))


def _names(
  config: ml_collections.ConfigDict, parallel: parallel_lib.Parallel
) -> tuple[str, str]:
  """Names the compiled program, and all programs of the same network."""
  devices = parallel.devices
  where = f'{devices[0].device_kind} x {len(devices)}, {config.parallel.mode}'
  same = json.dumps(
    [jax.__version__, where, config.model.to_dict()], sort_keys=True
  )
  return f'{config_identity.hash_of(config)} on {where}', same
