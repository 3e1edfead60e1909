"""What a process measured so far, kept where it outlives the process."""

import json
import pathlib
from typing import Any

from skipnet_jax import files


class Journal:
  """What was measured so far; in a file, it outlives a process that dies.

  Attributes:
    path: of the file, or None.
    config: of the whole experiment, as JSON values.
    cache: folder of compiled programs, '' for none. The first process compiles
      without it and fills it, the others start from it.
    first: whether this is the first process.
    at: what is being tried, by name; None in between.
    largest: the batches that were looked for, by group.
    trials: what was tried, by name: '' if it fitted, else why not.
    rows: what was measured, by cell.
    about: software, hardware, workload, hosts and rates.
  """

  def __init__(self, path: pathlib.Path | None, **fields: Any):
    self.path = path
    self.config: dict[str, Any] = {}
    self.cache = ''
    self.first = True
    self.at: str | None = None
    self.largest: dict[str, int] = {}
    self.trials: dict[str, str] = {}
    self.rows: dict[str, dict[str, Any]] = {}
    self.about: dict[str, Any] = {}
    vars(self).update(fields)

  @classmethod
  def read(cls, path: pathlib.Path) -> 'Journal':
    """Reads what `save` wrote."""
    return cls(path, **json.loads(path.read_text()))

  def save(self) -> None:
    """Writes the file, if there is one."""
    if self.path is not None:
      fields = {k: v for k, v in vars(self).items() if k != 'path'}
      files.write_json(self.path, fields)
