"""Builds what a benchmark times: training steps, evaluation steps, predictions.

A training step is the one that `train` runs, with the record of each kernel. It
gets its batch in one of three ways, the cell's `feed`. `compute`: one augmented
batch that stays on the devices. `augment`: the step itself draws and augments a
batch of the data set on the devices. `end_to_end`: an epoch as `train` runs it,
with its metrics read; the time is that of one step.

An evaluation step has its windows on the devices. A tiled prediction takes a
slice of twice the window's sides from the host and returns a map to it. It
counts as four images, because it has the pixels of four.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from skipnet_jax import errors
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import epoch as epoch_lib


@dataclasses.dataclass(frozen=True)
class Work:
  """What is compiled and timed for a cell.

  Attributes:
    program: equal for cells that share a compiled program.
    jitted: the call to compile.
    arguments: its arguments, on the devices; it may reuse the first's buffers.
    start: takes what was compiled and returns the call to time.
    flops: of one batch, by formula.
    min_bytes: the fewest bytes that one batch reads and writes, by formula.
    steps: batches in one timed call.
    executions_per_batch: how often one batch runs the compiled program.
    loss: the mean training loss in a call's result; None if it trains nothing.
  """

  program: tuple
  jitted: jax.stages.Wrapped
  arguments: tuple[Any, ...]
  start: Callable[[Any], Callable[[], Any]]
  flops: int
  min_bytes: int
  steps: int = 1
  executions_per_batch: int = 1
  loss: Callable[[Any], float] | None = None


class Bench:
  """Builds cells from the data, network and first state that they share.

  Args:
    config: a validated config.

  Raises:
    InputError: data or a network that cannot be used.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    self.data = sources.load(config)
    self._arrays = pipeline_lib.host_arrays(self.data)
    one = config.copy_and_resolve_references()
    one.train.batch_size = 1
    self._pipeline = pipeline_lib.make_pipeline(one, self.data, 1)
    self.window = self._pipeline.window
    self._training = self._build(config)
    self.table = self._training.table

  def _build(
    self, config: ml_collections.ConfigDict, axis_name: str | None = None
  ) -> build_lib.Training:
    # Schedules count the epochs of the run, whatever the cell's batch is.
    pipeline = self.pipeline(self._config.train.batch_size)
    return build_lib.build(
      config, self.window, pipeline.steps_per_epoch, axis_name
    )

  @functools.cached_property
  def _first(self) -> state_lib.TrainState:
    return self._training.create_state(self._config.seed)

  def describe(self) -> dict[str, Any]:
    """Network and data, as the report's `workload`."""
    c = self._config
    return {
      'model': c.model.name,
      'parameters': self._training.parameters,
      'convolutions': len(self._training.kernels),
      'image_size': list(self.window),
      'dataset': self.data.name,
      'loss': c.train.loss,
      'optimizer': c.optim.name,
      'kernels': c.train.kernels,
    }

  def check_memory(self, batches: Sequence[int]) -> None:
    """Refuses batches that this machine cannot even make.

    One that a device cannot hold becomes a row that says so.

    Args:
      batches: of the rows, over all their devices.
    """
    available = parallel_lib.machine_memory()
    # Images and labels, float32.
    y, x = self.window
    each = 4 * y * x * (self._training.model.slices + 1)
    for batch in batches:
      if batch * each > available:
        raise errors.InputError(
          f'benchmark.batches gives a row of {batch:,} images, which take '
          f'{batch * each / 1e9:,.1f} GB of memory with their labels, but this '
          f'machine has {available / 1e9:,.1f} GB: give fewer.'
        )

  def build(self, cell: plan.Cell) -> Work:
    """Builds a cell: puts its data on the devices, compiles nothing.

    Raises:
      InputError: more devices than there are.
    """
    config = self._config.copy_and_resolve_references()
    config.model.dtype = cell.dtype
    config.parallel.mode, config.parallel.devices = cell.mode, cell.devices
    parallel = parallel_lib.make_parallel(config.parallel)
    training = self._build(config, parallel.axis_name)
    if cell.call == 'inference':
      return self._inference(cell, training.model)
    pipeline = self.pipeline(cell.batch)
    # A copy, because a training step reuses its state's buffers.
    state = parallel.replicate(_copy(self._first))
    if cell.call == 'eval':
      return self._eval(cell, training, pipeline, parallel, state)
    step = training.train_step
    steps, name = 1, cell.feed
    if cell.feed == 'end_to_end':
      epoch = epoch_lib.Epoch(
        config,
        step,
        pipeline,
        parallel,
        self._arrays,
        log=lambda _: None,
        advance=lambda *_: None,
        on_nonfinite=refuse_nonfinite,
      )
      jitted, arguments = epoch.program(state)
      steps = pipeline.steps_per_epoch
      # One step from the data set on the device: what `augment` compiles.
      alone = epoch.steps_per_call == 1 and epoch.on_device
      name = 'augment' if alone else 'epoch'

      def start(compiled):
        epoch.compiled = compiled
        return _repeat(epoch, state)

    else:
      if cell.feed == 'compute':
        jitted = calls.make_step_call(step, parallel)
        data = _settle(parallel, self._batch(cell.batch))
      else:
        jitted = calls.make_train_call(step, pipeline, parallel, 1)
        data = parallel.replicate(pipeline_lib.in_memory(self._arrays))
      arguments = (state, data)

      def start(compiled):
        return _repeat(lambda state: compiled(state, data), state)

    return Work(
      program=(*dataclasses.astuple(cell)[2:], cell.call, name),
      jitted=jitted,
      arguments=arguments,
      start=start,
      flops=cell.batch * flops.training(self.table, training.discriminator),
      min_bytes=cell.devices
      * flops.training_bytes(
        self.table,
        jnp.dtype(cell.dtype).itemsize,
        training.discriminator,
        cell.batch // cell.devices,
      ),
      steps=steps,
      loss=functools.partial(_loss, parallel),
    )

  def pipeline(self, batch: int) -> pipeline_lib.Pipeline:
    """The pipeline of the data set, for batches of any size."""
    return dataclasses.replace(self._pipeline, batch_size=batch)

  def _batch(self, size: int) -> dict[str, np.ndarray]:
    """A training batch on the host: the augmented slices, repeated."""
    count = min(size, len(self._pipeline.train))
    pipeline = self.pipeline(count)

    @jax.jit
    def make(data, key):
      drawn = pipeline.plan(key, jnp.zeros((), jnp.int32))
      return pipeline.train_batch(pipeline.read(data, drawn), drawn['key'])

    arrays = pipeline_lib.in_memory(self._arrays)
    batch = make(arrays, jax.random.key(self._config.seed))
    indices = np.arange(size) % count
    return {name: np.asarray(x)[indices] for name, x in batch.items()}

  def _eval(self, cell, training, pipeline, parallel, state) -> Work:
    windows = pipeline.eval_plans(cell.batch)[0]
    raw = self._pipeline.read_host(self._arrays, windows)
    arguments = (state, *_settle(parallel, (raw, windows['seen'])))
    return Work(
      program=dataclasses.astuple(cell),
      jitted=calls.make_eval_call(training.eval_step, pipeline, parallel),
      arguments=arguments,
      start=lambda compiled: lambda: compiled(*arguments),
      flops=cell.batch * flops.forward(self.table),
      min_bytes=cell.devices
      * flops.forward_bytes(
        self.table, jnp.dtype(cell.dtype).itemsize, cell.batch // cell.devices
      ),
    )

  def _inference(self, cell, model) -> Work:
    y, x = self.window
    slices = model.slices
    corner = self.data.around(self.data.valid[0], slices)[:, :y, :x]
    # Mirrored, so that no edge appears that tissue would not have.
    image = np.pad(corner, ((0, 0), (0, y), (0, x)), 'symmetric')
    variables = self._first.variables()
    predictor = inference.Predictor(
      model, [variables], normalise=self.data.normalise
    )
    tiling = tile_by(self.window, (predictor.multiple, model.size_multiple))
    tile = np.zeros((y, x, slices), np.float32)
    tiles = len(tiling.starts(image.shape[1:]))
    return Work(
      program=dataclasses.astuple(cell),
      jitted=inference.predict_tile,
      arguments=(model, False, variables, tile, jax.random.key(0)),
      start=lambda compiled: lambda: predictor(image, tiling),
      flops=tiles * flops.forward(self.table),
      # Each tile is a call, which reads the parameters.
      min_bytes=tiles
      * flops.forward_bytes(self.table, jnp.dtype(cell.dtype).itemsize),
      executions_per_batch=tiles,
    )


def tile_by(
  window: tuple[int, int], multiples: Sequence[int]
) -> tiling_lib.Tiling:
  """Tiles of the window's sides, which overlap by up to a quarter of them.

  They start at multiples of the first of `multiples` that divides both sides; a
  window of just one multiple leaves no room for an overlap.
  """
  multiple = next(m for m in multiples if not any(side % m for side in window))
  overlap = min(min(window) // 4, min(window) - multiple)
  return tiling_lib.Tiling(window, overlap, overlap * 3 // 8, multiple)


def _loss(parallel: parallel_lib.Parallel, result: tuple[Any, Any]) -> float:
  _, done = result
  if isinstance(done, epoch_lib.Part):
    sums = done.sums
  else:
    sums = parallel_lib.to_host(parallel.unreplicate(done))
  return float(sums['loss'] / sums['steps'])


@jax.jit
def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def _settle(parallel: parallel_lib.Parallel, tree: Any) -> Any:
  """Divides host arrays `[b, ...]` among the devices once and for all."""
  placed = parallel.place_batch(tree)
  if parallel.mode == 'pmap':
    # Otherwise each call would divide them again.
    return jax.pmap(lambda x: x, devices=parallel.devices)(placed)
  return placed


def _repeat(
  step: Callable[[Any], tuple[Any, Any]], state: Any
) -> Callable[[], Any]:
  """A call that runs a step on the state that its last call returned."""

  def call():
    nonlocal state
    state, result = step(state)
    return state, result

  return call


def refuse_nonfinite(state: Any) -> None:
  """Raises RunError for a loss that is not finite, as `Epoch.on_nonfinite`."""
  del state
  raise errors.RunError(
    'The loss of the benchmarked network is not finite: lower '
    'optim.learning_rate.'
  )
