"""What a benchmark ran on: software, processors, memory, load."""

from collections.abc import Sequence
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax

from skipnet_jax import environment

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
# JAX's plugins, and the packages of CUDA and cuDNN that each brings.
_PLUGINS = {
  'jax-cuda12-plugin': ('nvidia-cuda-runtime-cu12', 'nvidia-cudnn-cu12'),
  'jax-cuda13-plugin': ('nvidia-cuda-runtime', 'nvidia-cudnn-cu13'),
  'libtpu': (),
}


def software() -> dict[str, str | None]:
  """Versions and the flags that decide over speed; touches no device.

  Returns:
    python, jax, jaxlib, flax, optax, numpy; plugin (name and version), driver
    (NVIDIA's, by nvidia-smi), cuda, cudnn (of the packages installed with the
    plugin), each None where there is none; xla_flags, glibc_tunables.
  """
  plugins = _installed(_PLUGINS)
  parts = [_PLUGINS[name] for name in plugins if _PLUGINS[name]]
  cuda, cudnn = parts[0] if parts else ('', '')
  return {
    'python': platform.python_version(),
    **environment.versions(_PACKAGES),
    'plugin': ', '.join(f'{k} {v}' for k, v in plugins.items()) or None,
    'driver': _nvidia_driver(),
    'cuda': _installed([cuda]).get(cuda),
    'cudnn': _installed([cudnn]).get(cudnn),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'glibc_tunables': os.environ.get('GLIBC_TUNABLES', ''),
  }


def hardware() -> dict[str, Any]:
  """Devices and host, and how busy the host is at this moment.

  Returns:
    platform, device_kind, device_count (of all processes), local_device_count,
    device_memory_bytes (what JAX may take of one device; None where it does not
    say), cpu, cores (that this process may use), memory_bytes (of the machine),
    load_average (processes running or waiting over 1, 5 and 15 minutes).
  """
  device = jax.local_devices()[0]
  memory = device.memory_stats() or {}
  return {
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': jax.device_count(),
    'local_device_count': jax.local_device_count(),
    'device_memory_bytes': memory.get('bytes_limit'),
    'cpu': _cpu(),
    'cores': environment.usable_cores(),
    'memory_bytes': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
    'load_average': list(os.getloadavg()),
  }


def peak_bytes(devices: Sequence[Any]) -> int | None:
  """The most memory that any of these devices held in this process so far.

  JAX cannot set it back: after several measurements it is the largest one's.
  None where a device does not tell (a CPU).
  """
  peaks = [(d.memory_stats() or {}).get('peak_bytes_in_use') for d in devices]
  known = [peak for peak in peaks if peak is not None]
  return max(known) if len(known) == len(peaks) else None


def _installed(names: Any) -> dict[str, str]:
  found = environment.versions(name for name in names if name)
  return {name: version for name, version in found.items() if version}


def _nvidia_driver() -> str | None:
  if shutil.which('nvidia-smi') is None:
    return None
  query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
  try:
    answer = subprocess.run(
      query, capture_output=True, text=True, check=True, timeout=30
    ).stdout
  except (OSError, subprocess.SubprocessError):
    return 'unknown'
  return answer.strip().partition('\n')[0]


def _cpu() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  for line in lines:
    if line.startswith('model name'):
      return line.partition(':')[2].strip()
  # Arm's Linux and macOS name the architecture only.
  return platform.processor() or platform.machine()
