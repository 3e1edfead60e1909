"""Turns on a clock that only the calls move."""

from skipnet_jax.benchmarking.timing import turns


class Track:
  """A clock, and calls that move it and leave their names."""

  def __init__(self):
    self.now = 0.0
    self.ran = []

  def clock(self):
    return self.now

  def runner(self, name, seconds):
    durations = iter(seconds)

    def call():
      self.ran.append(name)
      self.now += next(durations)

    return call


def twice(durations):
  """Before the call that counts, one of another length in each turn."""
  return [x for pair in ((5 + d, d) for d in durations) for x in pair]


def test_rounds_alternate_and_only_second_calls_after_warm_up_count():
  track = Track()
  calls = {
    'a': track.runner('a', twice([9.0, 1.0, 2.0, 3.0])),
    'b': track.runner('b', twice([8.0, 0.5, 1.5, 2.5])),
    'c': track.runner('c', twice([7.0, 4.0, 4.0, 4.0])),
  }
  timings = turns.take_turns(calls, rounds=3, clock=track.clock)
  assert ''.join(track.ran) == 'aabbccccbbaa' * 2
  assert timings['a'].seconds == (1.0, 2.0, 3.0)
  assert timings['b'].seconds == (0.5, 1.5, 2.5)
  assert timings['c'].summary()['warmup'] == 1


def test_a_call_that_fails_is_reported_with_its_reason():
  track = Track()

  def broken():
    raise RuntimeError('no compiler found\nand a long report')

  said = []
  found = turns.first_calls(
    {'good': track.runner('good', [2.0]), 'bad': broken},
    say=said.append,
    clock=track.clock,
  )
  assert found == {
    'good': {'first_call_s': 2.0, 'error': None},
    'bad': {'first_call_s': None, 'error': 'no compiler found'},
  }
  assert len(said) == 2


def test_ratios_are_taken_pair_by_pair():
  found = turns.ratio([1.0, 4.0, 9.0, 1.0, 5.0], [2.0, 2.0, 3.0, 4.0, 5.0])
  assert found == {
    'pairs': [0.5, 2.0, 3.0, 0.25, 1.0],
    'median': 1.0,
    'q25': 0.5,
    'q75': 2.0,
    'min': 0.25,
    'max': 3.0,
  }
