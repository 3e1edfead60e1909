"""Where JAX keeps compiled programs for later commands, and how long they took.

JAX never replaces a file of this folder, not even one that a killed process or
a full disk left cut.
"""

from collections.abc import Callable
import functools
import glob
import os
import pathlib
import re
import sys
from typing import Any
import warnings
import zlib

from skipnet_jax import environment
from skipnet_jax import files

_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
# JAX's warning.
_FAILED = 'Error (?:reading|writing) persistent compilation cache entry for '
# Least seconds of each compilation by key, so that a busy machine is forgotten;
# 0: kept now, so that it will be shorter.
_SECONDS = 'seconds.json'


def keep() -> None:
  """Names the folder, and removes the damaged programs that JAX finds there.

  A setting of the user is kept; an empty one turns it off.

  Raises:
    InputError: no folder can be written.
  """
  given = os.environ.get(_VARIABLE)
  if given is None or (given and not environment.can_write(given)):
    folder = environment.writable_cache_dir() / 'compiled'
    os.environ[_VARIABLE] = str(folder)
    if not environment.can_write(folder):
      os.environ[_VARIABLE] = ''
      print(
        f'warning: {folder} cannot be written, so compiled programs are not '
        'kept: remove it, or make it writable.',
        file=sys.stderr,
      )
  warnings.filterwarnings('always', _FAILED)
  warnings.showwarning = functools.partial(_show, warnings.showwarning)


def _show(show: Callable[..., None], message: Any, *rest, **more) -> None:
  found = re.match(f"{_FAILED}'(.*?)'", str(message))
  folder = _folder()
  if not found or folder is None:
    show(message, *rest, **more)
    return
  for path in folder.glob(f'{glob.escape(found[1])}-*-cache'):
    if not _is_whole(path):
      # JAX writes it anew as soon as it is compiled.
      path.unlink(missing_ok=True)
      print(
        f'warning: The compiled program {path} is damaged or not complete: it '
        'is removed.',
        file=sys.stderr,
      )


def _is_whole(path: pathlib.Path) -> bool:
  try:
    # With zstandard, JAX writes another format: then all are removed.
    return bool(zlib.decompress(path.read_bytes()))
  except (OSError, zlib.error):
    return False


def _folder() -> pathlib.Path | None:
  given = os.environ.get(_VARIABLE)
  return pathlib.Path(given) if given else None


def count() -> int:
  """Number of programs that are kept."""
  folder = _folder()
  return sum(1 for _ in folder.glob('*-cache')) if folder else 0


def expected_seconds(own: str, similar: str) -> float:
  """The least time that it took before, see `record`; 0 if it is unknown."""
  folder = _folder()
  seconds = files.read_json(folder / _SECONDS) if folder else {}
  expected = seconds.get(own, seconds.get(similar, 0.0))
  return expected if isinstance(expected, int | float) else 0.0


def record(own: str, similar: str, seconds: float, *, kept: bool) -> None:
  """Keeps the time of a compilation, for `expected_seconds`.

  Args:
    own: names the program.
    similar: names all programs that take about as long.
    seconds: how long it took.
    kept: whether it was kept already, and therefore not compiled.
  """
  folder = _folder()
  if folder is None:
    return
  name = own if kept else similar
  least = min(seconds, expected_seconds(name, name) or seconds)
  new = {own: 0.0, name: least}
  try:
    files.write_json(
      folder / _SECONDS, files.read_json(folder / _SECONDS) | new
    )
  except OSError:
    # A full disk; training needs it for more important files.
    return
