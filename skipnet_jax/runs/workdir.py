"""The folder of a run: its config and data set."""

import contextlib
import json
import os
import pathlib
import platform
import tempfile
from typing import Any

import jax
import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import environment as environment_lib
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax.data import data_set
from skipnet_jax.data import ome_zarr
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import plain_path

_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy'),
  'skipnet_jax',
)
# What training appends to or replaces in a run's folder.
_APPENDED = ('metrics.jsonl', '.lock')
# What it writes after config.json.
_WRITTEN = (
  *('metrics.jsonl', 'environment.json', 'summary.json'),
  'gradient_flow.npz',
)
_FILES = ('.lock', 'config.json', *_WRITTEN)
# What other commands keep of a run, and use.
_KEPT = (
  *('scores.json', 'calibration.json', 'edges.json'),
  *('averaging.json', 'segmentation.json'),
)
_FOLDERS = (
  *('checkpoints', 'checkpoints/latest', 'checkpoints/best'),
  *('tensorboard', 'samples', checkpoint.DAMAGED),
)


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """The whole config of a run; a missing field has its default.

  Raises:
    InputError: the folder is not a run, or its config.json is damaged.
  """
  path, content = _read(workdir)
  config = config_lib.get_default()
  try:
    config.update(content['config'])
    config_checks.check_whole(config)
    config.model = models.model_config(**config.model)
    _check_version(content['config'], config.model)
  except errors.InputError as e:
    raise errors.InputError(f'{path}: {e}') from e
  except AttributeError as e:
    raise errors.InputError(
      f'{path} is damaged (a section is not an object): restore it from a '
      'backup, or choose another --workdir.'
    ) from e
  except (TypeError, KeyError, ValueError, RecursionError) as e:
    raise errors.InputError(
      f'{path} is damaged ({str(e)[:200]!r}): restore it from a backup, or '
      'choose another --workdir.'
    ) from e
  return config


# Networks that are others since `data.normalise` is a field, and what they were
# before.
_NO_RELU = 'no ReLU followed an up-convolution'
_BEFORE = {
  'unet': _NO_RELU,
  'polymtl': f'in the normaliser {_NO_RELU}',
  'fcn_lstm': f'one ConvLSTM stood for three, and {_NO_RELU}',
  'fc_resnet': 'basic blocks with stride 2 padded after the last pixel only',
}


def _check_version(
  saved: dict[str, Any], model: ml_collections.ConfigDict
) -> None:
  """Refuses a run of an earlier version whose network was another one."""
  if 'normalise' in saved.get('data', {}) or model.name not in _BEFORE:
    return
  if model.name == 'fc_resnet' and model.blocks != 'basic':
    return
  raise errors.InputError(
    f'the run is of an earlier version, in which {_BEFORE[model.name]}: use it '
    'with the commit that its environment.json names, or train again in '
    'another --workdir.'
  )


def read_dataset(workdir: str | os.PathLike) -> data_set.Identity:
  """Name, fingerprint and pixel size of a run's data set.

  Raises:
    InputError: the folder is not a run.
  """
  return _read(workdir)[1]['dataset']


def _read(workdir: str | os.PathLike) -> tuple[pathlib.Path, dict[str, Any]]:
  path = pathlib.Path(workdir) / 'config.json'
  try:
    content = json.loads(path.read_text())
    # All readers need these.
    content['config']['model']['name'], content['dataset']['name']
    return path, content
  except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
    raise errors.InputError(
      f'{path} {files.why_unreadable(e)}: give the --workdir of a run.'
    ) from e


def check(
  workdir: str | os.PathLike,
  config: ml_collections.ConfigDict,
  data: data_set.DataSet,
) -> pathlib.Path:
  """Makes the folder, or checks that it has the same config and data.

  Args:
    workdir: the run's folder; it is not locked yet.
    config: a whole config.
    data: the data set that the config names.

  Returns:
    The folder's path.

  Raises:
    InputError: it cannot be written, has another config or data set, or lost
      its checkpoints.
  """
  path = pathlib.Path(workdir)
  if not plain_path.is_usable(path):
    raise errors.InputError(
      f'The path of the workdir {str(path)!r} has one of * ? [ ] \\ : or is '
      'not UTF-8, which needs Linux with /proc: choose another --workdir.'
    )
  if config.data.source == 'stack':
    # As of any output: a folder of slices and a volume stay as they are.
    for place in map(
      environment_lib.expand_home, (config.data.image, config.data.label)
    ):
      files.check_outputs(
        [path / 'config.json'], overwrite=True, inputs=[place]
      )
      ome_zarr.check_outside([path], place)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path) as probe:
      probe.write(bytes(2**20))
      probe.flush()
  except OSError as e:
    raise errors.InputError(
      f'The workdir {path} cannot be written ({e.strerror}): choose another '
      '--workdir, or free some space.'
    ) from e
  _check_kinds(path)
  if not (path / 'config.json').exists():
    found = [name for name in _WRITTEN if os.path.lexists(path / name)]
    found += _results(path)
    if any(checkpoint.steps_on_disk(path).values()):
      found.append('checkpoints')
    if found:
      raise errors.InputError(
        f'The workdir {path} has {found[0]} but no config.json: choose another '
        '--workdir.'
      )
    return path
  changed = config_identity.differences(
    *map(config_identity.identity, (read_config(path), config))
  )
  if changed:
    raise errors.InputError(
      f'The workdir {path} has a run with another config: '
      f'{", ".join(changed)}. Choose another --workdir, or undo these changes.'
    )
  old = read_dataset(path)
  changed_data = data.change_since(old)
  if changed_data:
    raise errors.InputError(
      f'The workdir {path} has a run on {old["name"]!r}, but the data are now '
      f'{data.name!r} with other {changed_data}: choose another --workdir, or '
      'use the data of its first epochs.'
    )
  if data_set.is_old(old):
    _, content = _read(path)
    content['dataset'] = data.identity()
    files.write_json(path / 'config.json', content)
  if not any(checkpoint.steps_on_disk(path).values()):
    check_new(path)
  return path


def _check_kinds(path: pathlib.Path) -> None:
  """Refuses files that are folders, the reverse, and what cannot be opened."""
  for name in (*_FILES, *_FOLDERS):
    there = path / name
    if not there.exists() and not there.is_symlink():
      continue
    folder = name in _FOLDERS
    if not (there.is_dir() if folder else there.is_file()):
      raise errors.InputError(
        f'{there} is not a {"folder" if folder else "file"}, as a run needs '
        'it: remove it, or choose another --workdir.'
      )
    mode = os.R_OK
    if folder:
      mode |= os.W_OK | os.X_OK
    elif name in _APPENDED:
      mode |= os.W_OK
    if not os.access(there, mode):
      raise errors.InputError(
        f'{there} cannot be read and written: change its permissions, or '
        'choose another --workdir.'
      )


def _records(path: pathlib.Path) -> list[str]:
  """Names of the files with results of epochs that had a checkpoint.

  A run that is interrupted in its first epoch may have a record of it and no
  checkpoint yet.
  """
  found = []
  file = path / 'metrics.jsonl'
  if file.exists():
    with file.open('rb') as lines:
      if next(lines, b'') and next(lines, b''):
        found.append(file.name)
  file = path / 'gradient_flow.npz'
  try:
    if file.exists() and len(flow_file.read(file)[1]['net_change']) > 1:
      found.append(file.name)
  except (OSError, ValueError):
    found.append(file.name)
  file = path / 'summary.json'
  return [*found, file.name] if file.exists() else found


def check_new(path: pathlib.Path) -> None:
  """Refuses a run without checkpoints if training it would replace results.

  Raises:
    InputError: it has results of more than the first epoch.
  """
  names = _records(path)
  if names:
    names += _results(path)
    raise errors.InputError(
      f'The workdir {path} has results of a run and no checkpoint to resume '
      'from: put its checkpoints back, choose another --workdir, or remove '
      f'{", ".join(names)} to train from the first epoch.'
    )


def _results(path: pathlib.Path) -> list[str]:
  """What would pass as results of a run that begins in a folder."""
  found = [name for name in _KEPT if os.path.lexists(path / name)]
  for name in ('samples', 'tensorboard'):
    with contextlib.suppress(OSError):
      found += [name] * any((path / name).iterdir())
  return found


def describe(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  dataset: data_set.Identity,
  init_from: dict[str, Any] | None = None,
) -> None:
  """Writes config.json and environment.json.

  `init_from` is what a warm start began with, see `training.warm_start`.
  """
  content = {
    'hash': config_identity.hash_of(config),
    'dataset': dataset,
    **({'init_from': init_from} if init_from else {}),
    'config': json.loads(config.to_json()),
  }
  files.write_json(path / 'config.json', content)
  files.write_json(path / 'environment.json', environment())


def packages() -> dict[str, str]:
  """Versions of the packages on which a run depends."""
  versions = environment_lib.versions(_PACKAGES)
  return {name: found or 'not installed' for name, found in versions.items()}


def environment() -> dict[str, Any]:
  """Versions, devices, command, git state and date, as JSON values."""
  return {
    'date': environment_lib.now(),
    'command': environment_lib.command(),
    'python': platform.python_version(),
    'packages': packages(),
    'backend': jax.default_backend(),
    'devices': [d.device_kind for d in jax.devices()],
    'processes': jax.process_count(),
    'cpu_cores': os.cpu_count(),
    'platform': platform.platform(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'git': environment_lib.git_state(),
  }
