"""How the words of a command are read."""

import shutil

from absl import flags
from conftest import ROOT
import pytest

from skipnet_jax import command_line

CONFIG = f'--config={ROOT}/experiments'


def test_fields_are_set_by_name(command):
  outcome = command(
    'train',
    f'{CONFIG}/long_short.py:smoke',
    '--describe',
    '--config.model.repetitions=(1, 1, 1, 3, 1, 1, 1)',
    '--config.model.long_skips=False',
  )
  assert outcome.code == 0
  assert 'across/block_3/conv_1 ' in outcome.out
  assert 'long_skip' not in outcome.out


@pytest.mark.parametrize(
  'words',
  [
    ['--compare', 'a.json', 'b.json', '--overwrite'],
    ['--compare=a.json', 'b.json', '--overwrite'],
    ['--compare=a.json', '--compare=b.json', '--overwrite'],
    ['--overwrite', '--compare', 'a.json', 'b.json'],
  ],
)
def test_a_flag_may_take_several_words(words):
  found = command_line.repeat_flag('compare', ['benchmark', *words])
  assert found[0] == 'benchmark'
  assert sorted(found[1:]) == [
    '--compare=a.json',
    '--compare=b.json',
    '--overwrite',
  ]
  assert found.index('--compare=a.json') < found.index('--compare=b.json')


def test_what_a_flag_needs_is_in_words():
  known = flags.FlagValues()
  for name, bounds in {'a': (2, None), 'b': (1, 5), 'c': (None, 0)}.items():
    flags.DEFINE_integer(name, None, '', *bounds, flag_values=known)
  flags.DEFINE_float('d', None, '', 0.5, flag_values=known)
  flags.DEFINE_enum('e', None, ['x', 'y'], '', flag_values=known)
  flags.DEFINE_list('f', None, '', flag_values=known)
  assert {name: command_line._need(known[name]) for name in known} == {
    'a': 'a whole number of at least 2',
    'b': 'a whole number of at least 1 and at most 5',
    'c': 'a whole number of at most 0',
    'd': 'a number of at least 0.5',
    'e': 'one of x, y',
    'f': '',
  }


def test_a_value_outside_the_bounds_of_a_tool(command):
  done = command('tools/em_membranes.py', '--folds=7')
  assert done.code == 2
  assert done.err == (
    "error: --folds is '7'; give a whole number of at least 1 and at most 5.\n"
  )


def test_words_after_other_flags_stay_as_they_are():
  argv = ['benchmark', '--output', 'b.json', 'stray', '--compared', 'x', '-v']
  assert command_line.repeat_flag('compare', argv) == argv


def test_the_last_value_of_a_field_counts(command):
  fields = ['batches=(1,)', 'batches=(4,)', 'batches=(2,)', 'repetitions=3']
  done = command(
    'benchmark',
    f'{CONFIG}/benchmark.py:smoke',
    *(f'--config.benchmark.{field}' for field in fields),
    '--describe',
  )
  assert done.code == 0, done
  assert 'batch 2' in done.out
  assert 'each row 3 times' in done.out
  assert not {'batch 1', 'batch 4'} & {
    line.partition('float32 ')[2]
    for line in done.out.splitlines()
    if 'train' in line
  }
  words = ['--config.a=1', '-config.a=2', '--output=x', '--output=y']
  assert command_line.last_of_each(words) == words[1:]


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('benchmark', ('--config=long_short', '--output=a.json', '--aot=')),
    ('predict', ('--workdir=a', '--input=b', '--output=c', '--overlay=')),
    ('evaluate', ('--prediction=a', '--labels=b', '--panels=')),
    ('gradflow', ('--runs=,',)),
  ],
)
def test_a_flag_without_a_value_is_refused(command, name, flags):
  # As of a variable of the shell that is not set.
  outcome = command(name, *flags)
  assert outcome.code == 2
  flag = flags[-1].partition('=')[0]
  assert f'{flag} is given without a value: give one' in outcome.err


def test_a_tilde_is_expanded_in_every_flag(command, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  config = tmp_path / 'own.py'
  shutil.copy(f'{ROOT}/experiments/long_short.py', config)
  (tmp_path / 'run').write_text('')
  odd = tmp_path / 'a:b'
  odd.mkdir()
  shutil.copy(config, odd)
  for path in (odd / 'own.py', f'{odd}/own.py:smoke'):
    outcome = command('train', f'--config={path}', '--workdir=~/run/run')
    assert f'The workdir {tmp_path}/run/run cannot be written' in outcome.err
  outcome = command('train', f'--config={odd}/no.py', '--workdir=~/run/run')
  assert f'{odd}/no.py cannot be used' in outcome.err
  outcome = command('train', '--config=~/own.py:smoke', '--workdir=~/run/run')
  assert f'The workdir {tmp_path}/run/run cannot be written' in outcome.err
  outcome = command('gradflow', '--runs=~/a,~/b', f'--output={tmp_path}/c')
  assert f'{tmp_path}/a/config.json does not exist' in outcome.err
  outcome = command('predict', '--workdir=,', '--input=a', '--output=b')
  assert '--workdir is given without a value' in outcome.err
  outcome = command('benchmark', '--compare', '~/a.json', '~/b.json')
  assert f'{tmp_path}/a.json' in outcome.err
