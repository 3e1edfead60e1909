"""Gives a folder of any name a path that Orbax and TensorStore can use.

Orbax reads `*`, `?` and `[` as a pattern and `:` as part of an URL; TensorStore
reads a backslash as a separator and needs UTF-8.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib

_SPECIAL = set('*?[]\\:')
# On Linux: the open files and folders of this process, by number.
_OPEN = pathlib.Path('/proc/self/fd')


def is_plain(folder: pathlib.Path) -> bool:
  """Whether a folder's absolute path is read as it is written."""
  text = str(folder.absolute())
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return not _SPECIAL & set(text)


def is_usable(folder: pathlib.Path) -> bool:
  """Whether `open_folder` can give a folder a plain path."""
  return is_plain(folder) or _OPEN.is_dir()


@contextlib.contextmanager
def open_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a plain path of a folder, for use inside the context.

  It is the absolute path, or one by the folder's number among the open files.
  """
  folder = folder.absolute()
  if is_plain(folder) or not folder.is_dir():
    yield folder
    return
  number = os.open(folder, os.O_RDONLY)
  try:
    yield _OPEN / str(number)
  finally:
    os.close(number)
