"""Floors against arithmetic by hand; rates against what a machine can be."""

import jax
import pytest

from skipnet_jax.benchmarking.timing import roofline

RATES = {'copy_gb_s': 100.0, 'matrix_tflops': 2.0}


def test_the_longer_of_both_floors_binds():
  found = roofline.floors(4e12, 50e9, 8.0, RATES)
  assert found == {
    'flops_s': 2.0,
    'bytes_s': 0.5,
    'bound': 'flops',
    'floor_s': 2.0,
    'fraction': 0.25,
    'copy_gb_s': 100.0,
    'matrix_tflops': 2.0,
  }
  found = roofline.floors(1e11, 50e9, 0.25, RATES)
  assert found['bound'] == 'bytes'
  assert found['floor_s'] == 0.5
  # Faster than the floor says that the count is wrong: it is not hidden.
  assert found['fraction'] == 2.0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rates_are_those_of_a_computer(monkeypatch, dtype):
  monkeypatch.setattr(roofline, '_CPU', {'copy_mib': 8, 'matrix': 128})
  found = roofline.measure_rates(jax.devices()[0], dtype)
  assert 0.01 < found['copy_gb_s'] < 1e4
  assert 1e-6 < found['matrix_tflops'] < 1e3


def test_the_data_are_random_and_on_the_device(monkeypatch):
  monkeypatch.setattr(roofline, '_CPU', {'copy_mib': 8, 'matrix': 128})
  seen = []

  def look(call, *, warmup, repetitions):
    seen.append(call())
    return roofline.measure.Timing(warmup, (1.0,))

  monkeypatch.setattr(roofline.measure, 'time_calls', look)
  roofline.measure_rates(jax.devices()[3], 'float32')
  for result in seen:
    assert result.devices() == {jax.devices()[3]}
    assert result.std() > 0.9
  # The array, and a product whose entries are sums of 128 products.
  assert [result.size for result in seen[::2]] == [2**21, 128**2]


def test_work_is_counted_from_the_sizes(monkeypatch):
  monkeypatch.setattr(roofline, '_CPU', {'copy_mib': 8, 'matrix': 128})

  calls = []

  def took_a_second(call, *, warmup, repetitions):
    call()
    calls.append((warmup, repetitions))
    return roofline.measure.Timing(warmup, (2.0, 1.0, 3.0))

  monkeypatch.setattr(roofline.measure, 'time_calls', took_a_second)
  for dtype in ('float32', 'bfloat16'):
    found = roofline.measure_rates(jax.devices()[0], dtype)
    # 8 MiB read and written; 128^3 multiplications and additions.
    assert found['copy_gb_s'] == pytest.approx(2 * 8 * 2**20 / 1e9)
    assert found['matrix_tflops'] == pytest.approx(2 * 128**3 / 1e12)
  # A second is too long for more than one.
  assert calls == [(1, 1), (0, 1)] * 4
  monkeypatch.setattr(roofline, '_SECONDS', 3.5)
  calls.clear()
  roofline.measure_rates(jax.devices()[0], 'float32')
  assert calls == [(1, 1), (0, 3)] * 2
