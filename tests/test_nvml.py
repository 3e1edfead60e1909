"""Energy and clocks, from an NVML that is made up."""

import sys
import time
import types

import jax
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.timing import nvml


class FakeNvml:
  """GPUs of 100, 200 ... W; the counters advance by a second at each reading.

  GPU 1 runs at 1,500 of 1,980 MHz because of its power cap and has no counter
  if `counters` is False.
  """

  NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

  class NVMLError(Exception):
    pass

  def __init__(self, *, works=True, counters=True):
    self.works, self.counters, self.seconds = works, counters, 0

  def nvmlInit(self):
    if not self.works:
      raise self.NVMLError('Driver Not Loaded')

  def nvmlDeviceGetHandleByIndex(self, index):
    return index

  def nvmlDeviceGetHandleByUUID(self, name):
    return {'GPU-a': 6, 'GPU-b': 7}[name]

  def nvmlDeviceGetTotalEnergyConsumption(self, handle):
    if not self.counters:
      raise self.NVMLError('Not Supported')
    self.seconds += 1
    return 100_000 * (handle + 1) * self.seconds

  def nvmlDeviceGetClockInfo(self, handle, kind):
    if kind == self.NVML_CLOCK_MEM:
      return 3201
    return 1500 if handle == 1 else 1755

  def nvmlDeviceGetMaxClockInfo(self, handle, kind):
    return 1980

  def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
    return 0x4 | 0x1 if handle == 1 else 0x1

  def nvmlDeviceGetTemperature(self, handle, sensor):
    return 60 + handle

  def nvmlDeviceGetEnforcedPowerLimit(self, handle):
    return 700_000

  def nvmlDeviceGetEccMode(self, handle):
    return [1, 1]

  def nvmlDeviceGetMigMode(self, handle):
    raise self.NVMLError('Not Supported')


def gpu(index):
  return types.SimpleNamespace(platform='gpu', local_hardware_id=index)


def use(monkeypatch, visible=None, **options):
  monkeypatch.setitem(sys.modules, 'pynvml', FakeNvml(**options))
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if visible:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)


def test_the_energy_is_what_the_counter_advanced(monkeypatch):
  use(monkeypatch)
  with nvml.Meter([gpu(0)]) as meter:
    pass
  # One reading before and one after, a second apart.
  assert meter.readable
  assert meter.joules == 100


def test_the_state_is_sampled_while_something_runs(monkeypatch):
  use(monkeypatch)
  with nvml.Meter([gpu(0)], interval=1e-3) as meter:
    time.sleep(0.02)
  assert meter.state == {
    'sm_mhz': 1755,
    'sm_mhz_highest': 1980,
    'memory_mhz': 3201,
    'throttle_reasons': [],
    'temperature_c': 60,
    'power_limit_w': 700,
    'ecc': True,
    # A question that this GPU cannot answer.
    'mig': None,
    'slow': False,
  }


def test_the_slowest_device_counts_and_is_flagged(monkeypatch):
  use(monkeypatch)
  with nvml.Meter([gpu(0), gpu(1)]) as meter:
    pass
  assert meter.state['sm_mhz'] == 1500
  assert meter.state['slow']
  assert meter.state['throttle_reasons'] == ['software power cap']
  assert meter.state['temperature_c'] == 61


def test_a_card_without_counter_still_has_clocks(monkeypatch):
  use(monkeypatch, counters=False)
  with nvml.Meter([gpu(0)]) as meter:
    pass
  assert meter.joules is None
  assert meter.state['sm_mhz'] == 1755


def test_a_clock_of_several_samples_is_their_median():
  one = dict.fromkeys(
    ('sm_mhz_highest', 'memory_mhz', 'temperature_c', 'power_limit_w', 'ecc')
  )
  one |= {'mig': None, 'throttle_reasons': None}
  samples = [one | {'sm_mhz': rate} for rate in (210, 1700, 1800)]
  assert nvml.combine(samples, nvml.statistics.median)['sm_mhz'] == 1700
  # Of processes, the slowest.
  found = nvml.combine(samples)
  assert found['sm_mhz'] == 210
  assert found['throttle_reasons'] == []
  # Without the highest rate nothing can be said.
  assert not found['slow']


def test_a_machine_without_gpu_gives_no_figure():
  with nvml.Meter(jax.devices()) as meter:
    pass
  assert (meter.readable, meter.joules, meter.state) == (False, None, None)
  with pytest.raises(errors.RunError, match=r'Only NVIDIA GPUs'):
    nvml.Reader(jax.devices())


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pynvml', None)
  assert not nvml.Meter([gpu(0)]).readable
  with pytest.raises(errors.RunError, match='pip install nvidia-ml-py'):
    nvml.Reader([gpu(0)])


@pytest.mark.parametrize(
  ('visible', 'indices', 'joules'),
  [
    (None, [0], 100),
    (None, [3], 400),
    ('2,5', [1], 600),
    ('GPU-b, GPU-a', [0], 800),
  ],
)
def test_the_gpus_are_those_in_use(monkeypatch, visible, indices, joules):
  use(monkeypatch, visible)
  assert nvml.Reader([gpu(i) for i in indices]).joules() == joules


def test_an_nvml_that_does_not_start_gives_no_figure(monkeypatch):
  use(monkeypatch, works=False)
  assert not nvml.Meter([gpu(0)]).readable
  with pytest.raises(errors.RunError, match='Driver Not Loaded'):
    nvml.Reader([gpu(0)])


@pytest.mark.gpu
def test_a_real_gpu_uses_energy_and_has_a_clock():
  with nvml.Meter(jax.devices()[:1]) as meter:
    time.sleep(2)
  assert 1 < meter.joules < 4000
  assert 100 < meter.state['sm_mhz'] <= meter.state['sm_mhz_highest']
