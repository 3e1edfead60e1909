"""Watts, from readers that are made up and from NVML."""

import sys
import threading
import time
import types

import jax
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.timing import power


class Ramp:
  """A clock that goes on by half a second, and a power that rises with it."""

  def __init__(self):
    self.now = 0.0
    self.samples = threading.Semaphore(0)

  def clock(self):
    self.now += 0.5
    return self.now

  def read(self):
    self.samples.release()
    # The time at which this sample's clock will be read.
    return 100 + 10 * (self.now + 0.5)


def test_the_mean_is_the_area_under_the_samples_over_the_time():
  ramp = Ramp()
  with power.Meter(
    [], read=ramp.read, clock=ramp.clock, interval=1e-3
  ) as meter:
    for _ in range(5):
      assert ramp.samples.acquire(timeout=10)
  first, last = 0.5, ramp.now
  assert last - first >= 2
  # A line's trapezoids are its integral, wherever the samples lie.
  area = 100 * (last - first) + 10 * (last**2 - first**2) / 2
  assert meter.watts == pytest.approx(area / (last - first))


def test_a_short_use_is_sampled_at_both_ends():
  values = iter([200.0, 300.0])
  with power.Meter([], read=lambda: next(values), interval=60) as meter:
    time.sleep(0.02)
  assert meter.watts == pytest.approx(250)


def test_samples_come_while_something_else_runs():
  seen = []

  def read():
    seen.append(threading.current_thread())
    return 1.0

  with power.Meter([], read=read, interval=1e-3):
    end = time.monotonic() + 10
    while len(seen) < 20 and time.monotonic() < end:
      pass
  assert len(seen) >= 20
  assert seen[5] is not threading.current_thread()
  count = len(seen)
  time.sleep(0.02)
  assert len(seen) == count


def test_a_reader_that_breaks_on_the_way_leaves_no_figure():
  values = iter([100.0, 100.0])
  broke = threading.Event()

  def read():
    try:
      return next(values)
    except StopIteration:
      broke.set()
      raise errors.RunError('The sensor went away.') from None

  with power.Meter([], read=read, interval=1e-3) as meter:
    assert broke.wait(10)
  assert meter.watts is None


def test_a_machine_without_gpu_gives_no_figure():
  with power.Meter(jax.devices()) as meter:
    pass
  assert meter.watts is None
  with pytest.raises(errors.RunError, match=r'Only .* NVIDIA GPUs'):
    power.nvml_reader(jax.devices())


def gpu(index):
  return types.SimpleNamespace(platform='gpu', local_hardware_id=index)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pynvml', None)
  with power.Meter([gpu(0)]) as meter:
    pass
  assert meter.watts is None
  with pytest.raises(errors.RunError, match='pip install nvidia-ml-py'):
    power.nvml_reader([gpu(0)])


class FakeNvml:
  """Devices of 1000, 2000, ... milliwatts."""

  class NVMLError(Exception):
    pass

  def __init__(self, *, works=True):
    self.works = works

  def nvmlInit(self):
    if not self.works:
      raise self.NVMLError('Driver Not Loaded')

  def nvmlDeviceGetHandleByIndex(self, index):
    return index

  def nvmlDeviceGetHandleByUUID(self, name):
    return {'GPU-a': 6, 'GPU-b': 7}[name]

  def nvmlDeviceGetPowerUsage(self, handle):
    return 1000 * (handle + 1)


@pytest.mark.parametrize(
  ('visible', 'indices', 'watts'),
  [
    (None, [0], 1),
    (None, [0, 3], 1 + 4),
    ('2,5', [0, 1], 3 + 6),
    ('2,5', [1], 6),
    ('GPU-b, GPU-a', [0], 8),
  ],
)
def test_the_watts_are_of_the_gpus_in_use(monkeypatch, visible, indices, watts):
  monkeypatch.setitem(sys.modules, 'pynvml', FakeNvml())
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if visible:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  assert power.nvml_reader([gpu(i) for i in indices])() == watts


def test_an_error_of_nvml_leaves_no_figure(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pynvml', FakeNvml(works=False))
  with power.Meter([gpu(0)]) as meter:
    pass
  assert meter.watts is None
  with pytest.raises(errors.RunError, match='Driver Not Loaded'):
    power.nvml_reader([gpu(0)])


@pytest.mark.gpu
def test_a_real_gpu_draws_some_watts():
  with power.Meter(jax.devices()[:1]) as meter:
    time.sleep(0.2)
  assert 1 < meter.watts < 2000
