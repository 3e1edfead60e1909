"""TPU slices by name, and their devices without the hardware."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

import jax
from jax.experimental import topologies

from skipnet_jax import errors

_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  '2x2x1',
  '2x2x2',
  '2x2x4',
  '2x4x4',
  '4x4x4',
  '4x4x8',
  '4x8x8',
  '8x8x8',
)
# The slices that are offered. libtpu takes the process down for some others.
TOPOLOGIES = {'v4': _CUBES, 'v5e': _FLAT, 'v5p': _CUBES, 'v6e': _FLAT}
# One device a chip, as on the hardware; later generations have no other way.
_OPTIONS = {'v4': {'chip_config_name': 'megacore'}}
# libtpu reads these when it is loaded. Without them it asks a metadata server
# where it runs, complains that there is none, and writes logs.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_LOG_DIR': 'disabled',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  # Or one process at a time could load it, as with chips to share.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of TPU chips.

  Attributes:
    name: as JAX spells it, such as 'v5p:2x2x1'.
    generation: a key of `TOPOLOGIES`.
    devices: number of chips.
  """

  name: str
  generation: str
  devices: int


def parse_topology(text: str) -> Topology:
  """Reads 'v5e:2x2'.

  Raises:
    InputError: a generation or a slice that is not known.
  """
  generation, _, shape = text.partition(':')
  if generation not in TOPOLOGIES:
    raise errors.InputError(
      f'The topology {text!r} is unknown; give a generation and a slice of it, '
      f'such as v5e:2x2: the generations are {", ".join(TOPOLOGIES)}.'
    )
  if shape not in TOPOLOGIES[generation]:
    raise errors.InputError(
      f'The topology {text!r} is unknown; the slices of {generation} are '
      f'{", ".join(TOPOLOGIES[generation])}.'
    )
  return Topology(text, generation, math.prod(map(int, shape.split('x'))))


def devices(topology: Topology) -> list[Any]:
  """Stand-ins of a slice's devices: to compile for and nothing else.

  JAX is kept from looking for accelerators where it was not told which to use.

  Raises:
    InputError: libtpu is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise errors.InputError(
      'Compiling for a TPU needs libtpu, which is not installed here: pip '
      "install '.[tpu]' (Linux, x86-64)."
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  if not jax.config.values['jax_platforms']:
    # Or JAX would look for TPU chips.
    jax.config.update('jax_platforms', 'cpu')
  options = _OPTIONS.get(topology.generation, {})
  return topologies.get_topology_desc(
    topology.name, platform='tpu', **options
  ).devices
