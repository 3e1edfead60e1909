"""Ctrl-C and SIGTERM end every command with one sentence."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from conftest import ROOT
import pytest

# The main of a command: `ready()` lets the test send its signals.
MAINS = {
  'in Python': """
    ready()
    time.sleep(60)
  """,
  # A compilation is such a call. It takes minutes.
  'in C': """
    ready()
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)
  """,
  # Imports of JAX and NumPy raise such an ImportError.
  'another error': """
    try:
      ready()
      time.sleep(60)
    except KeyboardInterrupt as e:
      sys.excepthook(type(e), e, None)
      raise ImportError from e
  """,
  # What the garbage collector calls cannot raise an error: JAX has such code.
  'lost': """
    class Slow:
      def __del__(self):
        ready()
        time.sleep(60)
    Slow()
    time.sleep(60)
  """,
  'before Python ends': """
    atexit.register(time.sleep, 60)
    try:
      ready()
      time.sleep(60)
    finally:
      signal.raise_signal(signal.SIGINT)
      pathlib.Path('removed').touch()
  """,
}
CODE = """
import atexit, hashlib, pathlib, signal, sys, time
from skipnet_jax import cli, signals
signals._GRACE = 0.5
def ready():
  print('ready', flush=True)
def main():
{}
cli.run(main, 'nothing was written.')
"""


def start(main):
  code = CODE.format(textwrap.indent(textwrap.dedent(main), '  '))
  return subprocess.Popen(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(
  ('main', 'number'),
  [(main, signal.SIGINT) for main in MAINS] + [('in C', signal.SIGTERM)],
)
def test_a_signal_ends_a_command(tmp_path, monkeypatch, main, number):
  monkeypatch.chdir(tmp_path)
  process = start(MAINS[main])
  assert process.stdout.readline() == 'ready\n'
  begin = time.monotonic()
  process.send_signal(number)
  out, err = process.communicate(timeout=50)
  assert (process.returncode, err) == (128 + number, '')
  assert time.monotonic() < begin + 20
  word = 'Interrupted' if number == signal.SIGINT else 'Stopped by SIGTERM'
  assert out == f'\n{word}; nothing was written.\n'
  assert (tmp_path / 'removed').exists() == (main == 'before Python ends')


def test_a_signal_before_the_command_handles_it():
  code = """
    import os, signal
    from skipnet_jax import cli
    os.environ.pop('GLIBC_TUNABLES', None)
    execv = os.execv
    def restart(*arguments):
      # Blocked, so that it waits for the new process.
      os.kill(os.getpid(), signal.SIGINT)
      execv(*arguments)
    os.execv = restart
    cli.run(lambda: print('never'), 'nothing was written.')
  """
  if sys.platform != 'linux':
    pytest.skip('only Linux has large pages')
  # The new process finds the variable set.
  code = textwrap.dedent(code).replace(
    "os.environ.pop('GLIBC_TUNABLES', None)",
    "os.environ['GLIBC_TUNABLES'] in _NEW or os.environ.pop('GLIBC_TUNABLES')",
  )
  code = "_NEW = ('glibc.malloc.hugetlb=1',)\n" + code.lstrip()
  ended = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ
    | {'PYTHONPATH': str(ROOT), 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert (ended.returncode, ended.stderr) == (130, '')
  assert ended.stdout == '\nInterrupted; nothing was written.\n'


def test_a_command_in_the_background_ignores_ctrl_c():
  ended = subprocess.run(
    [
      *('bash', '-c', 'trap "" INT; exec "$0" "$@"', sys.executable, '-c'),
      'import signal\nfrom skipnet_jax import cli\n'
      'cli.run(lambda: signal.raise_signal(signal.SIGINT))',
    ],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert (ended.returncode, ended.stdout, ended.stderr) == (0, '', '')


def test_a_signal_to_a_forked_process_is_not_one_to_its_parent():
  code = CODE.format(
    textwrap.indent(
      'import os\n'
      'forked = os.fork()\n'
      'if not forked:\n'
      '  time.sleep(60)\n'
      'time.sleep(0.5)\n'
      'os.kill(forked, signal.SIGTERM)\n'
      'print(os.waitpid(forked, 0)[1])\n'
      'time.sleep(1)\n'
      "print('done')",
      '  ',
    )
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.stdout == f'{int(signal.SIGTERM)}\ndone\n'
  assert done.returncode == 0
