"""What a record says of versions, git and the machine."""

import datetime
import importlib
import os
import subprocess
import sys
import tempfile

import conftest
import numba
import numpy as np
import pytest

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import scores


def test_versions_are_those_of_the_packages():
  found = environment.versions(['numpy', 'no-such-package'])
  assert found == {'numpy': np.__version__, 'no-such-package': None}


def test_the_command_is_what_a_user_types(monkeypatch):
  root, train = conftest.ROOT, 'python -m skipnet_jax.train'
  for program, typed in {
    # `python -m` puts the whole path there.
    str(root / 'skipnet_jax/train.py'): train,
    # Relative to the present folder, as a shell has it.
    os.path.relpath(root / 'tools/soak.py'): 'python tools/soak.py',
    '/somewhere/else/train.py': 'train.py',
    '/usr/bin/pytest': 'pytest',
  }.items():
    monkeypatch.setattr(sys, 'argv', [program, '--a=1'])
    assert environment.command() == f'{typed} --a=1'
  # A shell reads what it prints: without quotes, brackets are refused.
  monkeypatch.setattr(sys, 'argv', ['/else/train.py', '--sizes=(1, 2)'])
  assert environment.command() == "train.py '--sizes=(1, 2)'"


def test_the_date_is_of_now_in_utc():
  date = datetime.datetime.fromisoformat(environment.now())
  assert date.utcoffset() == datetime.timedelta(0)
  age = datetime.datetime.now(datetime.UTC) - date
  assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)


def test_cores_are_those_of_this_process_not_of_the_machine(monkeypatch):
  monkeypatch.setattr(os, 'cpu_count', lambda: 64)
  # Where the system does not say it (macOS), all are taken as usable.
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {3, 5}, raising=False)
  assert environment.usable_cores() == 2
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert environment.usable_cores() == 64


def test_git_state_names_the_commit_and_whether_it_was_changed(
  tmp_path,
):
  assert environment.git_state(tmp_path) == 'not a checkout'

  def git(*arguments):
    identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    return subprocess.run(
      ['git', '-C', tmp_path, *identity, *arguments],
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()

  git('init')
  (tmp_path / 'file').write_text('a')
  git('add', 'file')
  git('commit', '-m', 'first')
  commit = environment.git_state(tmp_path)
  assert git('rev-parse', 'HEAD').startswith(commit)
  (tmp_path / 'file').write_text('b')
  assert environment.git_state(tmp_path) == f'{commit}-dirty'


def test_git_state_is_unknown_where_git_does_not_answer(monkeypatch):
  assert (conftest.ROOT / '.git').exists()
  monkeypatch.setenv('PATH', '')
  assert environment.git_state() == 'unknown'


def test_a_leading_tilde_is_a_home_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  root = os.path.expanduser('~root')
  for path, expanded in {
    '~': '/home/me',
    '~/a': '/home/me/a',
    '~root/a': f'{root}/a',
    # As in a shell.
    '~no_such_user/a': '~no_such_user/a',
    'a/~': 'a/~',
    '': '',
  }.items():
    assert environment.expand_home(path) == expanded
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  with pytest.raises(errors.InputError, match='in ~/a is unknown: set HOME'):
    environment.expand_home('~/a')


@pytest.fixture
def unusable_cache(monkeypatch, tmp_path):
  """A cache folder that is a file; its path."""
  path = tmp_path / 'file'
  path.write_text('')
  with monkeypatch.context() as patch:
    patch.setenv('SKIPNET_CACHE_DIR', str(path))
    patch.setenv('NUMBA_CACHE_DIR', str(path))
    environment._temporary_dir.cache_clear()
    yield path
    environment._temporary_dir.cache_clear()
  numba.config.reload_config()


def test_without_a_usable_cache_there_is_a_temporary_one(
  unusable_cache, monkeypatch, capsys
):
  # What it has can be read still.
  assert environment.cache_dir() == unusable_cache
  folder = environment.writable_cache_dir()
  assert folder.is_dir()
  assert environment.writable_cache_dir() == folder
  warning = capsys.readouterr().err
  assert warning.startswith(
    f'warning: The cache folder {unusable_cache} cannot'
  )
  assert str(folder) in warning
  assert warning.count('\n') == 1
  # An unknown home folder.
  monkeypatch.delenv('SKIPNET_CACHE_DIR')
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  assert environment.cache_dir() == folder


def test_without_any_folder_there_is_a_sentence(unusable_cache, monkeypatch):
  def broken(**_):
    raise FileNotFoundError('No usable temporary directory found')

  monkeypatch.setattr(tempfile, 'mkdtemp', broken)
  with pytest.raises(errors.InputError, match='set SKIPNET_CACHE_DIR to'):
    environment.writable_cache_dir()


def test_numba_keeps_its_functions_where_it_can_write(
  unusable_cache, monkeypatch
):
  importlib.reload(scores)
  # Beside their source.
  assert os.environ['NUMBA_CACHE_DIR'] == str(unusable_cache)
  can_write = environment.can_write
  monkeypatch.setattr(
    environment,
    'can_write',
    lambda folder: '__pycache__' not in str(folder) and can_write(folder),
  )
  importlib.reload(scores)
  folder = environment.writable_cache_dir() / 'numba'
  assert can_write(folder)
  assert str(folder) == numba.config.CACHE_DIR
