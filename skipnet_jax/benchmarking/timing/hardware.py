"""Describes what a benchmark runs on: software, processors, memory, load."""

from collections.abc import Sequence
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from skipnet_jax import environment

# JAX's plugins, and the packages of CUDA and cuDNN that each installs.
_PLUGINS = {
  'jax-cuda12-plugin': ('nvidia-cuda-runtime-cu12', 'nvidia-cudnn-cu12'),
  'jax-cuda13-plugin': ('nvidia-cuda-runtime', 'nvidia-cudnn-cu13'),
  'libtpu': (),
}


def software() -> dict[str, str | None]:
  """Versions, and the flags that affect speed; uses no device.

  Returns:
    python, jax, jaxlib, flax, optax, numpy; plugin (name and version), driver
    (NVIDIA's, from nvidia-smi), cuda, cudnn (of the packages installed with the
    plugin), each None if there is none; xla_flags, glibc_tunables.
  """
  plugins = {k: v for k, v in environment.versions(_PLUGINS).items() if v}
  libraries = [_PLUGINS[name] for name in plugins if _PLUGINS[name]]
  cuda, cudnn = (
    environment.versions(libraries[0]).values() if libraries else (None, None)
  )
  return {
    'python': platform.python_version(),
    **environment.versions(('jax', 'jaxlib', 'flax', 'optax', 'numpy')),
    'plugin': ', '.join(f'{k} {v}' for k, v in plugins.items()) or None,
    'driver': _nvidia_driver(),
    'cuda': cuda,
    'cudnn': cudnn,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'glibc_tunables': os.environ.get('GLIBC_TUNABLES', ''),
  }


def hardware() -> dict[str, Any]:
  """Devices and host, and the current load of the host.

  Returns:
    platform, device_kind, device_count (of all processes), local_device_count,
    device_memory_bytes (what JAX may use of one device; None if unknown), cpu,
    cores (that this process may use), memory_bytes (of the machine),
    load_average (processes that run or wait, over 1, 5 and 15 minutes).
  """
  device = jax.local_devices()[0]
  return {
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': jax.device_count(),
    'local_device_count': jax.local_device_count(),
    'device_memory_bytes': (device.memory_stats() or {}).get('bytes_limit'),
    'cpu': _cpu(),
    'cores': environment.usable_cores(),
    'memory_bytes': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
    'load_average': list(os.getloadavg()),
  }


def peak_bytes(devices: Sequence[Any]) -> int | None:
  """The most memory that one of these devices has used in this process.

  JAX cannot reset it: after several measurements it is the maximum of all.
  None if a device does not report it, as CPUs do not.
  """
  stats = [device.memory_stats() or {} for device in devices]
  peaks: list[Any] = [one.get('peak_bytes_in_use') for one in stats]
  return None if None in peaks else max(peaks)


def _nvidia_driver() -> str | None:
  query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
  try:
    answer = subprocess.run(
      query, capture_output=True, text=True, check=True, timeout=30
    ).stdout
  except FileNotFoundError:
    return None
  except (OSError, subprocess.SubprocessError):
    return 'unknown'
  return answer.strip().partition('\n')[0]


def _cpu() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  for line in lines:
    if line.startswith('model name'):
      return line.partition(':')[2].strip()
  # Linux on Arm and macOS give only the architecture.
  return platform.processor() or platform.machine()
