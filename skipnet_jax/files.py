"""Replaces files atomically: a reader sees the old file or the whole new one.

The new file is written beside the old one, under a hidden name that ends in
.part, and renamed when it is on the disk. OSErrors pass to the caller.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import csv
import io
import json
import os
import pathlib
import secrets
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields an empty file, which replaces `path` at the end of the block.

  If the block raises, the file is removed and `path` is unchanged. A link at
  `path` is replaced, not followed.
  """
  part = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
  # 'x' follows no link; unlike mkstemp, it respects the umask.
  file = part.open('x+b')
  try:
    yield file
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(part, path)
  except BaseException:
    # On a full disk, closing fails again; the first error is more precise.
    with contextlib.suppress(OSError):
      file.close()
    part.unlink(missing_ok=True)
    raise


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
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def write_csv(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Replaces a file by a heading and rows, separated by commas."""
  text = io.StringIO(newline='')
  csv.writer(text).writerows([columns, *rows])
  write_whole(path, text.getvalue())
