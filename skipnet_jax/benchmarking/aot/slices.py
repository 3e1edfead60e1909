"""TPU slices and GPUs by name: devices that programs can be compiled for."""

import importlib.util
import math
import os
from typing import Any

import jax
from jax.experimental import topologies

from skipnet_jax import errors
from skipnet_jax.benchmarking.aot import gpus

_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_3D = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
# The accepted slices; libtpu crashes on some others.
TOPOLOGIES = {'v4': _3D, 'v5e': _2D, 'v5p': _3D, 'v6e': _2D}
# Makes a chip one device, as on the hardware; newer generations always do.
_OPTIONS: dict[str, dict[str, Any]] = {'v4': {'chip_config_name': 'megacore'}}
# libtpu reads these when it is loaded. Without them it asks a metadata server
# where it runs, reports that there is none, and writes logs.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_LOG_DIR': 'disabled',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  # Otherwise only one process at a time can load it.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def chips(topology: str) -> int:
  """Number of devices in a TPU slice such as 'v5e:2x2', or of 'h100:8'.

  Raises:
    InputError: an unknown generation, slice or GPU.
  """
  generation, _, shape = topology.partition(':')
  if generation in gpus.GPUS:
    return math.prod(gpus.shape(topology))
  if generation not in TOPOLOGIES:
    raise errors.InputError(
      f'The topology {topology!r} is unknown; give a generation and a slice of '
      f'it, such as v5e:2x2: the generations are {", ".join(TOPOLOGIES)}; or a '
      'GPU and their number, such as h100:8: the GPUs are '
      f'{", ".join(gpus.GPUS)}.'
    )
  if shape not in TOPOLOGIES[generation]:
    raise errors.InputError(
      f'The topology {topology!r} is unknown; the slices of {generation} are '
      f'{", ".join(TOPOLOGIES[generation])}.'
    )
  return math.prod(map(int, shape.split('x')))


def devices(topology: str) -> list[Any]:
  """Descriptions of devices, for which programs can be compiled.

  Unless JAX has been told which platform to use, it is set to use the CPU.

  Args:
    topology: a name that `chips` accepts.

  Raises:
    InputError: libtpu, or the plugin for GPUs, is not installed.
  """
  if not jax.config.values['jax_platforms']:
    # Otherwise JAX would search for TPU chips and GPUs.
    jax.config.update('jax_platforms', 'cpu')
  if topology.partition(':')[0] in gpus.GPUS:
    return gpus.devices(topology)
  if importlib.util.find_spec('libtpu') is None:
    raise errors.InputError(
      'Compiling for a TPU needs libtpu, which is not installed here: pip '
      "install '.[tpu]' (Linux, x86-64)."
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  generation, _, shape = topology.partition(':')
  options = dict(_OPTIONS.get(generation, {}))
  if shape == '1x1':
    # By default libtpu divides a slice into hosts of 2x2 chips.
    options['chips_per_host_bounds'] = (1, 1, 1)
  return topologies.get_topology_desc(
    topology, platform='tpu', **options
  ).devices
