"""`gradient_flow.npz`: what each epoch did to each kernel."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from skipnet_jax import files
from skipnet_jax.step import telemetry

# Steps that are recorded one by one.
FIRST_STEPS = 200
# Errors of numpy and zipfile at a damaged file.
_DAMAGED = (
  *(ValueError, LookupError, TypeError, AttributeError, EOFError),
  *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


def read(path: pathlib.Path) -> tuple[list[str], dict[str, np.ndarray]]:
  """Layers and quantities of a `gradient_flow.npz`, see `FlowFile`.

  Raises:
    OSError: the file is missing or cannot be read.
    ValueError: it is damaged.
  """
  # Opened here: numpy does not close a damaged file that it opened.
  with path.open('rb') as f:
    try:
      with np.load(f, allow_pickle=False) as file:
        layers = [str(name) for name in file['layers']]
        table = {q: file[q] for q in telemetry.QUANTITIES}
    except _DAMAGED as e:
      raise ValueError(f'{path.name} is damaged ({e})') from e
  epochs = len(table['net_change']) if table['net_change'].ndim else 0
  for quantity, rows in table.items():
    if rows.shape != (epochs, len(layers)) or rows.dtype.kind != 'f':
      raise ValueError(f'{path.name} is damaged: {quantity} has another shape')
  return layers, table


def read_first_steps(path: pathlib.Path) -> np.ndarray:
  """What each of the first steps did, see `FlowFile`; `[0, 4, l]` for none.

  Raises:
    OSError: the file is missing or cannot be read.
    ValueError: it is damaged.
  """
  layers, _ = read(path)
  none = np.zeros((0, len(telemetry.STEP_QUANTITIES), len(layers)), np.float32)
  with path.open('rb') as f:
    try:
      with np.load(f, allow_pickle=False) as file:
        steps = file['first_steps'] if 'first_steps' in file.files else none
    except _DAMAGED as e:
      raise ValueError(f'{path.name} is damaged ({e})') from e
  if steps.shape[1:] != none.shape[1:] or steps.dtype.kind != 'f':
    raise ValueError(f'{path.name} is damaged: first_steps has another shape')
  return steps


class FlowFile:
  """The `gradient_flow.npz` of a run.

  It holds `layers` `[l]` str in forward order and, `[epochs, l]` float32,
  `net_change` and the quantities of `telemetry.STEP_QUANTITIES`; NaN for an
  epoch whose record is lost. The same quantities of the first `FIRST_STEPS`
  steps, one by one, are `first_steps` `[steps, 4, l]` float32.

  Args:
    path: the file.
    names: layers in forward order.
    epochs: number of finished epochs; later records are dropped.
    steps: number of finished steps; likewise.
    warn: called with a message if the file is lost or damaged.
  """

  def __init__(
    self,
    path: pathlib.Path,
    names: Sequence[str],
    epochs: int,
    steps: int,
    warn: Callable[[str], None],
  ):
    self._path, self._names = path, list(names)
    self._table = {
      q: np.full((epochs, len(names)), np.nan, np.float32)
      for q in telemetry.QUANTITIES
    }
    kept_steps = min(steps, FIRST_STEPS)
    size = len(telemetry.STEP_QUANTITIES), len(names)
    self._steps = np.full((kept_steps, *size), np.nan, np.float32)
    if not steps:
      return
    try:
      layers, old = read(path)
      if layers != self._names:
        raise ValueError('it has other layers')
      first = read_first_steps(path)[:kept_steps]
      self._steps[: len(first)] = first
    except (OSError, ValueError):
      # They stay NaN, and the report shows gaps.
      lost = f'epochs up to {epochs}' if epochs else f'{steps} steps'
      warn(f'{path.name} is lost or damaged: its {lost} are gone.')
      return
    for q, rows in self._table.items():
      kept = old[q][:epochs]
      rows[: len(kept)] = kept

  def append(self, change: np.ndarray, flow: np.ndarray) -> None:
    """Adds an epoch and replaces the file.

    Args:
      change: from `telemetry.Kernels.net_change`.
      flow: from `telemetry.Kernels.step_flow`, averaged over the epoch's steps.
    """
    for q, row in zip(self._table, (change, *flow), strict=True):
      self._table[q] = np.vstack([self._table[q], row]).astype(np.float32)
    self.write()

  def add_steps(self, flow: np.ndarray) -> None:
    """Adds the next steps, `[steps, 4, l]`, as far as they are among the first.

    The file is replaced with the epoch, or by `write`.
    """
    room = FIRST_STEPS - len(self._steps)
    if room > 0:
      added = flow[:room].astype(np.float32)
      self._steps = np.concatenate([self._steps, added])

  def write(self) -> None:
    """Replaces the file."""
    arrays: dict[str, Any] = {
      'layers': np.asarray(self._names),
      'first_steps': self._steps,
      **self._table,
    }
    with files.replacing(self._path) as file:
      # Not compressed: it is replaced each epoch, and its values are noisy.
      np.savez(file, **arrays)
