"""Reads energy and clocks of NVIDIA GPUs while something runs on them."""

from collections.abc import Callable, Sequence
import contextlib
import os
import statistics
import threading
from typing import Any, Self

from skipnet_jax import errors

# A lower share of the highest clock rate is flagged.
SLOW = 0.8
# Bits of the reasons why NVML lowers clocks; an idle GPU is none of them.
REASONS = {
  0x2: 'applications clocks setting',
  0x4: 'software power cap',
  0x8: 'hardware slowdown',
  0x10: 'sync boost',
  0x20: 'software thermal slowdown',
  0x40: 'hardware thermal slowdown',
  0x80: 'hardware power brake',
  0x100: 'display clock setting',
}
Reading = dict[str, Any]


class Meter:
  """Counts the energy of devices and samples their clocks in a `with` block.

  The energy is that of the GPUs' own counters, which they update some ten times
  a second: the block should last two seconds or more.

  Args:
    devices: JAX devices of this process.
    interval: seconds between samples, which a thread takes.

  Attributes:
    readable: whether NVML answers for these devices.
    joules: counted in the block, summed over the devices; None if a device has
      no counter.
    state: see `combine`; None if NVML does not answer.
  """

  def __init__(self, devices: Sequence[Any], *, interval: float = 0.25):
    self._interval = interval
    self._samples: list[list[Reading]] = []
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._reader: Reader | None = None
    self.joules: float | None = None
    self.state: Reading | None = None
    with contextlib.suppress(errors.RunError):
      self._reader = Reader(devices)
    self.readable = self._reader is not None

  def __enter__(self) -> Self:
    if self._reader:
      self._before = self._reader.joules()
      self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    if not self._reader:
      return
    after = self._reader.joules()
    self._ended.set()
    self._thread.join()
    if self._before is not None and after is not None:
      self.joules = after - self._before
    self.state = combine(
      [
        combine(one, statistics.median)
        for one in zip(*self._samples, strict=True)
      ]
    )

  def _watch(self) -> None:
    # The first sample comes when the clocks have had time to rise.
    while self._reader and not self._ended.wait(self._interval):
      self._samples.append(self._reader.states())
    if self._reader and not self._samples:
      self._samples.append(self._reader.states())


def combine(
  samples: Sequence[Reading], clock: Callable[[list[float]], float] = min
) -> Reading:
  """One state of several samples, devices or processes: the worst of each.

  Args:
    samples: from `Reader.states`, or from this function.
    clock: picks a clock rate: the median for samples of one device.

  Returns:
    sm_mhz, memory_mhz, sm_mhz_highest, temperature_c (highest), power_limit_w
    (lowest), each None if no sample has it; throttle_reasons, a sorted list of
    all that occurred; ecc (whether all have it on) and mig (whether any is
    divided), None if unknown; slow: sm_mhz is below SLOW of the highest.
  """

  def known(name: str) -> list[Any]:
    return [one[name] for one in samples if one[name] is not None]

  def figure(name: str, pick: Callable[[list[Any]], Any]) -> Any:
    values = known(name)
    return pick(values) if values else None

  state: Reading = {
    'sm_mhz': figure('sm_mhz', clock),
    'sm_mhz_highest': figure('sm_mhz_highest', max),
    'memory_mhz': figure('memory_mhz', clock),
    'throttle_reasons': sorted(set().union(*known('throttle_reasons'))),
    'temperature_c': figure('temperature_c', max),
    'power_limit_w': figure('power_limit_w', min),
    'ecc': figure('ecc', all),
    'mig': figure('mig', any),
  }
  rate, highest = state['sm_mhz'], state['sm_mhz_highest']
  state['slow'] = bool(rate and highest and rate < SLOW * highest)
  return state


class Reader:
  """Asks NVML about the GPUs that JAX uses.

  Args:
    devices: JAX devices of this process.

  Raises:
    RunError: the devices are no GPUs, the package nvidia-ml-py is missing, or
      NVML does not start.
  """

  def __init__(self, devices: Sequence[Any]):
    if any(device.platform != 'gpu' for device in devices):
      raise errors.RunError('Only NVIDIA GPUs can be read.')
    try:
      import pynvml
    except ImportError as e:
      raise errors.RunError('This needs pip install nvidia-ml-py.') from e
    self._nvml = pynvml
    try:
      pynvml.nvmlInit()
      self._handles = [
        self._handle(device.local_hardware_id) for device in devices
      ]
    except pynvml.NVMLError as e:
      raise errors.RunError(f'NVML reports {e}.') from e

  def _handle(self, index: int) -> Any:
    # CUDA numbers only the visible GPUs: NVML's index or UUID of each.
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    names = [name.strip() for name in visible.split(',') if name.strip()]
    name = names[index] if index < len(names) else str(index)
    if name.isdigit():
      return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
    return self._nvml.nvmlDeviceGetHandleByUUID(name)

  def _ask(self, question: str, *args: Any) -> Any:
    """What NVML answers; None if this GPU or driver cannot answer."""
    try:
      return getattr(self._nvml, f'nvmlDeviceGet{question}')(*args)
    except (self._nvml.NVMLError, AttributeError):
      return None

  def joules(self) -> float | None:
    """Joules since the driver was loaded, summed; None without a counter."""
    counts = [self._ask('TotalEnergyConsumption', h) for h in self._handles]
    return None if None in counts else sum(counts) / 1e3

  def states(self) -> list[Reading]:
    """The present state of each GPU, with the fields of `combine`."""
    sm, memory = self._nvml.NVML_CLOCK_SM, self._nvml.NVML_CLOCK_MEM
    sensor = self._nvml.NVML_TEMPERATURE_GPU
    states = []
    for handle in self._handles:
      reasons = self._ask('CurrentClocksThrottleReasons', handle)
      limit = self._ask('EnforcedPowerLimit', handle)
      ecc, mig = self._ask('EccMode', handle), self._ask('MigMode', handle)
      states.append(
        {
          'sm_mhz': self._ask('ClockInfo', handle, sm),
          'sm_mhz_highest': self._ask('MaxClockInfo', handle, sm),
          'memory_mhz': self._ask('ClockInfo', handle, memory),
          'throttle_reasons': None
          if reasons is None
          else [name for bit, name in REASONS.items() if reasons & bit],
          'temperature_c': self._ask('Temperature', handle, sensor),
          'power_limit_w': limit and limit / 1e3,
          'ecc': ecc and bool(ecc[0]),
          'mig': mig and bool(mig[0]),
        }
      )
    return states
