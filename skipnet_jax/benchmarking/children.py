"""Starts the processes that measure, one after the other.

A time measured in a single process may be that process's luck. The parent uses
no device, so each child has the machine to itself.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.benchmarking import journal as journal_lib

Say = Callable[[str], None]
Journal = journal_lib.Journal
Keep = Callable[[Sequence[Journal]], None]


def measure(
  config: dict[str, Any],
  processes: int,
  say: Say,
  compile_again: Callable[[str], bool] = lambda platform: False,
  keep: Keep = lambda journals: None,
) -> list[Journal]:
  """Measures everything in each of several new processes.

  All use what the first one found: the largest batches, the rows that do not
  fit, and usually the compiled programs.

  Args:
    config: of the whole experiment, as JSON values.
    processes: how many.
    say: receives every line that they print.
    compile_again: whether each compiles its programs, by the devices' platform.
    keep: receives, before an error or an interruption ends it, the journals of
      the processes that have finished; if none has, that of the first.

  Returns:
    Their journals.

  Raises:
    InputError, RunError: as `rows.measure_all`.
  """
  journals: list[Journal] = []
  with files.temporary_folder('skipnet_jax-benchmark-') as home:
    for number in range(processes):
      path = home / f'{number}.json'
      journal = Journal(path, config=config, first=not journals)
      journal.cache = str(home / 'programs')
      if journals:
        journal.largest = journals[0].largest
        if compile_again(journals[0].about['hardware']['platform']):
          journal.cache = ''
      for one in journals:
        journal.rows |= {k: v for k, v in one.rows.items() if v['error']}
      say(f'Process {number + 1} of {processes}')
      journal.save()
      try:
        journals.append(_finish(journal, path, say))
      except BaseException:
        done = journals or [Journal.read(path)]
        if done[0].about and done[0].rows:
          keep(done)
        raise
  return journals


def _finish(journal: Journal, path: pathlib.Path, say: Say) -> Journal:
  """Runs a process for a journal, and another one each time it is killed."""
  while True:
    code, stderr = _run(path, say)
    if code == 0:
      print(stderr, end='', file=sys.stderr)
      return Journal.read(path)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else 'it printed no error.'
    if code > 0:
      if last.startswith('error: '):
        error = errors.InputError if code == 2 else errors.RunError
        raise error(last.removeprefix('error: '))
      # An unexpected error: shows its traceback.
      print(stderr, end='', file=sys.stderr)
      raise errors.RunError(f'The measuring process failed: {last}')
    journal = Journal.read(path)
    name = signal.Signals(-code).name
    if journal.current is None:
      raise errors.RunError(
        f'The measuring process was killed ({name}) before it measured '
        f'anything: {last}'
      )
    say(f'    killed ({name})')
    # The next process continues after the cell that killed this one.
    journal.trials[journal.current] = (
      f'the process was killed ({name}), as happens when memory runs out'
    )
    journal.current = None
    journal.save()


def _run(path: pathlib.Path, say: Say) -> tuple[int, str]:
  """Runs a process; returns its exit code and its standard error."""
  root = str(pathlib.Path(__file__).parents[2])
  python_path = [root, os.environ.get('PYTHONPATH')]
  environment = os.environ | {
    'PYTHONPATH': os.pathsep.join(filter(None, python_path))
  }
  command = [sys.executable, '-m', 'skipnet_jax.benchmark', f'--child={path}']
  with (
    tempfile.TemporaryFile('w+') as stderr,
    subprocess.Popen(
      command,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
    ) as process,
  ):
    try:
      for line in process.stdout or ():
        say(line.rstrip('\n'))
      process.wait()
    finally:
      process.kill()
    stderr.seek(0)
    return process.returncode, stderr.read()
