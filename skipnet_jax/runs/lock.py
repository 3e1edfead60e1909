"""The lock of a run's folder: one process trains there at a time."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import pathlib
import platform
import stat
import sys
import time
from typing import TextIO

from skipnet_jax import errors

# Seconds until a folder that does not show process 0's lock is another one.
_SHARED = 10


def claim(path: pathlib.Path) -> TextIO:
  """Locks the folder for this process until the returned file is closed.

  The operating system removes the lock when the process ends in any way.

  Raises:
    InputError: another process trains there, or its .lock is another file.
  """
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  foreign = errors.InputError(
    f'{path / ".lock"} is not the lock of a run: remove it, or choose another '
    '--workdir.'
  )
  try:
    opened = os.open(path / '.lock', flags, 0o666)
  except OSError as e:
    # A link, or a folder.
    if e.errno not in (errno.ELOOP, errno.EISDIR):
      raise
    raise foreign from e
  found = os.fstat(opened)
  if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
    os.close(opened)
    raise foreign
  file = os.fdopen(opened, 'r+', errors='replace')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    if e.errno not in (errno.EAGAIN, errno.EACCES):
      # Some file systems of clusters have no locks.
      print(f'{path} cannot be locked ({e.strerror}).', file=sys.stderr)
      return file
    holder = file.read(200).strip() or 'another process'
    file.close()
    raise errors.InputError(
      f'The workdir {path} is in use by {holder}: wait until it ends, or '
      'choose another --workdir.'
    ) from e
  text = file.read(200)
  if text and not text.startswith('process '):
    file.close()
    raise foreign
  file.seek(0)
  file.truncate()
  file.write(f'process {os.getpid()} on {platform.node()}\n')
  file.flush()
  return file


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """Keeps training out of a run's folder while its checkpoints are read.

  Raises:
    InputError: a process trains there.
  """
  with contextlib.ExitStack() as stack:
    # Without a lock, or where files cannot be locked, no process is known.
    with contextlib.suppress(OSError):
      file = stack.enter_context((path / '.lock').open())
      try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
      except BlockingIOError as e:
        raise errors.InputError(
          f'{path} is in use by {owner(path).strip() or "another process"}: '
          'wait until its training ends, or give another run.'
        ) from e
    yield


def owner(path: pathlib.Path) -> str:
  """Who has locked the folder: the text in its lock; '' if there is none."""
  with contextlib.suppress(OSError):
    return (path / '.lock').read_text()
  return ''


def require_shared(path: pathlib.Path, first: str) -> None:
  """Checks that this process's folder is that of process 0.

  Args:
    path: the run's folder, which process 0 has locked.
    first: `owner` in process 0.

  Raises:
    InputError: it is another folder.
  """
  until = time.monotonic() + _SHARED
  # A network file system may show a new file late.
  while owner(path) != first:
    if time.monotonic() > until:
      raise errors.InputError(
        f'The workdir {path} of this process is not the folder of process 0: '
        'give every process the same --workdir, on a shared file system.'
      )
    time.sleep(0.2)
