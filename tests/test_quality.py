"""Time to quality, with a clock that is made up."""

import itertools

import pytest

from skipnet_jax.benchmarking import quality
from skipnet_jax.training import prepare


class Made:
  """A run whose validation BCE falls by 0.1 an epoch, from 1 - seed / 100."""

  def __init__(self, config):
    self.start = 1 - config.seed / 100
    self.epoch = 0


@pytest.fixture
def measure(smoke, monkeypatch):
  made = []

  def validation(prepared, state):
    return lambda state: {'bce': made[-1].start - 0.1 * made[-1].epoch}

  class Epoch:
    def __init__(self, config, *args, **more):
      made.append(Made(config))

    def compile(self, state):
      pass

    def __call__(self, state):
      made[-1].epoch += 1
      return state, None

  monkeypatch.setattr(quality.epoch_lib, 'Epoch', Epoch)
  monkeypatch.setattr(quality.validation, 'Validation', validation)
  monkeypatch.setattr(prepare.build_lib.Training, 'create_state', lambda *_: 0)

  def call(bce, epochs):
    ticks = itertools.count(0, 1.5)
    config = smoke({'train.epochs': epochs})
    said = []
    found = quality.measure(config, bce, said.append, lambda: next(ticks))
    assert len(said) == sum(run['epochs'] for run in found['runs'])
    return found

  return call


def test_each_of_three_seeds_trains_until_the_bce_is_reached(measure):
  found = measure(0.79, 9)
  # The second epoch has 0.80, 0.79 and 0.78.
  assert [(r['seed'], r['epochs']) for r in found['runs']] == [
    (0, 3),
    (1, 2),
    (2, 2),
  ]
  assert all(run['seconds'] == 1.5 for run in found['runs'])
  assert found['seconds'] == 1.5
  # Eight slices in batches of four.
  assert found['runs'][0]['steps'] == 6
  text = quality.format_result(found)
  assert '3 of 3 seeds reached it, median 1.5 s' in text
  assert 'seed 0: 1.5 s, 3 epochs, 6 steps, BCE 0.7000' in text


def test_a_seed_that_does_not_reach_it_is_the_longest(measure):
  found = measure(0.79, 2)
  assert [run['seconds'] for run in found['runs']] == [None, 1.5, 1.5]
  assert found['seconds'] == 1.5
  found = measure(0.785, 2)
  assert [run['seconds'] for run in found['runs']] == [None, None, 1.5]
  assert found['seconds'] is None
  text = quality.format_result(found)
  assert '1 of 3 seeds reached it\n  seed 0: not reached, 2 epochs' in text
