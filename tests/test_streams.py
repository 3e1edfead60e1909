"""Random streams: each name and each step has a key of its own."""

import itertools

import jax
import pytest

from skipnet_jax import streams


def words(key):
  return tuple(jax.random.key_data(key).tolist())


def test_no_two_streams_or_steps_share_a_key():
  names = ('init', 'order', 'augment', 'dropout')
  found = {
    words(streams.key_at(jax.random.key(seed), name, step))
    for seed, name, step in itertools.product((0, 1), names, (0, 1, 2))
  }
  assert len(found) == 2 * len(names) * 3


def test_a_key_is_a_function_of_its_arguments():
  first, again = (
    words(streams.key_at(jax.random.key(7), 'order', 5)) for _ in range(2)
  )
  assert first == again
  with pytest.raises(ValueError, match='not in tuple'):
    streams.key_at(jax.random.key(7), 'noise')
