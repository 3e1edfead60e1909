"""Describes what a benchmark runs on: software, processors, memory, load."""

from collections.abc import Sequence
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
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


_PREFIXES = ('JAX_', 'XLA_', 'NCCL_')
_VARIABLES = ('LIBTPU_INIT_ARGS', 'GLIBC_TUNABLES', 'NVIDIA_TF32_OVERRIDE')
# The cache of what is not measured.
_OWN_VARIABLES = ('JAX_COMPILATION_CACHE_DIR',)
# The folders of a path, which may be private: `/home/me/` of `/home/me/dump`.
_FOLDERS = re.compile(r'(?<![\w.])[~/][^\s,:;=]*/')
# Where a container's id stands: in its control group, else in the place of the
# files that are mounted for it. Other hashes there are those of its layers.
_CONTAINER = {
  'cgroup': re.compile(r'[/:-]([0-9a-f]{12})[0-9a-f]{52}'),
  'mountinfo': re.compile(r'containers/([0-9a-f]{12})[0-9a-f]{52}/'),
}


def software() -> dict[str, Any]:
  """Versions, and the flags that affect speed; uses no device.

  Returns:
    python, jax, jaxlib, flax, optax, numpy; plugin (name and version), driver
    (NVIDIA's, from nvidia-smi), cuda, cudnn (of the packages installed with the
    plugin), each None if there is none; packages (a hash of all that are
    installed, with their versions); container (the beginning of its id; None
    outside of one); environment, see `_environment`.
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
    'packages': _packages(),
    'container': _container(),
    'environment': _environment(),
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


def _packages() -> str:
  installed = {
    f'{one.metadata["Name"]}=={one.version}'
    for one in importlib.metadata.distributions()
  }
  text = '\n'.join(sorted(installed))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _container(proc: pathlib.Path = pathlib.Path('/proc/self')) -> str | None:
  for name, pattern in _CONTAINER.items():
    path = proc / name
    text = path.read_text(errors='replace') if path.exists() else ''
    if found := pattern.search(text):
      return found[1]
  return None


def _environment() -> dict[str, str]:
  """Variables that change speed, by name; of a path, its last part only."""
  return {
    name: _FOLDERS.sub('…/', value)
    for name, value in sorted(os.environ.items())
    if (name.startswith(_PREFIXES) or name in _VARIABLES)
    and name not in _OWN_VARIABLES
  }


def _cpu() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  for line in lines:
    if line.startswith('model name'):
      return line.partition(':')[2].strip()
  # Linux on Arm and macOS give only the architecture.
  return platform.processor() or platform.machine()
