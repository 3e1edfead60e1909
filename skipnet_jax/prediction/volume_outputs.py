"""The outputs of a volume: their names, and what they were begun with."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import chunk_store
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import volume
from skipnet_jax.prediction import calibration as calibration_lib
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import fitted
from skipnet_jax.runs import trained

Path = str | os.PathLike[str]
SUFFIX = '.zarr'


def _is_one(path: Path) -> bool:
  """Whether a name of an output is that of a volume."""
  name = pathlib.Path(path).name
  return name.lower().endswith(SUFFIX) and not chunk_store.is_url(path)


@dataclasses.dataclass(frozen=True)
class Output:
  """A volume that is written.

  Attributes:
    kind: see `slabs.SlabPredictor`.
    path: of its folder.
    holds: what it has, for its attributes.
    dtype: of its values.
  """

  kind: str
  path: pathlib.Path
  holds: str
  dtype: np.dtype

  @property
  def bytes(self) -> int:
    """Of a pixel."""
    return 3 if self.kind == 'overlay' else 4


def outputs(
  output: Path, std_output: Path | None, cells: cell_files.CellFiles | None
) -> list[Output]:
  """All of them; `InputError` for a name that none can have."""
  how = ''
  if cells:
    how = cells.segmenter.identity + ', linked' * cells.link
    if (cells.link or cells.measure) and not cells.segmentation:
      raise errors.InputError(
        f'with --output=NAME{SUFFIX}, --link and --measure read the labels '
        f'that are written: name a --segmentation=CELLS{SUFFIX} too.'
      )
  found = []
  for kind, path, holds, dtype in (
    ('probabilities', output, 'probabilities', np.float32),
    ('std', std_output, 'standard deviations', np.float32),
    ('cells', cells and cells.segmentation, f'cells {how}', np.uint32),
    ('overlay', cells and cells.overlay, f'borders of cells {how}', np.uint8),
  ):
    if not path:
      continue
    if not _is_one(path):
      raise errors.InputError(
        f'cannot write {path}: with --output=NAME{SUFFIX}, every output must '
        f'be a local or shared folder whose name ends in {SUFFIX}.'
      )
    found.append(Output(kind, pathlib.Path(path), holds, np.dtype(dtype)))
  return found


def check_paths(
  outputs: Sequence[Output], source: chunk_store.Place, table: Path | None
) -> None:
  """Refuses outputs, and a table, that lie in each other or in the input."""
  paths = [output.path for output in outputs]
  if table:
    paths.append(pathlib.Path(table))
    if paths[-1].suffix.lower() != '.csv':
      raise errors.InputError(
        f'cannot write {table}: its name must end in .csv'
      )
    # One that exists may be this command's own.
    files.check_outputs([table], overwrite=True)
  for path in paths:
    if not os.path.isdir(path.absolute().parent):
      raise errors.InputError(
        f'cannot write {path}: the folder {path.parent} does not exist; make '
        'it.'
      )
  real = [pathlib.Path(os.path.realpath(path)) for path in paths]
  if not chunk_store.is_url(source):
    real.append(pathlib.Path(os.path.realpath(source)))
  for path in real:
    if sum(path.is_relative_to(other) for other in real) > 1:
      raise errors.InputError(
        f'{path} is named twice, or lies in another input or output: give '
        'every volume a name and a folder of its own.'
      )


def begun(
  outputs: Sequence[Output], given: Mapping[str, Any]
) -> list[int] | None:
  """The block of outputs that exist; None if none does.

  Raises:
    InputError: one of them has other settings.
  """
  block = None
  for output in outputs:
    found = ome_zarr_metadata.read_settings(output.path)
    if found is not None:
      block = found.get('block') if block is None else block
      wanted = {**given, 'holds': output.holds, 'block': block}
      check_same(output.path, found, wanted)
  return block


def check_whole(
  output: Path, block: Sequence[int], shape: tuple[int, int, int]
) -> None:
  """Refuses to find cells in parts of a slice."""
  if block[1] < shape[1] or block[2] < shape[2]:
    raise errors.InputError(
      f'{output} was begun in blocks of {block[1]} x {block[2]} pixels, but '
      f'cells are found in whole slices, {shape[1]} x {shape[2]}: choose '
      'another --output, or finish it without cells.'
    )


def check_same(
  path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Refuses an output that was begun with other settings."""
  changed = config_identity.differences(dict(found), dict(wanted))
  if changed:
    raise errors.InputError(
      f'{path} was begun with other settings, {", ".join(changed)}: repeat the '
      'command that began it, choose another name, or remove it.'
    )


def settings_of(
  source: volume.StackReader,
  choice: volume.Choice,
  runs: Sequence[trained.TrainedRun],
  averaging: fitted.Averaging,
  calibration: calibration_lib.Calibration | None,
) -> dict[str, Any]:
  """What a prediction depends on, for the attributes of its volume."""
  path = source.path
  return {
    'input': path if chunk_store.is_url(path) else os.path.realpath(path),
    'input_modified': _modified(source),
    'series': choice.series,
    'channel': choice.channel,
    'level': choice.level,
    'time': choice.time,
    'networks': [trained.network_of(run) for run in runs],
    'averaging': averaging.name,
    'calibration': calibration.for_json() if calibration else None,
  }


def _modified(source: volume.StackReader) -> str:
  """A text that changes with the files of an input; '' of a URL."""
  if chunk_store.is_url(source.path):
    return ''
  path = pathlib.Path(source.path)
  if isinstance(source, ome_zarr.ChunkedStack):
    found = source.files()
  else:
    found = sorted(path.iterdir()) if path.is_dir() else [path]
  stats = [(file.name, file.stat()) for file in found]
  states = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
  return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]
