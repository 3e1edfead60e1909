"""One process trains in a run's folder at a time."""

import errno
import os
import subprocess
import sys
import textwrap

from conftest import ROOT
import pytest

from skipnet_jax import errors
from skipnet_jax.runs import lock as lock_lib


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
  code = f"""
    import pathlib, sys, time
    from skipnet_jax.runs import lock
    file = lock.claim(pathlib.Path({str(tmp_path)!r}))
    print('mine', flush=True)
    sys.stdin.read()
    """
  first = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert first.stdout.readline() == 'mine\n'
    with pytest.raises(errors.InputError, match='in use by process') as e:
      lock_lib.claim(tmp_path)
    assert f'process {first.pid} on ' in str(e.value)
  finally:
    first.kill()
    first.communicate()
  lock_lib.claim(tmp_path).close()
  # Let go of by closing, too.
  lock_lib.claim(tmp_path).close()


def test_a_file_system_without_locks_gives_a_warning(
  tmp_path, monkeypatch, capsys
):
  def refuse(*_):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(lock_lib.fcntl, 'flock', refuse)
  lock_lib.claim(tmp_path).close()
  assert 'cannot be locked' in capsys.readouterr().err


@pytest.mark.parametrize(
  'kind', ['link', 'hard link', 'file', 'folder', 'pipe']
)
def test_a_lock_that_is_no_run_s_is_left_alone(tmp_path, kind):
  lock, mine = tmp_path / '.lock', tmp_path / 'mine'
  mine.write_bytes(b'\xff mine')
  make = {
    'link': lambda: lock.symlink_to(mine),
    'hard link': lambda: lock.hardlink_to(mine),
    'file': lambda: lock.write_bytes(mine.read_bytes()),
    'folder': lock.mkdir,
    'pipe': lambda: os.mkfifo(lock),
  }
  make[kind]()
  with pytest.raises(errors.InputError, match='lock is not the lock of a run'):
    lock_lib.claim(tmp_path)
  assert mine.read_bytes() == b'\xff mine'
  if kind == 'file':
    assert lock.read_bytes() == b'\xff mine'
  (lock.rmdir if kind == 'folder' else lock.unlink)()
  for _ in range(2):
    lock_lib.claim(tmp_path).close()
    assert lock.read_text().startswith(f'process {os.getpid()} on ')
