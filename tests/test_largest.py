"""The search against brute force; what counts as out of memory."""

import types

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.benchmarking.timing import largest


@pytest.mark.parametrize('limit', [0, 1, 2, 3, 7, 8, 13, 15])
def test_small_batches_are_found_exactly(limit):
  assert largest.search(lambda n: n <= limit) == (limit, limit + 1)


@pytest.mark.parametrize('limit', range(16, 400, 13))
def test_larger_ones_to_an_eighth(limit):
  tried = []

  def fits(n):
    tried.append(n)
    return n <= limit

  low, high = largest.search(fits)
  assert low <= limit < high
  assert high - low <= low // 8
  assert {low, high} <= set(tried)
  # Doublings, then three halvings at most.
  assert len(tried) <= low.bit_length() + 1 + 3


def test_a_search_below_a_batch_never_tries_it_again():
  tried = []

  def fits(n):
    tried.append(n)
    return n <= 5

  assert largest.search(fits, 12) == (5, 6)
  assert max(tried) < 12


@pytest.mark.parametrize('limit', [1, 3, 40, 75, 300, 5000])
@pytest.mark.parametrize('error', [0.8, 1.0, 1.25])
def test_a_line_through_what_was_compiled_spares_trials(limit, error):
  # Bytes are a constant and a share for each example, badly predicted.
  room, points, tried = 100 + 7 * limit, [], []

  def fits(n):
    tried.append(n)
    points.append((n, error * (100 + 7 * n)))
    return 100 + 7 * n <= room

  low, high = largest.search(
    fits, expect=lambda: largest.extrapolate(points, room)
  )
  assert low <= limit < high
  assert high - low <= max(1, low // 8)
  assert len(tried) == len(set(tried)) <= 8


def test_where_a_line_reaches_a_limit():
  assert largest.extrapolate([(1, 10.0)], 100) is None
  assert largest.extrapolate([(1, 10.0), (2, 20.0)], 99) == 9
  assert largest.extrapolate([(4, 9.0), (1, 10.0), (3, 30.0)], 100) == 10
  # Not a line on which more examples need more.
  assert largest.extrapolate([(1, 10.0), (2, 10.0)], 100) is None
  assert largest.extrapolate([(1, 10.0), (2, 20.0)], 5) == 1


def test_what_jax_says_without_memory_is_recognised():
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jnp.zeros((2**45,), jnp.float32).block_until_ready()
  assert largest.out_of_memory(caught.value).startswith('out of memory: ')
  other = jax.errors.JaxRuntimeError('INVALID_ARGUMENT: shapes differ')
  assert largest.out_of_memory(other) == ''


def device(platform, limit=None):
  stats = None if limit is None else {'bytes_limit': limit}
  return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)


def test_a_program_larger_than_the_device_does_not_fit():
  gpu = device('gpu', 2**30)
  assert largest.shortage(2**30, [gpu] * 4) == ''
  assert largest.shortage(None, [gpu]) == ''
  why = largest.shortage(3 * 2**29, [gpu])
  assert 'needs 1.50 GiB, but only 1.00 GiB are available' in why


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
  monkeypatch.setattr(largest, 'memory_limit', lambda _: 1000)
  assert largest.shortage(300, [device('cpu')] * 3) == ''
  assert largest.shortage(300, [device('cpu')] * 4)


def test_the_memory_of_a_cpu_is_what_is_available():
  limit = largest.memory_limit(jax.devices('cpu')[0])
  assert 2**20 < limit < 2**50
  assert largest.memory_limit(device('gpu', 123)) == 123
