"""What a record says of versions, git and the machine."""

import datetime
import os
import subprocess
import sys

import conftest
import numpy as np

from skipnet_jax import environment


def test_versions_are_those_of_the_packages():
  found = environment.versions(['numpy', 'no-such-package'])
  assert found == {'numpy': np.__version__, 'no-such-package': None}


def test_the_command_is_named_without_its_folder(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['/somewhere/else/train.py', '--a=1'])
  assert environment.command() == 'train.py --a=1'


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
  tmp_path, monkeypatch
):
  monkeypatch.setattr(
    environment, '__file__', str(tmp_path / 'skipnet_jax' / 'environment.py')
  )
  assert environment.git_state() == 'not a checkout'

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
  commit = environment.git_state()
  assert git('rev-parse', 'HEAD').startswith(commit)
  (tmp_path / 'file').write_text('b')
  assert environment.git_state() == f'{commit}-dirty'


def test_git_state_is_unknown_where_git_does_not_answer(monkeypatch):
  assert (conftest.ROOT / '.git').exists()
  monkeypatch.setenv('PATH', '')
  assert environment.git_state() == 'unknown'
