"""GPUs by name: what XLA needs to know to compile for them."""

import dataclasses
import re
from typing import Any

from jax.experimental import topologies
import jaxlib

from skipnet_jax import environment
from skipnet_jax import errors

_MOST_HOSTS = 32
# JAX's two packages for each CUDA, of which the first contains the compiler.
_PLUGINS = tuple(
  tuple(f'jax-cuda{cuda}-{part}' for part in ('pjrt', 'plugin'))
  for cuda in (13, 12)
)


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What XLA's compiler needs to know of a GPU.

  The figures are those that the card reports to CUDA, as XLA's authors wrote
  them down in `source`, a file of the folder
  xla/backends/gpu/target_config/specs of github.com/openxla/xla. What it says
  of single units and of threads is left out, and cuDNN is 9.10 for all.

  Attributes:
    name: the device_kind that JAX reports, which `timing.peaks` has too.
    capability: the CUDA compute capability's first number; the second is 0.
    cores: number of streaming multiprocessors.
    fpus: float32 units of one of them.
    shared: bytes of shared memory of one of them.
    bandwidth: of the memory, in bytes per second.
    l2: bytes of the L2 cache.
    clock_ghz: the highest clock rate.
    memory: its bytes.
    source: see above, with the version that was read.
    per_host: GPUs on a host at most; of a DGX or HGX, or of a tray.
    linked: GPUs that NVLink joins; of a host, or of a rack of several hosts.
  """

  name: str
  capability: int
  cores: int
  fpus: int
  shared: int
  bandwidth: int
  l2: int
  clock_ghz: float
  memory: int
  source: str
  per_host: int = 8
  linked: int = 8

  def spec(self) -> str:
    """The description as XLA reads it, a text protocol buffer."""
    accelerated = 'feature_extension: ACCELERATED_FEATURES'
    return f"""
      gpu_device_info {{
        cuda_compute_capability {{
          major: {self.capability} {accelerated if self.capability > 8 else ''}
        }}
        core_count: {self.cores}
        fpus_per_core: {self.fpus}
        shared_memory_per_core: {self.shared}
        shared_memory_per_block_optin: {self.shared - 1024}
        shared_memory_per_block: 49152
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        threads_per_core_limit: 2048
        threads_per_block_limit: 1024
        threads_per_warp: 32
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        memory_bandwidth: {self.bandwidth}
        device_memory_size: {self.memory}
        l2_cache_size: {self.l2}
        clock_rate_ghz: {self.clock_ghz}
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }}
      device_description_str: "{self.name}"
    """


GPUS = {
  'a100': Gpu(
    name='NVIDIA A100-SXM4-80GB',
    capability=8,
    cores=108,
    fpus=64,
    shared=167_936,
    bandwidth=2_039_040_000_000,
    l2=41_943_040,
    clock_ghz=1.41,
    memory=85_100_068_864,
    source='a100_sxm_80.txtpb, 4336d12e',
  ),
  'h100': Gpu(
    name='NVIDIA H100 80GB HBM3',
    capability=9,
    cores=132,
    fpus=128,
    shared=233_472,
    bandwidth=3_352_320_000_000,
    l2=52_428_800,
    clock_ghz=1.98,
    memory=84_942_979_072,
    source='h100_sxm.txtpb, 0774019d',
  ),
  'h200': Gpu(
    name='NVIDIA H200',
    capability=9,
    cores=132,
    fpus=128,
    shared=233_472,
    bandwidth=4_800_000_000_000,
    l2=52_428_800,
    clock_ghz=1.98,
    memory=151_397_597_184,
    source='h200.txtpb, 4336d12e',
  ),
  'b200': Gpu(
    name='NVIDIA B200',
    capability=10,
    cores=148,
    fpus=128,
    shared=233_472,
    bandwidth=7_672_320_000_000,
    l2=132_644_864,
    clock_ghz=1.965,
    memory=191_514_411_008,
    source='b200.txtpb, 300ec95a',
  ),
  'gb200': Gpu(
    name='NVIDIA GB200',
    capability=10,
    cores=152,
    fpus=128,
    shared=233_472,
    bandwidth=7_928_064_000_000,
    l2=135_528_448,
    clock_ghz=2.062,
    memory=197_897_748_480,
    source='gb200.txtpb, 300ec95a',
    per_host=4,
    linked=72,
  ),
}


def shape(topology: str) -> tuple[int, int]:
  """Hosts, and GPUs on each, of a name such as 'h100:8' or 'h100:2x8'.

  Args:
    topology: starts with a key of GPUS.

  Raises:
    InputError: a number of hosts or GPUs that there is not.
  """
  gpu = topology.partition(':')[0]
  most = GPUS[gpu].per_host
  sides = re.fullmatch(r'\w+:(?:([1-9]\d*)x)?([1-9]\d*)', topology, re.ASCII)
  hosts, each = (int(n or 1) for n in sides.groups()) if sides else (0, 0)
  if not (0 < hosts <= _MOST_HOSTS and 0 < each <= most):
    raise errors.InputError(
      f'The topology {topology!r} is unknown; give a GPU and its number on a '
      f'host, at most {most}, such as {gpu}:{most}, or first the number of '
      f'hosts, at most {_MOST_HOSTS}, such as {gpu}:2x{most}.'
    )
  return hosts, each


def devices(topology: str) -> list[Any]:
  """Descriptions of GPUs; if JAX has no platform yet, it looks for real ones.

  Args:
    topology: a name that `shape` accepts.

  Raises:
    InputError: JAX's plugin for CUDA is missing, or not of jaxlib's version.
  """
  found = environment.versions(sum(_PLUGINS, ()))
  wanted = jaxlib.__version__
  if not any(all(found[p] == wanted for p in pair) for pair in _PLUGINS):
    there = ', '.join(f'{name} {v}' for name, v in found.items() if v)
    raise errors.InputError(
      f'Compiling for a GPU needs jax-cuda13-plugin and jax-cuda13-pjrt '
      f'{wanted}, as jaxlib is {wanted}; found: {there or "none"}. Run: pip '
      f'install jax-cuda13-plugin=={wanted} jax-cuda13-pjrt=={wanted} (Linux; '
      '400 MB; no GPU is needed).'
    )
  gpu = GPUS[topology.partition(':')[0]]
  hosts, each = shape(topology)
  return topologies.get_topology_desc(
    '',
    'cuda',
    target_config=gpu.spec(),
    topology=f'1x{hosts}x{each}',
  ).devices


def linked(kind: str, hosts: int) -> int:
  """How many of the GPUs of some hosts NVLink joins, 0 if not all of a host's.

  Args:
    kind: a GPU's device_kind.
    hosts: their number.
  """
  gpu = next(gpu for gpu in GPUS.values() if gpu.name == kind)
  return gpu.linked if hosts == 1 or gpu.linked > gpu.per_host else 0
