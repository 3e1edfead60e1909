"""The records of a run: metrics.jsonl, TensorBoard, a progress bar."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import json
import math
import os
import pathlib
import queue
import sys
from typing import Any

import numpy as np
import tqdm

from skipnet_jax import errors
from skipnet_jax import files

# Numbers that every record has; a network and a loss may add others.
FIELDS = (
  *('epoch', 'step', 'seconds', 'images_per_second'),
  *('train_loss', 'train_loss_with_l2', 'train_bce', 'train_accuracy'),
  *('valid_loss', 'valid_loss_with_l2', 'valid_bce', 'valid_accuracy'),
)
# Seconds in which TensorBoard's thread must take something from its queue.
_PATIENCE = 60
# Bytes of a line; a record has about a thousand.
_LONGEST = 2**20


@contextlib.contextmanager
def _torch_left_out() -> Iterator[None]:
  """Inside this block `import torch` fails, unless it was imported before.

  tensorboardX imports torch if that is installed, to recognise its arrays. That
  takes longer than all other imports of a command.
  """
  if 'torch' in sys.modules:
    yield
    return
  # Python takes None as a module that cannot be imported.
  modules: dict[str, Any] = sys.modules
  modules['torch'] = None
  try:
    yield
  finally:
    del modules['torch']


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
    self._board: Any = None
    if active and tensorboard:
      with _torch_left_out():
        import tensorboardX

      self._board = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'),
        # TensorBoard hides what an interrupted process wrote from this step on.
        purge_step=first_step + 1,
      )
      events = self._board.file_writer.event_writer._event_queue
      events.put = functools.partial(events.put, timeout=_PATIENCE)
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

  def start_clock(self) -> None:
    """Leaves the time before out of the progress bar."""
    self._bar.unpause()

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
    for name, value in record.items():
      if name not in ('epoch', 'step'):
        self._show('add_scalar', name, value, record['step'])
    if self._board is not None:
      self._board.flush()

  def picture(self, name: str, image: np.ndarray, step: int) -> None:
    """Shows a picture `[y, x]` or `[y, x, 3]` uint8 in TensorBoard."""
    form = 'HW' if image.ndim == 2 else 'HWC'
    self._show('add_image', name, image, step, dataformats=form)

  def _show(self, method: str, *args: Any, **options: Any) -> None:
    """Adds something to TensorBoard's events, as long as these are written.

    Their thread ends at the first error of the system, such as a full disk.
    Nobody empties its queue then, and to add to it would wait for ever.
    """
    if self._board is None:
      return
    events = self._board.file_writer.event_writer
    if events._worker.is_alive():
      with contextlib.suppress(queue.Full):
        getattr(self._board, method)(*args, **options)
        return
    self.print('TensorBoard: its files cannot be written, and get no more.')
    events._event_queue.cancel_join_thread()
    self._board = None

  def close(self) -> None:
    """Flushes and closes everything."""
    with contextlib.ExitStack() as stack:
      stack.callback(self._bar.close)
      if self._file is not None:
        stack.callback(self._file.close)
      self._show('close')


def _is_record(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and all(name in value for name in FIELDS)
    and all(
      type(number) in (int, float) and math.isfinite(number)
      for number in value.values()
    )
    and all(
      type(value[name]) is int and value[name] > 0 for name in ('epoch', 'step')
    )
  )


def _read_lines(path: pathlib.Path) -> Iterator[dict[str, Any] | None]:
  """The record in each line of a metrics.jsonl; None where there is none."""
  with path.open('rb') as file:
    while line := file.readline(_LONGEST):
      whole = line.endswith(b'\n') or len(line) < _LONGEST
      while not (whole or line.endswith(b'\n')):
        line = file.readline(_LONGEST)
        if not line:
          break
      try:
        value = json.loads(line) if whole else None
      # ValueError: no JSON, not UTF-8, or a number of thousands of digits.
      except (ValueError, RecursionError):
        value = None
      yield value if _is_record(value) else None


def readable_records(path: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Records by epoch; lines of a metrics.jsonl without one are left out.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    records = {row['epoch']: row for row in _read_lines(path) if row}
  except FileNotFoundError:
    return {}
  except OSError as e:
    raise errors.InputError(
      f'{path} cannot be read ({e.strerror}): remove it, or name another run.'
    ) from e
  return {epoch: records[epoch] for epoch in sorted(records)}


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl, one for each epoch.

  Raises:
    OSError: the file is missing or cannot be read.
    InputError: it is damaged.
  """
  records: list[dict[str, Any]] = []
  for number, record in enumerate(_read_lines(path), 1):
    last = records[-1]['epoch'] if records else 0
    if record is None or record['epoch'] <= last:
      raise errors.InputError(
        f'{path} is damaged (line {number} is not the record of an epoch after '
        f'{last}): run its training command again, which repairs it, or name '
        'another run.'
      )
    records.append(record)
  return records


def keep_records(
  path: pathlib.Path, last_epoch: int, saved: Sequence[dict[str, Any]] = ()
) -> str:
  """Reduces metrics.jsonl to one record for each epoch up to `last_epoch`.

  Lines that are no records are removed, such as one that a crash cut short.

  Args:
    path: the run's metrics.jsonl.
    last_epoch: of the checkpoint.
    saved: the checkpoint's copies of the newest records; they replace lines.

  Returns:
    A message about lost records; '' if there are none.
  """
  records = readable_records(path) | {row['epoch']: row for row in saved}
  kept = [records[e] for e in sorted(records) if e <= last_epoch]
  text = ''.join(json.dumps(record) + '\n' for record in kept).encode()
  size = path.stat().st_size if path.exists() else 0
  if size != len(text) or (size and path.read_bytes() != text):
    files.write_whole(path, text)
  lost = last_epoch - len(kept)
  message = f'metrics.jsonl is damaged: the records of {lost} epochs are lost.'
  return message if lost else ''
