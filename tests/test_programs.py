"""The folder of compiled programs."""

import os
import re
import subprocess
import sys
import textwrap
import warnings
import zlib

from conftest import ROOT
import pytest

from skipnet_jax import programs

NAME = 'JAX_COMPILATION_CACHE_DIR'


@pytest.fixture
def cache(monkeypatch, tmp_path):
  """The folder where nothing else is given."""
  monkeypatch.setenv('SKIPNET_CACHE_DIR', str(tmp_path / 'cache'))
  monkeypatch.delenv(NAME, raising=False)
  with warnings.catch_warnings():
    yield tmp_path / 'cache' / 'compiled'


def test_an_unusable_folder_is_replaced(monkeypatch, cache, tmp_path):
  (tmp_path / 'file').write_text('')
  for given, used in {
    str(tmp_path / 'file'): cache,
    str(tmp_path / 'own'): tmp_path / 'own',
    '': '',
  }.items():
    monkeypatch.setenv(NAME, given)
    programs.keep()
    assert os.environ[NAME] == str(used)
  monkeypatch.delenv(NAME)
  programs.keep()
  assert os.environ[NAME] == str(cache)


def test_a_file_in_its_place_turns_it_off(cache, capsys):
  cache.parent.mkdir()
  cache.write_text('')
  programs.keep()
  assert os.environ[NAME] == ''
  assert f'warning: {cache} cannot be written' in capsys.readouterr().err


def test_damaged_programs_are_removed(cache, capsys):
  programs.keep()
  whole = zlib.compress(bytes(range(256)))
  contents = {'a-1': whole, 'a-2': whole[:-1], 'a-3': b'', 'ab-1': b''}
  for name, content in contents.items():
    (cache / f'{name}-cache').write_bytes(content)
  for _ in range(2):
    warnings.warn(
      "Error reading persistent compilation cache entry for 'a': zlib.error",
      stacklevel=1,
    )
  assert sorted(path.name for path in cache.iterdir()) == [
    *('a-1-cache', 'ab-1-cache'),
  ]
  err = capsys.readouterr().err
  assert err.count('is damaged or not complete: it is removed.\n') == 2
  assert err.count('\n') == 2
  assert programs.count() == 2


def test_jax_writes_a_damaged_program_anew(tmp_path):
  code = """
    import jax
    from skipnet_jax import programs
    programs.keep()
    def f(x):
      return x + 1
    print(jax.jit(f)(1))
  """

  def call():
    ended = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(code)],
      env=os.environ
      | {
        'PYTHONPATH': str(ROOT),
        NAME: str(tmp_path),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      },
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (0, '2\n'), ended.stderr
    return ended.stderr

  assert not call()
  (path,) = tmp_path.glob('jit_f-*-cache')
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  (line,) = call().splitlines()
  assert re.fullmatch(r'warning: The compiled program .* is removed\.', line)
  assert zlib.decompress(path.read_bytes())
  assert not call()


def test_the_least_time_is_expected(cache):
  programs.keep()
  assert programs.expected_seconds('a', 'net') == 0
  programs.record('a', 'net', 30.0, kept=False)
  # It will be read, in a time that is not known.
  assert programs.expected_seconds('a', 'net') == 0
  assert programs.expected_seconds('b', 'net') == 30
  programs.record('a', 'net', 3.0, kept=True)
  assert programs.expected_seconds('a', 'net') == 3
  assert programs.expected_seconds('b', 'net') == 30
  # A busy machine takes longer, once.
  programs.record('a', 'net', 88.0, kept=True)
  assert programs.expected_seconds('a', 'net') == 3
  programs.record('b', 'net', 5.0, kept=False)
  programs.record('c', 'net', 40.0, kept=False)
  assert programs.expected_seconds('b', 'net') == 0
  assert programs.expected_seconds('d', 'net') == 5
  (cache / 'seconds.json').write_text('{"a": "x"}')
  assert programs.expected_seconds('a', 'net') == 0


def test_without_a_folder_nothing_is_expected(monkeypatch):
  monkeypatch.setenv(NAME, '')
  programs.record('a', 'net', 3.0, kept=True)
  assert programs.expected_seconds('a', 'net') == 0
  assert programs.count() == 0
