"""Versions, git state, CPU cores and cache folder; without importing JAX."""

import atexit
from collections.abc import Iterable
import contextlib
import datetime
import functools
import importlib.metadata
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

from skipnet_jax import errors
from skipnet_jax import files

# `skipnet_jax.__main__` sets sys.argv[0] to one of these and a command's name.
PROGRAMS = ('skipnet', 'python -m skipnet_jax')
# Makes XLA's results on a GPU bit-identical every time.
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


def versions(packages: Iterable[str]) -> dict[str, str | None]:
  """Installed version of each package; None if it is not installed."""
  installed: dict[str, str | None] = {}
  for name in packages:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      installed[name] = None
  return installed


def as_called(text: str) -> str:
  """A text whose commands begin as this process's own.

  `python -m skipnet_jax.train` becomes `skipnet train` where `skipnet` was
  called.
  """
  program, _, _ = sys.argv[0].rpartition(' ')
  if program not in PROGRAMS:
    return text
  return re.sub(r'python -m skipnet_jax\.(\w+)', rf'{program} \1', text)


def command() -> str:
  """The command of this process, as a user types it in the checkout."""
  program, _, name = sys.argv[0].rpartition(' ')
  if program in PROGRAMS:
    return shlex.join([*program.split(), name, *sys.argv[1:]])
  root = pathlib.Path(__file__).resolve().parents[1]
  path = pathlib.Path(sys.argv[0]).resolve()
  words = [path.name]
  if path.suffix == '.py' and path.is_relative_to(root):
    path = path.relative_to(root)
    words = ['python', str(path)]
    if path.parts[0] == 'skipnet_jax':
      words = ['python', '-m', '.'.join(path.with_suffix('').parts)]
  return shlex.join([*words, *sys.argv[1:]])


def now() -> str:
  """The date and time in UTC, ISO 8601, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def expand_home(path: str) -> str:
  """Replaces a leading `~` or `~user` by that home folder, as a shell does.

  Raises:
    InputError: the home folder of this user is unknown.
  """
  expanded = os.path.expanduser(path)
  if expanded.partition('/')[0] == '~':
    raise errors.InputError(
      f'The home folder in {path} is unknown: set HOME, or give the whole path.'
    )
  return expanded


def cache_dir() -> pathlib.Path:
  """`$SKIPNET_CACHE_DIR`, or `~/.cache/skipnet_jax`; may not exist yet.

  If the home folder is unknown, it is a temporary folder.
  """
  try:
    return pathlib.Path(expand_home(_given_cache_dir()))
  except errors.InputError:
    return _temporary_dir()


def writable_cache_dir() -> pathlib.Path:
  """`cache_dir()`; if it cannot be written, a temporary folder.

  Raises:
    InputError: no temporary folder can be written either.
  """
  folder = cache_dir()
  return folder if can_write(folder) else _temporary_dir()


def can_write(folder: str | os.PathLike[str]) -> bool:
  """Whether files can be written to a folder; makes it if it is missing."""
  try:
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError:
    return False
  return True


def _given_cache_dir() -> str:
  return os.environ.get('SKIPNET_CACHE_DIR') or '~/.cache/skipnet_jax'


@functools.cache
def _temporary_dir() -> pathlib.Path:
  """It is removed when the process ends; a warning names it."""
  problem = (
    f'The cache folder {_given_cache_dir()} cannot be written: set '
    'SKIPNET_CACHE_DIR to a folder that can'
  )
  undo = contextlib.ExitStack()
  try:
    folder = undo.enter_context(files.temporary_folder('skipnet_jax-cache-'))
  except OSError as e:
    raise errors.InputError(f'{problem}.') from e
  print(
    f'warning: {problem}. This process uses {folder} and removes it at its '
    'end.',
    file=sys.stderr,
  )
  atexit.register(undo.close)
  return folder


def usable_cores() -> int:
  """Logical CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def git_state(root: pathlib.Path = pathlib.Path(__file__).parents[1]) -> str:
  """`git describe --always --dirty` of a checkout, by default the package's."""
  if not (root / '.git').exists():
    return 'not a checkout'
  try:
    return subprocess.run(
      ['git', '-C', str(root), 'describe', '--always', '--dirty'],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def set_deterministic() -> None:
  """Adds DETERMINISTIC to $XLA_FLAGS, before JAX first touches a device."""
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} {DETERMINISTIC}'
