"""Runs several measurements within a time budget; it can be resumed.

Each piece runs in its own process and writes its result to a file while it
runs. The folder gets a JSON file for each piece, summary.json and table.txt. A
piece that has finished is not run again. Results of another identity (another
config, code or device) are never replaced.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import time
from typing import Any

from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import tables

DONE, FAILED, SKIPPED, LEFT = 'done', 'failed', 'skipped', 'no time left'
INTERRUPTED = 'interrupted'
SUMMARY, TABLE = 'summary.json', 'table.txt'
# Differences of two identities that a message names.
NAMED = 4
Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Piece:
  """One measurement.

  Attributes:
    name: of its file.
    command: gets a path as its last argument and writes a JSON object there.
      `lines` of it are shown in the table; `skipped` is a reason for having
      measured nothing.
    limit: seconds that it may take.
  """

  name: str
  command: tuple[str, ...]
  limit: float = float('inf')


def code_hash() -> str:
  """A hash of the source of the package and the experiments."""
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
  say: Callable[[str], None],
  spent: float = 0.0,
  clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
  """Runs the unfinished pieces, and writes the summary before and after each.

  Ctrl-C keeps what the running piece has found.

  Args:
    pieces: the most important first.
    folder: created if it is missing.
    budget: seconds for all pieces; each may use all that is left, up to its own
      limit.
    identity: JSON values: what decides the results.
    say: called with each progress message.
    spent: seconds of the budget that have passed before this call.
    clock: gives seconds.

  Returns:
    The content of summary.json: identity, date, git, and pieces with name,
    status, seconds, error and lines.

  Raises:
    InputError: the budget is not positive, the folder cannot be created,
      another suite runs there, or it has files of these names that are not of
      a suite, or of another identity.
  """
  if not budget > 0:
    raise errors.InputError(
      f'The budget is {budget / 60:g} minutes; it must be above 0.'
    )
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.InputError(
      f'The folder {folder} cannot be created ({e.strerror}): choose another '
      '--output.'
    ) from e
  _check_files(folder, pieces)
  with _locked(folder):
    for path in _json_files(folder, pieces):
      _check_identity(path, identity)
    return _run_all(pieces, folder, budget - spent, identity, say, clock)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Locks a folder; its lock ends with this process in any case."""
  opened = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    # Some file systems of clusters have no locks.
    if e.errno in (errno.EAGAIN, errno.EACCES):
      os.close(opened)
      raise errors.InputError(
        f'Another process measures for {folder}: wait until it ends, or choose '
        'another --output.'
      ) from e
  try:
    yield
  finally:
    os.close(opened)


def _run_all(
  pieces: Sequence[Piece],
  folder: pathlib.Path,
  budget: float,
  identity: dict[str, Any],
  say: Callable[[str], None],
  clock: Callable[[], float],
) -> dict[str, Any]:
  end = clock() + budget
  entries = {piece.name: _read(folder, piece) for piece in pieces}
  # A full disk is found before anything is measured.
  _summarise(folder, identity, entries)
  for piece in pieces:
    if entries[piece.name]['status'] == DONE:
      say(f'{piece.name}: already finished')
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
    if entry['error'] == INTERRUPTED:
      raise KeyboardInterrupt
  return _summarise(folder, identity, entries)


def _check_files(folder: pathlib.Path, pieces: Sequence[Piece]) -> None:
  """Raises an InputError for a file that is not of a suite."""
  foreign = [
    path
    for path in _json_files(folder, pieces)
    if not {'identity', 'pieces' if path.name == SUMMARY else 'piece'}
    <= set(files.read_json(path))
  ]
  if folder / SUMMARY in foreign:
    foreign.append(folder / TABLE)
  remedy = 'it is no result of this tool; choose another --output'
  files.check_outputs(foreign, overwrite=False, remedy=remedy)


def _json_files(
  folder: pathlib.Path, pieces: Sequence[Piece]
) -> list[pathlib.Path]:
  names = [f'{piece.name}.json' for piece in pieces]
  return [folder / name for name in (*names, SUMMARY)]


def _check_identity(path: pathlib.Path, identity: dict[str, Any]) -> None:
  """Raises an InputError for a file of another identity; it may be missing."""
  stored = files.read_json(path).get('identity', identity)
  if stored == identity:
    return
  found = config_identity.differences(_flat(stored), _flat(identity))
  # A field of the config is the least likely to be all that differs.
  found.sort(key=lambda text: text.startswith('config.'))
  more = f' and {len(found) - NAMED} more' if len(found) > NAMED else ''
  raise errors.InputError(
    f'{path} was measured under other conditions: '
    f'{", ".join(found[:NAMED])}{more}; choose another --output.'
  )


def _flat(value: Any, name: str = '') -> dict[str, Any]:
  """Dotted names to values."""
  if not isinstance(value, dict) or (name and not value):
    return {name: value}
  flat: dict[str, Any] = {}
  for key, one in value.items():
    flat |= _flat(one, f'{name}.{key}' if name else key)
  return flat


def _read(folder: pathlib.Path, piece: Piece) -> Entry:
  """The stored entry of a piece that has finished; otherwise an empty one."""
  record = files.read_json(folder / f'{piece.name}.json')
  if record.get('status') == DONE:
    return {k: record[k] for k in ('status', 'seconds', 'error', 'result')}
  return {'status': LEFT, 'seconds': None, 'error': None, 'result': None}


def _run(piece: Piece, left: float) -> Entry:
  limit = min(left, piece.limit)
  with files.temporary_folder('skipnet_jax-suite-') as home:
    path, log = home / 'result.json', home / 'log'
    error = None
    with log.open('w') as file:
      # A session of its own, so that its children can be killed with it: they
      # would keep the device.
      process = subprocess.Popen(
        [*piece.command, str(path)],
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      try:
        code = process.wait(limit)
      except subprocess.TimeoutExpired:
        why = 'its limit' if limit < left else 'when the budget was spent'
        error = f'stopped after {limit:.0f} s, {why}'
      except KeyboardInterrupt:
        error = INTERRUPTED
      finally:
        # The error means that all of them have ended.
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if error is None and code:
      output = [s.strip() for s in log.read_text().splitlines() if s.strip()]
      error = f'exit code {code}: {output[-1] if output else "no output"}'
      error += ''.join(f'\n{line}' for line in output[-20:-1])
    result = json.loads(path.read_text()) if path.exists() else None
  if error is None and result is None:
    error = 'it wrote no result'
  status = FAILED if error else DONE
  if not error and result and 'skipped' in result:
    status, error = SKIPPED, result['skipped']
  return {'status': status, 'error': error, 'result': result}


def _summarise(
  folder: pathlib.Path, identity: dict[str, Any], entries: dict[str, Entry]
) -> dict[str, Any]:
  rows = []
  for name, entry in entries.items():
    lines = (entry['result'] or {}).get('lines', [])
    shown = {k: entry[k] for k in ('status', 'seconds', 'error')}
    rows.append({'name': name, **shown, 'lines': lines})
  summary = {
    'identity': identity,
    'date': environment.now(),
    'git': environment.git_state(),
    'pieces': rows,
  }
  files.write_json(folder / SUMMARY, summary)
  files.write_whole(folder / TABLE, format_table(summary) + '\n')
  return summary


def format_table(summary: dict[str, Any]) -> str:
  """Status and lines of each piece, in 100 columns."""
  lines = []
  for row in summary['pieces']:
    took = '' if row['seconds'] is None else f'{row["seconds"]:.0f} s'
    cells = (row['name'], row['status'], took)
    lines.append(tables.line(cells, (-12, -12, 7), ' '))
    if row['error']:
      lines += tables.paragraph(f'    {row["error"].splitlines()[0]}', 4)
    lines += [f'    {line}' for line in row['lines']]
  return '\n'.join(lines)
