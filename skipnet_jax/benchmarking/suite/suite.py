"""Pieces of work in order of worth, within a budget of time, resumable.

Each piece is a process of its own, which writes what it has found to a file as
it goes. The folder gets a JSON file for each piece, summary.json and table.txt.
A piece that finished with the same identity is not run again.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
from typing import Any

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import tables

DONE, FAILED, SKIPPED, LEFT = 'done', 'failed', 'skipped', 'no time left'
Say = Callable[[str], None]
Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Piece:
  """A piece of work.

  Attributes:
    name: of its file.
    command: writes a JSON object to the file whose path is appended; a key
      `skipped` in it says why there was nothing to do, `lines` is what the
      table shows.
  """

  name: str
  command: tuple[str, ...]


def code_hash() -> str:
  """Of the package's and the experiments' source, committed or not."""
  root = pathlib.Path(__file__).parents[3]
  digest = hashlib.sha256()
  for folder in ('skipnet_jax', 'experiments'):
    for path in sorted((root / folder).rglob('*.py')):
      digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return digest.hexdigest()[:16]


def run(
  pieces: Sequence[Piece],
  folder: pathlib.Path,
  *,
  budget: float,
  identity: dict[str, Any],
  say: Say,
  clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
  """Runs what is not finished yet, and writes the summary after each piece.

  Args:
    pieces: in order of worth.
    folder: made if it is missing.
    budget: seconds for all; a piece may take what is left.
    identity: JSON values; a finished piece of another identity is run again.
    say: told what is run and how it ended.
    clock: gives seconds.

  Returns:
    What summary.json has: identity, date, pieces (name, status, seconds, error,
    lines of each).

  Raises:
    InputError: no budget, or a folder that cannot be written.
  """
  if not budget > 0:
    raise errors.InputError(
      f'The budget is {budget / 60:g} minutes; it must be above 0.'
    )
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.InputError(
      f'The folder {folder} cannot be made ({e.strerror}): choose another '
      '--output.'
    ) from e
  end = clock() + budget
  entries = {piece.name: _read(folder, piece, identity) for piece in pieces}
  for piece in pieces:
    if entries[piece.name]['status'] == DONE:
      say(f'{piece.name}: finished before')
      continue
    left = end - clock()
    if left <= 0:
      say(f'{piece.name}: no time left')
      continue
    say(f'{piece.name}: starts, {left:.0f} s left')
    start = clock()
    entry = _run(piece, left) | {'seconds': clock() - start}
    entries[piece.name] = entry
    record = {'piece': piece.name, 'identity': identity, **entry}
    files.write_json(folder / f'{piece.name}.json', record)
    say(f'{piece.name}: {entry["status"]} {entry["error"] or ""}'.rstrip())
    _summarise(folder, identity, entries)
  return _summarise(folder, identity, entries)


def _read(folder: pathlib.Path, piece: Piece, identity: dict) -> Entry:
  """What a piece's file says if it finished; otherwise that it did not run."""
  record = files.read_json(folder / f'{piece.name}.json')
  same = record.get('identity') == identity and record.get('status') == DONE
  if same:
    return {k: record[k] for k in ('status', 'seconds', 'error', 'result')}
  return {'status': LEFT, 'seconds': None, 'error': None, 'result': None}


def _run(piece: Piece, limit: float) -> Entry:
  with tempfile.TemporaryDirectory(prefix='skipnet_jax_suite_') as home:
    path, log = pathlib.Path(home, 'result.json'), pathlib.Path(home, 'log')
    error = None
    with log.open('w') as file:
      # With its children: they must not hold the device after it.
      process = subprocess.Popen(
        [*piece.command, str(path)],
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      try:
        code = process.wait(limit)
      except subprocess.TimeoutExpired:
        error = f'stopped after {limit:.0f} s, when the budget was spent'
      finally:
        _end(process)
    if error is None and code:
      said = [s.strip() for s in log.read_text().splitlines() if s.strip()]
      error = f'exit code {code}: {said[-1] if said else "it said nothing"}'
      error += ''.join(f'\n{line}' for line in said[-20:-1])
    result = json.loads(path.read_text()) if path.exists() else None
  if error is None and result is None:
    error = 'it wrote no result'
  status = FAILED if error else DONE
  if not error and result and 'skipped' in result:
    status, error = SKIPPED, result['skipped']
  return {'status': status, 'error': error, 'result': result}


def _end(process: subprocess.Popen) -> None:
  # Unless all of them have ended.
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def _summarise(
  folder: pathlib.Path, identity: dict[str, Any], entries: dict[str, Entry]
) -> dict[str, Any]:
  rows = []
  for name, entry in entries.items():
    result = entry['result'] or {}
    kept = {k: entry[k] for k in ('status', 'seconds', 'error')}
    rows.append({'name': name, **kept, 'lines': result.get('lines', [])})
  summary = {
    'identity': identity,
    'date': environment.now(),
    'git': environment.git_state(),
    'pieces': rows,
  }
  files.write_json(folder / 'summary.json', summary)
  files.write_whole(folder / 'table.txt', format_table(summary) + '\n')
  return summary


def format_table(summary: dict[str, Any]) -> str:
  """How each piece ended, and what it found, in 100 columns."""
  lines = []
  for row in summary['pieces']:
    took = '' if row['seconds'] is None else f'{row["seconds"]:.0f} s'
    cells = (row['name'], row['status'], took)
    lines.append(tables.line(cells, (-12, -12, 7), ' '))
    if row['error']:
      lines += tables.paragraph(f'    {row["error"].splitlines()[0]}', 4)
    for line in row['lines']:
      lines.append(f'    {line}')
  return '\n'.join(lines)
