"""The sharded training step, compiled for devices that are not there."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import ml_collections

from skipnet_jax import errors
from skipnet_jax.benchmarking.aot import bounds
from skipnet_jax.benchmarking.hlo import collectives
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.benchmarking.timing import measure
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.data import pipeline
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib


class Step:
  """The training step of a config, to be compiled for any batch.

  Args:
    config: a validated config.
    window: sides y and x of an image.
    devices: of a topology.
    steps_per_epoch: batches in an epoch, by which schedules count.

  Attributes:
    call: compiles the step that a run takes; `(state, batch)`.
    kind: the devices' kind.
    peak: what is published of it.

  Raises:
    InputError: a network or a window that cannot be used.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    window: tuple[int, int],
    devices: list[Any],
    steps_per_epoch: int = 1,
  ):
    self._config, self._window, self._count = config, window, len(devices)
    self.kind = devices[0].device_kind
    self.peak = peaks.PEAKS[self.kind]
    self._training = training = build_lib.build(config, window, steps_per_epoch)
    if training.model.scan:
      raise errors.InputError(
        'model.scan is True, and of a scan the compiler counts one repetition '
        'only: set model.scan=False for a prediction.'
      )
    axis = parallel_lib.AXIS
    mesh = jax.make_mesh(
      (self._count,), (axis,), devices=devices, axis_types=(AxisType.Auto,)
    )
    self._batch_sharding = NamedSharding(mesh, PartitionSpec(axis))
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      training.abstract_state,
    )
    parallel = parallel_lib.Parallel('sharded', tuple(devices), mesh)
    self.call = calls.make_step_call(training.train_step, parallel)

  def describe(self) -> dict[str, Any]:
    """What is compiled."""
    c = self._config
    return {
      'model': c.model.name,
      'parameters': self._training.parameters,
      'convolutions': len(self._training.kernels),
      'image_size': list(self._window),
      'dtype': c.model.dtype,
      'loss': c.train.loss,
      'optimizer': c.optim.name,
    }

  def _batch(self, images: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = pipeline.batch_shapes(self._config, self._window, images)
    return {
      name: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=self._batch_sharding
      )
      for name, shape in shapes.items()
    }

  def compile(self, per_device: int) -> dict[str, Any]:
    """A row of the report; all but `batch` of one device.

    Args:
      per_device: images on each device.

    Returns:
      batch, batch_per_device, error (None, or why it does not fit; then all but
      model_flops is None); model_flops by formula; compile: trace_s, lower_s,
      compile_s, hlo_instructions; hlo_flops and hlo_bytes by XLA's count;
      memory, in bytes: arguments, outputs, temporaries, aliased, code, peak;
      collectives, see `collectives.count`; floors, see `bounds.floors`;
      mfu_limit: model_flops over what the bfloat16 peak makes in floors.step_s.
    """
    images = per_device * self._count
    row: dict[str, Any] = {
      'batch': images,
      'batch_per_device': per_device,
      'error': None,
      'model_flops': per_device
      * flops.training(self._training.table, self._training.judge),
    }
    names = ('compile', 'hlo_flops', 'hlo_bytes', 'memory', 'collectives')
    try:
      compiled, timed = measure.compile_phases(
        self.call, self._state, self._batch(images)
      )
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      row['error'] = str(e).splitlines()[0].split('. HLO module')[0]
      return row | dict.fromkeys((*names, 'floors', 'mfu_limit'))
    found = collectives.count(compiled.as_text())
    floors = bounds.floors(
      timed.hlo_flops, timed.hlo_bytes, found, self._count, self.peak
    )
    phases = ('trace_s', 'lower_s', 'compile_s', 'hlo_instructions')
    peak_flops = self.peak.bf16_tflops * 1e12 * floors['step_s']
    return row | {
      'compile': {name: getattr(timed, name) for name in phases},
      'hlo_flops': timed.hlo_flops,
      'hlo_bytes': timed.hlo_bytes,
      'memory': _memory(compiled.memory_analysis()),
      'collectives': found,
      'floors': floors,
      'mfu_limit': row['model_flops'] / peak_flops,
    }


def _memory(plan: Any) -> dict[str, int]:
  return {
    'arguments': plan.argument_size_in_bytes,
    'outputs': plan.output_size_in_bytes,
    'temporaries': plan.temp_size_in_bytes,
    'aliased': plan.alias_size_in_bytes,
    'code': plan.generated_code_size_in_bytes,
    'peak': plan.peak_memory_in_bytes,
  }
