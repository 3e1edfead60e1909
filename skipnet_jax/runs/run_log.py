"""What a run tells: JSON lines, TensorBoard, a progress bar; process 0 only."""

from collections.abc import Sequence
import json
import os
import pathlib
import sys
from typing import Any, Protocol

import numpy as np
import tqdm

from skipnet_jax import files


class Log(Protocol):
  """What an epoch tells: a `RunLog`, or whatever else listens."""

  def say(self, text: str) -> None:
    """Takes a line of text."""

  def advance(self, steps: int, loss: float, images_per_second: float) -> None:
    """Takes note of steps that were done."""


class RunLog:
  """Writes the records of a run.

  Args:
    workdir: the run's folder.
    total_steps: for the progress bar.
    first_step: steps done before.
    tensorboard: whether event files are written.
    progress: whether a bar is shown, where standard error is a terminal.
    active: False in all processes but the first, which then says nothing.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    total_steps: int,
    first_step: int,
    tensorboard: bool,
    progress: bool,
    active: bool,
  ):
    self._active = active
    self._file = (workdir / 'metrics.jsonl').open('a') if active else None
    self._board = None
    if active and tensorboard:
      # Where torch is installed it brings that too: half of a command's start.
      import tensorboardX

      self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'))
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=first_step,
      unit='step',
      dynamic_ncols=True,
      disable=not (active and progress and sys.stderr.isatty()),
    )

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    if self._active:
      self._bar.write(text, file=sys.stdout)
      sys.stdout.flush()

  def advance(self, steps: int, loss: float, images_per_second: float) -> None:
    """Moves the progress bar."""
    self._bar.set_postfix(
      {'loss': f'{loss:.4f}', 'images/s': f'{images_per_second:.2f}'},
      refresh=False,
    )
    self._bar.update(steps)

  def write(self, record: dict[str, Any]) -> None:
    """Appends a record to metrics.jsonl and its numbers to TensorBoard."""
    if self._file is not None:
      self._file.write(json.dumps(record, allow_nan=False) + '\n')
      self._file.flush()
      # Before the checkpoint that is to follow it.
      os.fsync(self._file.fileno())
    if self._board is not None:
      for name, value in record.items():
        if name not in ('epoch', 'step'):
          self._board.add_scalar(name, value, record['step'])
      self._board.flush()

  def picture(self, name: str, image: np.ndarray, step: int) -> None:
    """Shows a picture `[y, x]` or `[y, x, 3]` uint8 in TensorBoard."""
    if self._board is not None:
      form = 'HW' if image.ndim == 2 else 'HWC'
      self._board.add_image(name, image, step, dataformats=form)

  def close(self) -> None:
    """Flushes and closes everything."""
    self._bar.close()
    if self._file is not None:
      self._file.close()
    if self._board is not None:
      self._board.close()


def keep_records(
  path: pathlib.Path, last_epoch: int, saved: Sequence[dict[str, Any]] = ()
) -> list[str]:
  """Leaves one record of each epoch up to `last_epoch`.

  The resumed run writes the later ones again. What is no record goes, such as a
  line that a crash cut short.

  Args:
    path: the run's metrics.jsonl.
    last_epoch: of the checkpoint.
    saved: the checkpoint's own copies of the newest records.

  Returns:
    What there is to say of records that are lost.
  """
  found = {record['epoch']: record for record in saved}
  content = path.read_bytes() if path.exists() else b''
  for line in content.decode(errors='replace').splitlines():
    record = _record(line)
    if record is not None:
      found[record['epoch']] = record
  kept = [found[epoch] for epoch in sorted(found) if epoch <= last_epoch]
  text = ''.join(json.dumps(record) + '\n' for record in kept)
  if text.encode() != content:
    files.write_whole(path, text)
  lost = last_epoch - len(kept)
  if not lost:
    return []
  return [f'metrics.jsonl is damaged: the records of {lost} epochs are lost.']


def _record(line: str) -> dict[str, Any] | None:
  try:
    value = json.loads(line)
  except json.JSONDecodeError:
    return None
  known = isinstance(value, dict) and isinstance(value.get('epoch'), int)
  return value if known and value['epoch'] > 0 else None


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl, one for each epoch."""
  return [json.loads(line) for line in path.read_text().splitlines()]
