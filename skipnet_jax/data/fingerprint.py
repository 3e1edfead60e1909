"""Fingerprints of data sets, by which a run knows its data again.

All pixels count. For files, a fingerprint is remembered with their sizes and
times of change, so that a large stack is not hashed at every start.
"""

from collections.abc import Callable, Iterable
import contextlib
import hashlib
import json
import os
import pathlib

import numpy as np

from skipnet_jax import environment
from skipnet_jax import files
from skipnet_jax.data import volume

# Raise it when the same files would give another fingerprint.
_VERSION = 1
_FILE = 'fingerprints.json'
_MOST = 256  # Entries in the cache; the oldest leave it first.


def of_arrays(image: volume.Stack, label: volume.Stack) -> str:
  """Twelve hex digits of the image, a dash, twelve of the labels.

  Args:
    image: `[z, y, x]`, any type.
    label: `[z, y, x]` bool.
  """
  return '-'.join(_digest(stack) for stack in (image, label))


def _digest(stack: volume.Stack) -> str:
  digest = hashlib.sha256(f'{stack.shape} {stack.dtype}'.encode())
  for page in stack:
    digest.update(np.ascontiguousarray(page).data)
  return digest.hexdigest()[:12]


def state_of(paths: Iterable[str | os.PathLike], *reading: object) -> str:
  """A text that changes when the files do; '' where that cannot be seen.

  Args:
    paths: files, or folders of files.
    reading: values on which it depends what is read of them.
  """
  found = []
  try:
    for path in map(pathlib.Path, paths):
      for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
        # What lies beyond a link to a folder is not listed.
        if file.is_symlink() and file.is_dir():
          return ''
        stat = file.stat()
        times = stat.st_mtime_ns, stat.st_ctime_ns
        found.append((str(file.resolve()), stat.st_size, *times))
  except OSError:
    return ''
  text = json.dumps([_VERSION, found, [str(value) for value in reading]])
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def remembered(state: str, compute: Callable[[], str]) -> str:
  """The fingerprint of files in a state, computed where none is kept.

  Args:
    state: from `state_of`.
    compute: makes the fingerprint from all pixels.
  """
  if not state:
    return compute()
  path = environment.cache_dir() / _FILE
  kept = files.read_json(path)
  if isinstance(kept.get(state), str):
    return kept[state]
  found = compute()
  entries = [*kept.items()][1 - _MOST :]
  # A cache that cannot be written is no error.
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, dict([*entries, (state, found)]))
  return found
