"""Records what a measuring process has done, in a file that outlives it."""

import json
import pathlib
from typing import Any

from skipnet_jax import files


class Journal:
  """The results and the state of a measuring process.

  Attributes:
    path: of the file, or None to write none.
    config: of the whole experiment, as JSON values.
    cache: folder of compiled programs, '' for none. The first process fills it,
      the others read it.
    first: whether this is the first process.
    current: name of the cell that is being tried or measured, or None.
    largest: results of searches for the largest batch, by group.
    trials: by name of a trial: '' if the cell fitted, else why it did not.
    rows: what was measured, by cell.
    about: software, hardware, workload, hosts and rates.
  """

  def __init__(self, path: pathlib.Path | None, **fields: Any):
    self.path = path
    self.config: dict[str, Any] = {}
    self.cache = ''
    self.first = True
    self.current: str | None = None
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
