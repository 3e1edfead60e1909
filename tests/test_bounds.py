"""Floors and weak scaling against figures worked out by hand."""

import pytest

from skipnet_jax.benchmarking.aot import bounds
from skipnet_jax.benchmarking.timing import peaks

# 1e12 FLOPs, 1e10 bytes of memory and 1e9 bytes of links a second.
PEAK = peaks.Peak(1, None, 10, 16, 1, 'made up')
SENDS = {'all-reduce': {'count': 3, 'bytes': 8 * 10**6}}


def test_each_floor_is_an_amount_over_its_rate():
  times = bounds.floors(5e9, 2e8, SENDS, 4, PEAK)
  assert times == pytest.approx(
    {
      'compute_s': 0.005,
      'memory_s': 0.020,
      # 2 * 3/4 of 8 MB.
      'collective_s': 0.012,
      'launch_s': None,
      'step_s': 0.020,
      'bound': 'memory',
    }
  )


@pytest.mark.parametrize(
  ('flops', 'moved', 'devices', 'bound'),
  [
    (3e10, 2e8, 4, 'compute'),
    (1e9, 1e7, 4, 'collective'),
    (1e9, 1e8, 1, 'memory'),
  ],
)
def test_the_largest_floor_binds(flops, moved, devices, bound):
  times = bounds.floors(flops, moved, SENDS, devices, PEAK)
  assert times['bound'] == bound
  assert times['step_s'] == times[f'{bound}_s']


def test_a_figure_that_is_not_known_gives_no_floor():
  silent = peaks.Peak(1, None, 10, 16, None, 'made up')
  times = bounds.floors(None, 2e8, SENDS, 4, silent)
  assert times['compute_s'] is None
  assert times['collective_s'] is None
  assert times['step_s'] == pytest.approx(0.02)
  assert bounds.weak_scaling(times, SENDS, 2, silent, 4, 8) == []


def test_weak_scaling_loses_what_the_ring_takes():
  times = bounds.floors(5e9, 2e8, SENDS, 4, PEAK)
  table = bounds.weak_scaling(times, SENDS, 2, PEAK, 4, 256)
  assert [row['devices'] for row in table] == [2**i for i in range(9)]
  assert table[0]['efficiency'] == 1
  assert table[0]['images_per_second'] == pytest.approx(2 / 0.020)
  # Two devices: 8 MB in 8 ms after 20 ms; many: at most 16 ms.
  assert table[1]['efficiency'] == pytest.approx(20 / 28)
  assert table[1]['images_per_second'] == pytest.approx(4 / 0.028)
  assert 20 / 36 < table[-1]['efficiency'] < 20 / 35.9


def test_what_is_gathered_grows_with_the_devices():
  gathered = {'all-gather': {'count': 1, 'bytes': 4 * 10**6}}
  times = bounds.floors(5e9, 2e8, gathered, 4, PEAK)
  table = bounds.weak_scaling(times, gathered, 2, PEAK, 4, 72)
  assert [row['devices'] for row in table] == [1, 2, 4, 8, 16, 32, 64]
  # Each passes on a million bytes of every other one, in 1 ms.
  assert [row['collective_s'] for row in table] == pytest.approx(
    [1e-3 * (2**i - 1) for i in range(7)]
  )


def test_kernels_take_at_least_their_launches():
  times = bounds.floors(1e9, 2e7, SENDS, 1, PEAK, launches=2000)
  assert times['launch_s'] == pytest.approx(0.004)
  assert times['bound'] == 'launch'
  table = bounds.weak_scaling(times, SENDS, 2, PEAK, 4, 2)
  # Two devices: 8 MB in 8 ms after 4 ms.
  assert [row['step_s'] for row in table] == pytest.approx([0.004, 0.012])


def test_each_kernel_takes_the_longer_of_a_launch_and_its_bytes():
  kernels = [{'bytes': 10, 'runs': 3}, {'bytes': 10**6, 'runs': 2}]
  assert bounds.one_by_one(kernels, PEAK) == pytest.approx(3 * 2e-6 + 2 * 1e-4)
