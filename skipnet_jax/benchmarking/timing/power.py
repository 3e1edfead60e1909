"""Measures the power of NVIDIA GPUs while something runs on them."""

from collections.abc import Callable, Sequence
import os
import threading
import time
from typing import Any, Self

import numpy as np

from skipnet_jax import errors


class Meter:
  """Samples the power of devices in a thread while its `with` block runs.

  Args:
    devices: JAX devices of this process.
    read: returns the present watts or raises RunError; by default the one from
      `nvml_reader`.
    interval: seconds between samples.
    clock: returns seconds.

  Attributes:
    watts: mean power during the block, summed over the devices, by trapezoids
      between samples; None if it cannot be read.
  """

  def __init__(
    self,
    devices: Sequence[Any],
    *,
    read: Callable[[], float] | None = None,
    interval: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
  ):
    self._devices, self._read = devices, read
    self._interval, self._clock = interval, clock
    self._samples: list[tuple[float, float]] = []
    self._failed = False
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self.watts: float | None = None

  def __enter__(self) -> Self:
    self._sample()
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._ended.set()
    self._thread.join()
    self._sample()
    if not self._failed:
      times, watts = np.array(self._samples).T
      joules = np.trapezoid(watts, times)
      self.watts = float(joules / (times[-1] - times[0]))

  def _watch(self) -> None:
    while not self._failed and not self._ended.wait(self._interval):
      self._sample()

  def _sample(self) -> None:
    if self._failed:
      return
    try:
      if self._read is None:
        self._read = nvml_reader(self._devices)
      watts = self._read()
    except errors.RunError:
      self._failed = True
    else:
      self._samples.append((self._clock(), watts))


def nvml_reader(devices: Sequence[Any]) -> Callable[[], float]:
  """Makes a function that reads the watts of GPUs, summed, through NVML.

  Recent GPUs report the mean of the last second: measure for several seconds.

  Raises:
    RunError: the devices are no GPUs, the package nvidia-ml-py is missing, or
      NVML reports an error. The function raises it too.
  """
  if any(device.platform != 'gpu' for device in devices):
    raise errors.RunError('Only the power of NVIDIA GPUs can be read.')
  try:
    import pynvml
  except ImportError as e:
    raise errors.RunError('Power needs pip install nvidia-ml-py.') from e

  def ask(call: Callable, *args: Any) -> Any:
    try:
      return call(*args)
    except pynvml.NVMLError as e:
      raise errors.RunError(f'NVML reports {e}.') from e

  ask(pynvml.nvmlInit)
  # CUDA numbers only the visible GPUs: NVML's index or UUID of each.
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  names = [name.strip() for name in visible.split(',') if name.strip()]
  handles = []
  for index in (device.local_hardware_id for device in devices):
    name = names[index] if index < len(names) else str(index)
    if name.isdigit():
      handles.append(ask(pynvml.nvmlDeviceGetHandleByIndex, int(name)))
    else:
      handles.append(ask(pynvml.nvmlDeviceGetHandleByUUID, name))
  return lambda: (
    sum(ask(pynvml.nvmlDeviceGetPowerUsage, h) for h in handles) / 1e3
  )
