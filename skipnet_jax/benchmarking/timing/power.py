"""Watts of NVIDIA GPUs while something runs, sampled beside it."""

from collections.abc import Callable, Sequence
import os
import threading
import time
from typing import Any, Self

import numpy as np

from skipnet_jax import errors


class Meter:
  """Measures the power of devices between entering and leaving; for one use.

  Attributes:
    seconds: how long it was open.
    watts: mean over that time, of all devices together; None where no power
      could be read.
    joules: the integral, by trapezoids between samples; None likewise.
    reason: why there is none, as a sentence; None where there is.
  """

  def __init__(
    self,
    devices: Sequence[Any],
    *,
    read: Callable[[], float] | None = None,
    interval: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
  ):
    """Prepares; nothing is read before the context is entered.

    Args:
      devices: JAX devices of this process.
      read: gives the watts of this moment and raises RunError where it cannot;
        by default NVML's of these devices.
      interval: seconds between samples.
      clock: gives seconds.
    """
    self._devices = devices
    self._read = read
    self._interval = interval
    self._clock = clock
    self._samples: list[tuple[float, float]] = []
    self._left = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self.seconds = 0.0
    self.watts: float | None = None
    self.joules: float | None = None
    self.reason: str | None = None

  def __enter__(self) -> Self:
    if self._read is None:
      try:
        self._read = nvml_reader(self._devices)
      except errors.RunError as e:
        self.reason = str(e)
    self._sample()
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._left.set()
    self._thread.join()
    self._sample()
    times, watts = np.array(self._samples).T
    self.seconds = float(times[-1] - times[0])
    if self.reason is None:
      self.joules = float(np.trapezoid(watts, times))
      self.watts = self.joules / self.seconds

  def _watch(self) -> None:
    while self.reason is None and not self._left.wait(self._interval):
      self._sample()

  def _sample(self) -> None:
    watts = np.nan
    if self._read is not None and self.reason is None:
      try:
        watts = self._read()
      except errors.RunError as e:
        self.reason = str(e)
    self._samples.append((self._clock(), watts))


def nvml_reader(devices: Sequence[Any]) -> Callable[[], float]:
  """Reads the watts of these GPUs together, by NVIDIA's library NVML.

  Recent GPUs answer with the mean over the last second: measure for several.

  Raises:
    RunError: the devices are no GPUs, the package nvidia-ml-py is missing, or
      NVML does not answer; also from the reader.
  """
  for device in devices:
    if device.platform != 'gpu':
      raise errors.RunError(
        'Power is read of NVIDIA GPUs only, and the platform is '
        f'{device.platform}.'
      )
  try:
    import pynvml
  except ImportError as e:
    raise errors.RunError(
      'Power was not read, because pynvml is missing: pip install nvidia-ml-py.'
    ) from e

  def ask(call: Callable, *args: Any) -> Any:
    try:
      return call(*args)
    except pynvml.NVMLError as e:
      raise errors.RunError(
        f'Power was not read, because NVML answered {str(e)!r}.'
      ) from e

  ask(pynvml.nvmlInit)
  handles = []
  for name in _names(devices):
    if name.isdigit():
      handles.append(ask(pynvml.nvmlDeviceGetHandleByIndex, int(name)))
    else:
      handles.append(ask(pynvml.nvmlDeviceGetHandleByUUID, name))

  def read() -> float:
    milliwatts = [ask(pynvml.nvmlDeviceGetPowerUsage, h) for h in handles]
    return sum(milliwatts) / 1e3

  return read


def _names(devices: Sequence[Any]) -> list[str]:
  """NVML's index or UUID of each device: CUDA counts the visible ones only."""
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  names = [name.strip() for name in visible.split(',') if name.strip()]
  indices = [device.local_hardware_id for device in devices]
  return [names[i] if i < len(names) else str(i) for i in indices]
