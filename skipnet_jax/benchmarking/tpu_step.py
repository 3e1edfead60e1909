"""The sharded training step, compiled for devices that are not there."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import ml_collections

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import layers
from skipnet_jax.benchmarking import bounds
from skipnet_jax.benchmarking import collectives
from skipnet_jax.benchmarking import flops
from skipnet_jax.benchmarking import measure
from skipnet_jax.benchmarking import peaks
from skipnet_jax.training import losses
from skipnet_jax.training import optim
from skipnet_jax.training import parallel as parallel_lib
from skipnet_jax.training import state as state_lib
from skipnet_jax.training import step as step_lib


class Step:
  """The training step of a config, to be compiled for any batch.

  Args:
    config: a validated config.
    window: sides y and x of an image.
    devices: of a topology.

  Raises:
    InputError: a network or a window that cannot be used.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    window: tuple[int, int],
    devices: list[Any],
  ):
    self._config, self._window, self._count = config, window, len(devices)
    self.kind = devices[0].device_kind
    self.peak = peaks.PEAKS[self.kind]
    model = models.build_model(config.model)
    model.check_size(window)
    if getattr(model, 'scan', False):
      raise errors.InputError(
        'model.scan is True, and of a scan the compiler counts one repetition '
        'only: set model.scan=False for a prediction.'
      )
    self._table = layers.layer_table(model, models.input_shape(model, window))
    schedule = optim.make_schedule(config.optim, 1, config.train.epochs)
    optimizer = optim.make_optimizer(config.optim, schedule)
    step = step_lib.make_train_step(
      model,
      optimizer,
      losses.LOSSES[config.train.loss],
      l2=config.optim.l2,
      record=[row.name for row in self._table if row.flops],
    )
    axis = parallel_lib.AXIS
    mesh = jax.make_mesh(
      (self._count,), (axis,), devices=devices, axis_types=(AxisType.Auto,)
    )
    self._batch_sharding = NamedSharding(mesh, PartitionSpec(axis))
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      state_lib.abstract_state(model, optimizer),
    )
    parallel = parallel_lib.Parallel('sharded', tuple(devices), mesh)
    self._call = parallel.compile(
      lambda state, batch: step(state, parallel.constrain(batch)), donate=True
    )

  def describe(self) -> dict[str, Any]:
    """What is compiled."""
    c = self._config
    return {
      'model': c.model.name,
      'parameters': sum(row.parameters for row in self._table),
      'convolutions': sum(row.flops > 0 for row in self._table),
      'image_size': list(self._window),
      'dtype': c.model.dtype,
      'loss': c.train.loss,
      'optimizer': c.optim.name,
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
    shape = (per_device * self._count, *self._window, 1)
    image = jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=self._batch_sharding
    )
    batch = dict.fromkeys(('image', 'label', 'mask'), image)
    row = {
      'batch': shape[0],
      'batch_per_device': per_device,
      'error': None,
      'model_flops': per_device * flops.training(self._table),
    }
    names = ('compile', 'hlo_flops', 'hlo_bytes', 'memory', 'collectives')
    try:
      compiled, timed = measure.compile_phases(self._call, self._state, batch)
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
