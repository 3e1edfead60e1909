"""What is timed: a training step, an evaluation step, a tiled prediction.

A training step is the one that `train` runs, record of each kernel included. It
is fed in three ways: `compute` gives it a batch that lies on the devices,
augmented once; `augment` makes the batch inside, from the data set on the
devices; `end_to_end` is an epoch as `train` runs it, metrics read, by step. An
evaluation step has its windows on the devices. A tiled prediction takes a slice
of twice the sides from the host and gives it back; it counts as the four images
whose pixels it has.
"""

from collections.abc import Callable
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
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import epoch as epoch_lib

TrainState = state_lib.TrainState


@dataclasses.dataclass(frozen=True)
class Work:
  """A cell, built: what is compiled and what is timed.

  Attributes:
    program: names what is compiled; two cells of one program compile it once.
    jitted: the call to compile.
    arguments: its arguments, on the devices; the first may be used up.
    start: given what was compiled, the call to time.
    steps: batches in one timed call.
    runs: of what was compiled, for one batch.
    flops: of one batch, by formula.
    moved: fewest bytes of one batch, by formula.
    devices: those that run it, of this process.
  """

  program: tuple
  jitted: jax.stages.Wrapped
  arguments: tuple[Any, ...]
  start: Callable[[Any], Callable[[], Any]]
  steps: int
  runs: int
  flops: int
  moved: int
  devices: tuple[Any, ...]


class _Silent:
  """A log that an epoch can be given."""

  def say(self, text: str) -> None:
    del text

  def advance(self, steps: int, loss: float, images_per_second: float) -> None:
    del steps, loss, images_per_second


class Bench:
  """Data, network and first state: what all cells of a process share.

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
    # Schedules count epochs as the run does, whatever a cell's batch is.
    count, size = len(self.data.train), self._config.train.batch_size
    steps = max(1, count // size)
    return build_lib.build(config, self.window, steps, axis_name)

  @functools.cached_property
  def _first(self) -> TrainState:
    return self._training.create_state(self._config.seed)

  def describe(self) -> dict[str, Any]:
    """What is measured, as the report's `workload`."""
    c = self._config
    return {
      'model': c.model.name,
      'parameters': self._training.parameters,
      'convolutions': len(self._training.kernels),
      'image_size': list(self.window),
      'dataset': self.data.name,
      'loss': c.train.loss,
      'optimizer': c.optim.name,
    }

  def build(self, cell: plan.Cell) -> Work:
    """Builds a cell: its data on the devices, nothing compiled.

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
    # A copy: the step reuses its state's buffers.
    state = parallel.replicate(_copy(self._first))
    if cell.call == 'eval':
      return self._eval(cell, training, pipeline, parallel, state)
    step = training.train_step
    steps, name = 1, cell.feed
    if cell.feed == 'compute':
      jitted = calls.make_step_call(step, parallel)
      arguments = (state, _settle(parallel, self._batch(cell.batch)))
      start = functools.partial(_threaded, arguments)
    elif cell.feed == 'augment':
      jitted = calls.make_train_call(step, pipeline, parallel, 1)
      arguments = (state, parallel.replicate(self._arrays))
      start = functools.partial(_threaded, arguments)
    else:
      epoch = epoch_lib.Epoch(
        config, step, pipeline, parallel, self._arrays, _Silent(), _refuse
      )
      jitted, arguments = epoch.program(state)
      steps = pipeline.steps_per_epoch
      # One step from the data set on the device: what `augment` compiles.
      alone = epoch.steps == 1 and epoch.on_device
      name = 'augment' if alone else 'epoch'
      start = functools.partial(_epochs, epoch, state)
    return Work(
      program=(*dataclasses.astuple(cell)[2:], cell.call, name),
      jitted=jitted,
      arguments=arguments,
      start=start,
      steps=steps,
      runs=1,
      flops=cell.batch * flops.training(self.table, training.judge),
      moved=cell.batch
      * flops.training_bytes(
        self.table, jnp.dtype(cell.dtype).itemsize, training.judge
      ),
      devices=_local(parallel),
    )

  def _forward_bytes(self, cell, images: int) -> int:
    # The parameters are counted once an image: they are a small part.
    itemsize = jnp.dtype(cell.dtype).itemsize
    return images * flops.forward_bytes(self.table, itemsize)

  def pipeline(self, batch: int) -> pipeline_lib.Pipeline:
    """Batches of any size: the slices again where they are too few.

    An epoch is as many whole batches as the slices fill, at least one.
    """
    one = self._pipeline
    times = -(-batch // len(one.train))
    return dataclasses.replace(one, batch_size=batch, train=one.train * times)

  def _batch(self, size: int) -> dict[str, np.ndarray]:
    """A training batch on the host: the slices augmented, then again."""
    count = min(size, len(self._pipeline.train))
    pipeline = self.pipeline(count)

    @jax.jit
    def make(data, key):
      drawn = pipeline.plan(key, jnp.zeros((), jnp.int32))
      return pipeline.train_batch(pipeline.read(data, drawn), drawn['key'])

    batch = make(self._arrays, jax.random.key(self._config.seed))
    again = np.arange(size) % count
    return {name: np.asarray(x)[again] for name, x in batch.items()}

  def _eval(self, cell, training, pipeline, parallel, state) -> Work:
    windows = pipeline.eval_plans(cell.batch)[0]
    raw = self._pipeline.read_host(self._arrays, windows)
    placed = _settle(parallel, (raw, windows['seen']))
    arguments = (state, *placed)
    return Work(
      program=dataclasses.astuple(cell),
      jitted=calls.make_eval_call(training.eval_step, pipeline, parallel),
      arguments=arguments,
      start=lambda compiled: lambda: compiled(*arguments),
      steps=1,
      runs=1,
      flops=cell.batch * flops.forward(self.table),
      moved=self._forward_bytes(cell, cell.batch),
      devices=_local(parallel),
    )

  def _inference(self, cell, model) -> Work:
    y, x = self.window
    # Mirrored at its borders: no edge that tissue would not have.
    slices = model.slices
    corner = self.data.around(self.data.valid[0], slices)[:, :y, :x]
    image = np.pad(corner, ((0, 0), (0, y), (0, x)), 'symmetric')
    overlap = min(y, x) // 4
    tiling = inference.Tiling((y, x), overlap, overlap * 3 // 8)
    variables = {
      'params': self._first.params,
      'batch_stats': self._first.batch_stats,
    }
    predictor = inference.Predictor(model, [variables])
    tile = np.zeros((y, x, slices), np.float32)
    tiles = len(tiling.starts(image.shape[1:]))

    def predict():
      return predictor(image, tiling)

    return Work(
      program=dataclasses.astuple(cell),
      jitted=inference.predict_tile,
      arguments=(model, False, variables, tile, jax.random.key(0)),
      start=lambda compiled: predict,
      steps=1,
      runs=tiles,
      flops=tiles * flops.forward(self.table),
      moved=self._forward_bytes(cell, tiles),
      devices=(jax.local_devices()[0],),
    )


@jax.jit
def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def _local(parallel: parallel_lib.Parallel) -> tuple[Any, ...]:
  here = jax.process_index()
  return tuple(d for d in parallel.devices if d.process_index == here)


def _settle(parallel: parallel_lib.Parallel, tree: Any) -> Any:
  """Host arrays `[b, ...]` divided among the devices, there to stay."""
  placed = parallel.place_batch(tree)
  if parallel.mode == 'pmap':
    # Otherwise each call would divide them anew.
    return jax.pmap(lambda x: x, devices=parallel.devices)(placed)
  return placed


def _threaded(arguments: tuple, compiled: Any) -> Callable[[], Any]:
  """Training steps one after the other, on the same data."""
  state, data = arguments
  held = [state]

  def call():
    held[0], metrics = compiled(held[0], data)
    return held[0], metrics

  return call


def _epochs(
  epoch: epoch_lib.Epoch, state: TrainState, compiled: Any
) -> Callable[[], Any]:
  epoch.use(compiled)
  held = [state]

  def call():
    held[0], done = epoch(held[0])
    return held[0], done.sums

  return call


def _refuse(state: TrainState) -> None:
  del state
  raise errors.RunError(
    'The loss of the network that is measured is not finite: lower '
    'optim.learning_rate.'
  )
