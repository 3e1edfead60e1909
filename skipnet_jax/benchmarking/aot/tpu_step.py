"""Compiles the sharded training step for TPUs that this machine lacks."""

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
  """The training step of a config, which can be compiled for any batch.

  Args:
    config: a validated config.
    window: sides y and x of an image.
    devices: from `slices.devices`.
    steps_per_epoch: batches in an epoch, which schedules need.

  Attributes:
    call: the jitted step of a run, `(state, batch)`.
    kind: of the devices.
    peak: published figures of a device.

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
        'model.scan is True, but the compiler counts only one repetition of a '
        'scan: set model.scan=False for a prediction.'
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
    """Network and training, as JSON values."""
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
    """Compiles the step; all figures but `batch` are those of one device.

    Args:
      per_device: images on each device.

    Returns:
      batch, batch_per_device, error (None, or why the batch does not fit; then
      all below except model_flops are None); model_flops by formula; compile:
      trace_s, lower_s, compile_s, hlo_instructions; hlo_flops and hlo_bytes as
      XLA counts them; memory, in bytes: arguments, outputs, temporaries,
      aliased, code, peak; collectives, see `collectives.count`; floors, see
      `bounds.floors`; mfu_limit: model FLOPs over what the bfloat16 peak would
      do in floors.step_s.
    """
    images = per_device * self._count
    model_flops = per_device * flops.training(
      self._training.table, self._training.discriminator
    )
    row: dict[str, Any] = {
      'batch': images,
      'batch_per_device': per_device,
      'error': None,
      'model_flops': model_flops,
    }
    names = ('compile', 'hlo_flops', 'hlo_bytes', 'memory', 'collectives')
    try:
      compiled, found = measure.compile_phases(
        self.call, self._state, self._batch(images)
      )
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      row['error'] = str(e).splitlines()[0].split('. HLO module')[0]
      return row | dict.fromkeys((*names, 'floors', 'mfu_limit'))
    sent = collectives.count(compiled.as_text())
    floors = bounds.floors(
      found['hlo_flops'], found['hlo_bytes'], sent, self._count, self.peak
    )
    peak_flops = self.peak.bf16_tflops * 1e12 * floors['step_s']
    phases = ('trace_s', 'lower_s', 'compile_s', 'hlo_instructions')
    memory = compiled.memory_analysis()
    return row | {
      'compile': {name: found[name] for name in phases},
      'hlo_flops': found['hlo_flops'],
      'hlo_bytes': found['hlo_bytes'],
      'memory': {
        'arguments': memory.argument_size_in_bytes,
        'outputs': memory.output_size_in_bytes,
        'temporaries': memory.temp_size_in_bytes,
        'aliased': memory.alias_size_in_bytes,
        'code': memory.generated_code_size_in_bytes,
        'peak': memory.peak_memory_in_bytes,
      },
      'collectives': sent,
      'floors': floors,
      'mfu_limit': model_flops / peak_flops,
    }
