"""What a run tells: JSON lines, TensorBoard, a progress bar; process 0 only."""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import tensorboardX
import tqdm


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
    self._board = (
      tensorboardX.SummaryWriter(str(workdir / 'tensorboard'))
      if active and tensorboard
      else None
    )
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


def keep_records(path: pathlib.Path, last_epoch: int) -> None:
  """Drops records after `last_epoch`, which the resumed run writes again.

  A line that a crash cut short is dropped too.
  """
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if record['epoch'] <= last_epoch:
      kept.append(line)
  replacement = path.with_suffix('.tmp')
  replacement.write_text(''.join(kept))
  replacement.replace(path)


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl, one for each epoch."""
  return [json.loads(line) for line in path.read_text().splitlines()]
