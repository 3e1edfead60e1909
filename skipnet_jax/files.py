"""Writes files whole, and only where nothing of the user's is lost.

A reader sees the old file or the whole new one. The new file is written beside
the old one, under a hidden name that ends in .part, and renamed when it is on
the disk; a link is replaced, not followed. A part that a killed process left is
removed by the next one that writes the same file. A file that appears after
`check_outputs` found its name free is not replaced either. OSErrors pass to the
caller.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import csv
import errno
import fcntl
import glob
import io
import itertools
import json
import os
import pathlib
import secrets
import shutil
import stat
import sys
import tempfile
from typing import Any, BinaryIO, TextIO

from skipnet_jax import errors

Path = str | os.PathLike[str]
REMEDY = 'choose another name or pass --overwrite'
# Full disk, exceeded quota, exceeded limit on file sizes.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Places that `check_outputs` found free, and where nothing was written since.
_free: set[tuple[Any, ...]] = set()


class AppearedError(errors.InputError):
  """Another program wrote an output in the meantime; ours has another name."""


def check_outputs(
  outputs: Iterable[Path],
  *,
  overwrite: bool,
  inputs: Iterable[Path] = (),
  remedy: str = REMEDY,
) -> None:
  """Checks that a command loses nothing; call it before any work.

  Args:
    outputs: the files that it will write.
    overwrite: whether it may replace files that exist.
    inputs: files that it reads, or folders of slices. They are never replaced,
      whatever their names: links are followed here.
    remedy: against a file that exists.

  Raises:
    InputError: an output is an input, would be one more slice in its folder, is
      another output or a folder, has too long a name, or exists although
      `overwrite` is False.
  """
  read: set[tuple[Any, ...]] = set()
  folders: set[tuple[Any, ...]] = set()
  named: set[tuple[Any, ...]] = set()
  for path in map(pathlib.Path, inputs):
    read.add(_place(path))
    if os.path.isdir(path):
      folders.add(_place(path))
      # A folder that cannot be listed is refused when it is read.
      with contextlib.suppress(OSError):
        read |= {_place(file) for file in path.iterdir()}
  for path in map(pathlib.Path, outputs):
    place = _place(path)
    if place in read:
      raise errors.InputError(
        f'{path} would replace a file that this command reads: choose another '
        'name.'
      )
    if place in named:
      raise errors.InputError(
        f'{path} is named twice among the outputs: give every file a name of '
        'its own.'
      )
    named.add(place)
    if _place(path.parent) in folders:
      raise errors.InputError(
        f'{path} would be one more slice in the folder of the input: choose '
        'another folder.'
      )
    if os.path.isdir(path) and not path.is_symlink():
      raise errors.InputError(f'{path} is a folder: choose another name.')
    if os.path.lexists(path) and not overwrite:
      raise errors.InputError(f'{path} exists: {remedy}.')
    try:
      os.lstat(_part(path))
    except OSError as e:
      if e.errno == errno.ENAMETOOLONG:
        raise errors.InputError(
          f'The name of {path} is too long: choose a shorter one.'
        ) from e
    if not overwrite and not os.path.lexists(path):
      _free.add(_name(path))


def _name(path: pathlib.Path) -> tuple[Any, ...]:
  """What is equal for two ways to write one name; its links count."""
  return (*_place(path.parent), path.name)


def _place(path: pathlib.Path) -> tuple[Any, ...]:
  """What is equal for two names of one file, even of one that is missing."""
  path = pathlib.Path(os.path.realpath(path))
  try:
    found = path.stat()
  except OSError:
    # The root is never missing.
    return (*_place(path.parent), path.name)
  return found.st_dev, found.st_ino


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields an empty file, which replaces `path` at the end of the block.

  If the block raises, the file is removed and `path` is unchanged. A link at
  `path` is replaced, not followed.

  Raises:
    AppearedError: `check_outputs` found `path` free, and now it is not.
  """
  for left in path.parent.glob(
    f'.{glob.escape(path.name)}.{8 * "[0-9a-f]"}.part'
  ):
    _remove_if_left(left)
  part, file = _open_part(path)
  try:
    yield file
    file.flush()
    os.fsync(file.fileno())
    if _name(path) in _free:
      _publish(part, path)
      _free.discard(_name(path))
    else:
      os.replace(part, path)
    # Last, because closing it removes its lock.
    file.close()
  except BaseException as e:
    if isinstance(e, OSError) and e.errno in FULL:
      e.filename = os.fspath(path)
    # On a full disk, closing fails again; the first error is more precise.
    with contextlib.suppress(OSError):
      file.close()
    part.unlink(missing_ok=True)
    raise


def _publish(part: pathlib.Path, path: pathlib.Path) -> None:
  """Gives a finished file its name; a free one, if that is taken."""
  if _moved(part, path):
    return
  for number in itertools.count(2):
    other = path.with_name(f'{path.stem}_{number}{path.suffix}')
    if _moved(part, other):
      raise AppearedError(
        f'{path} has appeared since this command began, and is left as it is: '
        f'the result is in {other}.'
      )


def _moved(part: pathlib.Path, path: pathlib.Path) -> bool:
  """Renames a file unless the new name is taken."""
  try:
    os.link(part, path)
  except FileExistsError:
    return False
  except OSError:
    # A file system without links.
    if os.path.lexists(path):
      return False
    os.replace(part, path)
  part.unlink(missing_ok=True)
  return True


def _part(path: pathlib.Path) -> pathlib.Path:
  """A name for the new file that will replace `path`."""
  return path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')


def _open_part(path: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
  """A new file beside `path`, locked as long as this process has it open."""
  while True:
    part = _part(path)
    # 'x' follows no link; unlike mkstemp, it respects the umask.
    file = part.open('x+b')
    _lock(file.fileno())
    # Another process may have removed it before it was locked.
    if part.exists():
      return part, file
    file.close()


@contextlib.contextmanager
def temporary_folder(
  prefix: str, parent: Path | None = None
) -> Iterator[pathlib.Path]:
  """Yields a new folder, which is removed at the end of the block.

  Those of the same prefix that killed processes left are removed first.

  Args:
    prefix: of its name; no other program uses it.
    parent: by default the system's folder of temporary files.
  """
  parent = pathlib.Path(parent or tempfile.gettempdir())
  for left in parent.glob(f'{glob.escape(prefix)}{8 * "?"}'):
    _remove_if_left(left)
  while True:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    _lock(descriptor)
    if folder.exists():
      break
    os.close(descriptor)
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _lock(descriptor: int) -> None:
  # Some file systems have no locks; then nothing that is left is removed.
  with contextlib.suppress(OSError):
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_if_left(path: pathlib.Path) -> None:
  """Removes a part or a temporary folder that no process has locked."""
  with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
    # A file must be open for writing, or a network file system locks nothing.
    mode = os.O_RDONLY if path.is_dir() else os.O_RDWR
    opened = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
    undo.callback(os.close, opened)
    found = os.fstat(opened)
    if found.st_uid != os.geteuid():
      return
    # Raises an error if the process that made it is alive.
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if stat.S_ISDIR(found.st_mode):
      shutil.rmtree(path)
    elif stat.S_ISREG(found.st_mode):
      path.unlink()
    else:
      return
    print(f'Removed {path}, which a killed command left.', file=sys.stderr)


def open_to_append(path: pathlib.Path) -> TextIO:
  """Opens a text file to append lines to this file alone.

  A file that has other names too, or that a link points to, is copied first.
  """
  if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
    write_whole(path, path.read_bytes() if path.exists() else b'')
  flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
  return os.fdopen(os.open(path, flags, 0o666), 'a')


def write_whole(path: pathlib.Path, data: bytes | str) -> None:
  """Replaces a file by bytes, or by text in UTF-8.

  Bytes of a file's name that are not UTF-8 are escaped in the text.
  """
  if isinstance(data, str):
    data = data.encode(errors='backslashreplace')
  with replacing(path) as file:
    file.write(data)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a file by `value` as JSON.

  Raises:
    ValueError: a number in it is not finite.
  """
  text = json.dumps(value, indent=2, allow_nan=False)
  write_whole(path, text + '\n')


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} if the file is missing or damaged."""
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}


def why_unreadable(e: Exception) -> str:
  """Why a file cannot be used, in words that follow its name.

  Args:
    e: what opening the file, decoding it or looking up a field raised.
  """
  if isinstance(e, FileNotFoundError | NotADirectoryError):
    return 'does not exist'
  if isinstance(e, IsADirectoryError):
    return 'is a folder'
  if isinstance(e, OSError) and e.strerror:
    return f'cannot be read ({e.strerror})'
  if isinstance(e, json.JSONDecodeError):
    return f'is not JSON, or is damaged in line {e.lineno}'
  if isinstance(e, UnicodeDecodeError | RecursionError):
    return 'is not JSON, or is damaged'
  if isinstance(e, KeyError):
    return f'is damaged (it has no {e.args[0]!r})'
  return 'is damaged'


def write_csv(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Replaces a file by a heading and rows, see `to_csv`."""
  write_whole(path, to_csv(columns, rows))


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A heading and rows as lines, separated by commas."""
  text = io.StringIO(newline='')
  csv.writer(text).writerows([columns, *rows])
  return text.getvalue()
