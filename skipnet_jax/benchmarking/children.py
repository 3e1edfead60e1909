"""Fresh processes that measure, one after the other.

A number measured in one process may be that process's luck. The parent touches
no device, so that each child has the machine to itself.
"""

from collections.abc import Callable
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

from skipnet_jax import errors
from skipnet_jax.benchmarking import journal as journal_lib

Say = Callable[[str], None]
Journal = journal_lib.Journal


def measure(config: dict[str, Any], processes: int, say: Say) -> list[Journal]:
  """Measures everything in each of several processes.

  What the first one found is kept: the largest batches, the rows that do not
  fit, and the compiled programs.

  Args:
    config: of the whole experiment, as JSON values.
    processes: how many.
    say: told what they print.

  Returns:
    Their journals.

  Raises:
    InputError, RunError: as `rows.measure_all`.
  """
  journals: list[Journal] = []
  with tempfile.TemporaryDirectory(prefix='skipnet_jax_benchmark_') as home:
    for number in range(processes):
      path = pathlib.Path(home, f'{number}.json')
      journal = Journal(path, config=config)
      journal.cache, journal.first = str(pathlib.Path(home, 'programs')), True
      if journals:
        journal.first = False
        journal.largest = journals[0].largest
        for one in journals:
          journal.rows |= {k: v for k, v in one.rows.items() if v['error']}
      say(f'Process {number + 1} of {processes}')
      journals.append(_finish(journal, path, pathlib.Path(home, 'cache'), say))
  return journals


def _finish(
  journal: Journal, path: pathlib.Path, cache: pathlib.Path, say: Say
) -> Journal:
  """Starts a process for a journal, and another where one is killed."""
  journal.save()
  while True:
    code, complaint = _run(path, cache, say)
    if code == 0:
      print(complaint, end='', file=sys.stderr)
      return Journal.read(path)
    if code > 0:
      _raise(code, complaint)
    journal = Journal.read(path)
    name = signal.Signals(-code).name
    if journal.at is None:
      raise errors.RunError(
        f'The measuring process was killed ({name}) before it measured '
        f'anything: {_last_line(complaint)}'
      )
    say(f'    killed ({name})')
    # It goes on after what it died of.
    journal.trials[journal.at] = (
      f'the process was killed ({name}), as it is when memory runs out'
    )
    journal.at = None
    journal.save()


def _run(path: pathlib.Path, cache: pathlib.Path, say: Say) -> tuple[int, str]:
  """Exit code of a process, and what it wrote to standard error."""
  root = str(pathlib.Path(__file__).parents[2])
  python_path = os.pathsep.join(
    filter(None, [root, os.environ.get('PYTHONPATH')])
  )
  environment = os.environ | {'PYTHONPATH': python_path}
  # What is not measured need not be compiled again in each process.
  environment.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
  command = [sys.executable, '-m', 'skipnet_jax.benchmark', f'--child={path}']
  with tempfile.TemporaryFile('w+') as complaint:
    process = subprocess.Popen(
      command,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=complaint,
      text=True,
    )
    assert process.stdout is not None  # A pipe was asked for.
    try:
      for line in process.stdout:
        say(line.rstrip('\n'))
      process.wait()
    finally:
      process.kill()
      process.stdout.close()
      process.wait()
    complaint.seek(0)
    return process.returncode, complaint.read()


def _raise(code: int, complaint: str) -> None:
  last = _last_line(complaint)
  if not last.startswith('error: '):
    # Nobody foresaw it: all that there is to read.
    print(complaint, end='', file=sys.stderr)
    raise errors.RunError(f'The measuring process failed: {last}')
  error = errors.InputError if code == 2 else errors.RunError
  raise error(last.removeprefix('error: '))


def _last_line(text: str) -> str:
  lines = [line for line in text.splitlines() if line.strip()]
  return lines[-1].strip() if lines else 'it said nothing.'
