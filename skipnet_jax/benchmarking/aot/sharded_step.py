"""Compiles the sharded training step for accelerators this machine lacks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import ml_collections

from skipnet_jax import errors
from skipnet_jax.benchmarking.aot import bounds
from skipnet_jax.benchmarking.aot import gpus
from skipnet_jax.benchmarking.hlo import collectives
from skipnet_jax.benchmarking.hlo import kernels
from skipnet_jax.benchmarking.hlo import program as program_lib
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.benchmarking.timing import measure
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.data import pipeline
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib

# Chips that the links of a TPU join: a pod of v5e or v6e.
_POD = 256
# Share of a device's memory that programs can use: v5e 15.75 of 16 GiB.
USABLE = 0.98
# Without a GPU nothing can be timed to choose kernels by.
_GPU_OPTIONS = {'xla_gpu_autotune_level': 0}


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
    gpu: whether they are GPUs.
    linked: how many devices fast links join.
    peak: published figures of a device; those of its links only if they join
      all devices.
    hlo: text of the program that was last compiled.

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
    self.kind, self.gpu = devices[0].device_kind, devices[0].platform == 'gpu'
    self.hlo = ''
    self.peak, self.linked = peaks.PEAKS[self.kind], _POD
    if self.gpu:
      hosts = {device.process_index for device in devices}
      self.linked = gpus.linked(self.kind, len(hosts))
    if self._count > self.linked:
      self.peak = dataclasses.replace(self.peak, link_gb_s=None)
    self._training = training = build_lib.build(
      config, window, steps_per_epoch, platform=devices[0].platform
    )
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
      'kernels': c.train.kernels,
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
      all below except model_flops and min_bytes are None); model_flops and
      min_bytes, the fewest, by formula; compile: trace_s, lower_s, compile_s,
      hlo_instructions; hlo_flops and hlo_bytes as XLA counts them (None for a
      GPU); memory, in bytes: arguments, outputs, temporaries, aliased, code,
      peak; collectives, see `collectives.count`; kernels, see `kernels.count`;
      kernels_s, see `bounds.one_by_one` (None for a TPU); floors, see
      `bounds.floors` (by the bytes of the kernels in HBM; for a GPU also by
      model_flops and the number of the kernels); mfu_limit: model FLOPs over
      what the bfloat16 peak would do in floors.step_s.
    """
    images, training = per_device * self._count, self._training
    model_flops = per_device * flops.training(
      training.table, training.discriminator
    )
    row: dict[str, Any] = {
      'batch': images,
      'batch_per_device': per_device,
      'error': None,
      'model_flops': model_flops,
      'min_bytes': flops.training_bytes(
        training.table,
        jnp.dtype(self._config.model.dtype).itemsize,
        training.discriminator,
        per_device,
      ),
    }
    unknown = dict.fromkeys(
      (
        *('compile', 'hlo_flops', 'hlo_bytes', 'memory', 'collectives'),
        *('kernels', 'kernels_s', 'floors', 'mfu_limit'),
      )
    )
    try:
      compiled, found = measure.compile_phases(
        self.call,
        self._state,
        self._batch(images),
        options=_GPU_OPTIONS if self.gpu else None,
      )
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      row['error'] = str(e).splitlines()[0].split('. HLO module')[0]
      return row | unknown
    memory = _memory(compiled.memory_analysis())
    limit = self.peak.memory_gib
    if self.gpu and memory['peak'] > USABLE * limit * 2**30:
      # For a GPU the compiler does not refuse.
      needed = memory['peak'] / 2**30
      row['error'] = f'It needs {needed:.2f} GiB of {limit:g} GiB'
      return row | unknown
    self.hlo = compiled.as_text()
    program = program_lib.Program(self.hlo)
    sent, table = collectives.count(program), kernels.table(program)
    counted = kernels.count(table)
    floors = bounds.floors(
      model_flops if self.gpu else found['hlo_flops'],
      counted['hbm_bytes'],
      sent,
      self._count,
      self.peak,
      counted['kernels'] if self.gpu else None,
    )
    peak_flops = self.peak.bf16_tflops * 1e12 * floors['step_s']
    phases = ('trace_s', 'lower_s', 'compile_s', 'hlo_instructions')
    return row | {
      'compile': {name: found[name] for name in phases},
      'hlo_flops': found['hlo_flops'],
      'hlo_bytes': found['hlo_bytes'],
      'memory': memory,
      'collectives': sent,
      'kernels': counted,
      'kernels_s': bounds.one_by_one(table, self.peak) if self.gpu else None,
      'floors': floors,
      'mfu_limit': model_flops / peak_flops,
    }


def _memory(found: Any) -> dict[str, int]:
  parts = {
    'arguments': found.argument_size_in_bytes,
    'outputs': found.output_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'aliased': found.alias_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }
  return parts | {'peak': found.peak_memory_in_bytes}
