"""Which device the suite will measure; this process does not hold it."""

import json
import os
import subprocess
import sys

from skipnet_jax import errors

# JAX_PLATFORMS of the pieces, by --device; parity needs the CPU too.
PLATFORMS = {'gpu': 'cuda,cpu', 'tpu': 'tpu,cpu', 'cpu': 'cpu'}
_FIND = (
  'import json, jax; d = jax.devices()[0]; '
  'print(json.dumps([d.platform, d.device_kind]))'
)
FIND_SECONDS = 120


def device_kind(device: str) -> str:
  """The name of the device that JAX will measure, such as 'NVIDIA H200'.

  JAX would measure the CPU instead of a missing GPU. Another process looks for
  the device, because this one must not hold it.

  Args:
    device: one of PLATFORMS.

  Raises:
    InputError: JAX does not find such a device.
  """
  if device == 'cpu':
    return device
  try:
    # -P: no module of the current folder hides another one.
    done = subprocess.run(
      [sys.executable, '-P', '-c', _FIND],
      env=os.environ | {'JAX_PLATFORMS': PLATFORMS[device]},
      capture_output=True,
      text=True,
      timeout=FIND_SECONDS,
    )
    code, output, messages = done.returncode, done.stdout, done.stderr
  except subprocess.TimeoutExpired:
    code, output = 1, ''
    messages = f'JAX did not answer within {FIND_SECONDS} s'
  if code == 0:
    platform, kind = json.loads(output.splitlines()[-1])
    if platform == device:
      return kind
    messages = messages or f'JAX uses the {platform.upper()} instead'
  reason = messages.strip().rpartition('\n')[2].partition(' (set JAX')[0]
  raise errors.InputError(
    f'No {device.upper()} was found ({reason.rstrip(".")}): install JAX for it '
    'on a machine that has one, or give --device=cpu.'
  )
