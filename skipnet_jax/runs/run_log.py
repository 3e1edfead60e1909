"""The records of a run: metrics.jsonl, TensorBoard, a progress bar."""

from collections.abc import Sequence
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import tqdm

from skipnet_jax import files


class RunLog:
  """Writes the records of a run.

  Attributes:
    active: whether anything is written.

  Args:
    workdir: the run's folder.
    total_steps: for the progress bar.
    first_step: number of steps that are already finished.
    tensorboard: whether event files are written.
    progress: whether a bar is shown, if standard error is a terminal.
    active: False in all processes but the first; then nothing is written.
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
    self.active = active
    self._file = (
      files.open_to_append(workdir / 'metrics.jsonl') if active else None
    )
    self._board = None
    if active and tensorboard:
      # Imported late: it imports torch if that is installed, which takes half
      # of a command's start.
      import tensorboardX

      self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'))
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=first_step,
      unit='step',
      dynamic_ncols=True,
      disable=not (active and progress and sys.stderr.isatty()),
    )

  def print(self, text: str) -> None:
    """Prints a line above the progress bar."""
    if self.active:
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
      # The record must reach the disk before the checkpoint that follows.
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
    for opened in (self._bar, self._file, self._board):
      if opened is not None:
        opened.close()


def keep_records(
  path: pathlib.Path, last_epoch: int, saved: Sequence[dict[str, Any]] = ()
) -> str:
  """Reduces metrics.jsonl to one record for each epoch up to `last_epoch`.

  Lines that are no records are removed, such as one that a crash cut short.

  Args:
    path: the run's metrics.jsonl.
    last_epoch: of the checkpoint.
    saved: the checkpoint's copies of the newest records.

  Returns:
    A message about lost records; '' if there are none.
  """
  records = {record['epoch']: record for record in saved}
  content = path.read_bytes() if path.exists() else b''
  for line in content.decode(errors='replace').splitlines():
    try:
      value = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(value, dict) and isinstance(value.get('epoch'), int):
      records[value['epoch']] = value
  kept = [records[e] for e in sorted(records) if 0 < e <= last_epoch]
  text = ''.join(json.dumps(record) + '\n' for record in kept)
  if text.encode() != content:
    files.write_whole(path, text)
  lost = last_epoch - len(kept)
  text = f'metrics.jsonl is damaged: the records of {lost} epochs are lost.'
  return text if lost else ''


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl, one for each epoch."""
  return [json.loads(line) for line in path.read_text().splitlines()]
