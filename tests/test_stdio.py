"""A command whose standard output or error is lost works to its end."""

import os
import pty
import subprocess
import sys
import textwrap
import time

from conftest import ROOT
import pytest

# More than a pipe and its buffers hold.
CODE = """
  import contextlib, os, pathlib, sys
  from skipnet_jax import cli
  def main():
    opened = os.open('opened', os.O_RDWR | os.O_CREAT)
    assert opened > 2, opened
    with contextlib.suppress(OSError):
      os.write(2, b'a message of a library')
    with contextlib.suppress(OSError):
      sys.stdin and sys.stdin.readline()
    for _ in range(30_000):
      print('a line', flush=True)
    print('a warning', file=sys.stderr)
    pathlib.Path('done').touch()
  cli.run(main)
"""


def start(folder, redirections, before='', **options):
  return subprocess.Popen(
    [
      *('bash', '-c', f'{before} exec "$0" "$@" {redirections}'),
      *(sys.executable, '-c', textwrap.dedent(CODE)),
    ],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    **options,
  )


@pytest.mark.parametrize(
  ('redirections', 'code', 'error'),
  [
    ('>&-', 0, ''),
    ('2>&-', 0, ''),
    ('<&- >&- 2>&-', 0, ''),
    ('2>/dev/full', 0, ''),
    (
      '>/dev/full',
      1,
      'error: Standard output could not be written (No space left on device)',
    ),
  ],
)
def test_closed_and_full_streams(tmp_path, redirections, code, error):
  process = start(
    tmp_path,
    redirections,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  out, err = process.communicate(timeout=60)
  assert process.returncode == code, err
  assert (tmp_path / 'done').exists()
  assert not (tmp_path / 'opened').read_bytes()
  if '>&-' not in redirections.split() and code == 0:
    assert out.count('a line\n') == 30_000
  if '2>' not in redirections:
    assert 'Traceback' not in err
    assert error in err


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_reader_that_ends(tmp_path, monkeypatch, unbuffered):
  monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
  options = {'stdin': subprocess.DEVNULL, 'text': True}
  process = start(
    tmp_path, '', stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
  )
  assert process.stdout.readline() == 'a line\n'
  process.stdout.close()
  with process.stderr:
    err = process.stderr.read()
  assert process.wait(60) == 0, err
  assert err == 'a message of a librarya warning\n'
  assert (tmp_path / 'done').exists()


def test_a_pipe_that_does_not_block(tmp_path):
  read, write = os.pipe()
  os.set_blocking(write, False)
  process = start(tmp_path, '', stdin=subprocess.DEVNULL, stdout=write)
  os.close(write)
  with os.fdopen(read) as pipe:
    assert pipe.read().count('a line\n') == 30_000
  assert process.wait(60) == 0


def test_a_terminal_that_is_gone(tmp_path):
  ours, its = pty.openpty()
  process = start(
    tmp_path,
    '',
    stdin=its,
    stdout=its,
    stderr=its,
    start_new_session=True,
    # Training does this, see StopSignal.
    before="trap '' HUP;",
  )
  os.close(its)
  # Not before bash has set its trap: it would end with the terminal.
  end = time.monotonic() + 60
  while not (tmp_path / 'opened').exists():
    assert process.poll() is None
    assert time.monotonic() < end
    time.sleep(0.01)
  os.close(ours)
  assert process.wait(60) == 0
  assert (tmp_path / 'done').exists()
