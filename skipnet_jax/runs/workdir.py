"""A run's folder: whose it is, and what made it."""

import errno
import fcntl
import json
import os
import pathlib
import platform
import sys
import tempfile
from typing import Any, TextIO

import jax
import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import environment as environment_lib
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models

_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'skipnet_jax',
)


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """The whole config of a run, also of one from before there was a field.

  Raises:
    InputError: the folder is no run's.
  """
  path = pathlib.Path(workdir)
  return _complete(path, _read(path)['config'])


def _complete(
  path: pathlib.Path, kept: dict[str, Any]
) -> ml_collections.ConfigDict:
  # A run made before there was a field was made with its default.
  config = config_lib.get_default()
  try:
    config.update(kept)
    config.model = models.model_config(**config.model)
  except errors.InputError as e:
    raise errors.InputError(f'{path / "config.json"}: {e}') from e
  except (TypeError, KeyError, ValueError) as e:
    raise errors.InputError(
      f'{path / "config.json"} is damaged ({str(e)[:200]!r}): restore it from '
      'a backup, or choose another --workdir.'
    ) from e
  return config


def read_dataset(workdir: str | os.PathLike) -> dict[str, str]:
  """Name and fingerprint of the data set of a run.

  Raises:
    InputError: the folder is no run's.
  """
  return _read(pathlib.Path(workdir))['dataset']


def _read(workdir: pathlib.Path) -> dict[str, Any]:
  path = workdir / 'config.json'
  try:
    content = json.loads(path.read_text())
    # What every reader relies on.
    content['config']['model']['name'], content['dataset']['name']
    return content
  except (OSError, ValueError, LookupError, TypeError) as e:
    raise errors.InputError(
      f'{path} is missing or unreadable ({type(e).__name__}): name the '
      '--workdir of a run.'
    ) from e


def check(
  workdir: str | os.PathLike,
  config: ml_collections.ConfigDict,
  dataset: dict[str, str],
) -> pathlib.Path:
  """Makes the folder, or checks that it is this config's; claims nothing yet.

  Args:
    workdir: the run's folder.
    config: a whole config.
    dataset: name and fingerprint of the data set.

  Returns:
    The folder's path.

  Raises:
    InputError: it cannot be written, or belongs to another config or data set.
  """
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path) as probe:
      probe.write(bytes(2**20))
      probe.flush()
  except OSError as e:
    raise errors.InputError(
      f'The workdir {path} cannot be written ({e.strerror}): choose another '
      '--workdir, or make space there.'
    ) from e
  if not (path / 'config.json').exists():
    if any((path / name).exists() for name in ('checkpoints', 'metrics.jsonl')):
      raise errors.InputError(
        f'The workdir {path} has checkpoints but no config.json: choose '
        'another --workdir.'
      )
    return path
  old = _read(path)
  then = config_identity.identity(_complete(path, old['config']))
  changed = config_identity.differences(then, config_identity.identity(config))
  if changed:
    raise errors.InputError(
      f'The workdir {path} is of a run with another config: '
      f'{", ".join(changed)}. Choose another --workdir, or set these back.'
    )
  if old['dataset'] != dataset:
    raise errors.InputError(
      f'The workdir {path} is of a run on {old["dataset"]["name"]!r}, and now '
      f'the data are {dataset["name"]!r}: choose another --workdir, or give '
      'the data it began with.'
    )
  return path


def claim(path: pathlib.Path) -> TextIO:
  """Makes the folder this process's own until the file it returns is closed.

  The system lets go of it whenever the process ends, however that is.

  Raises:
    InputError: another process trains there.
  """
  file = (path / '.lock').open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    if e.errno not in (errno.EAGAIN, errno.EACCES):
      # Some file systems of clusters have no locks.
      print(f'{path} cannot be locked ({e.strerror}).', file=sys.stderr)
      return file
    file.seek(0)
    owner = file.read(200).strip() or 'another process'
    file.close()
    raise errors.InputError(
      f'The workdir {path} is in use by {owner}: wait until it ends, or choose '
      'another --workdir.'
    ) from e
  file.truncate(0)
  file.write(f'process {os.getpid()} on {platform.node()}\n')
  file.flush()
  return file


def describe(
  path: pathlib.Path,
  config: ml_collections.ConfigDict,
  dataset: dict[str, str],
) -> None:
  """Writes config.json and environment.json."""
  files.write_json(
    path / 'config.json',
    {
      'hash': config_identity.hash_of(config),
      'dataset': dataset,
      'config': json.loads(config.to_json()),
    },
  )
  files.write_json(path / 'environment.json', environment())


def environment() -> dict[str, Any]:
  """Versions, devices, command, git state and date, as JSON values."""
  versions = environment_lib.versions(_PACKAGES)
  return {
    'date': environment_lib.now(),
    'command': environment_lib.command(),
    'python': platform.python_version(),
    'packages': {k: v or 'not installed' for k, v in versions.items()},
    'backend': jax.default_backend(),
    'devices': [d.device_kind for d in jax.devices()],
    'processes': jax.process_count(),
    'cpu_cores': os.cpu_count(),
    'platform': platform.platform(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'git': environment_lib.git_state(),
  }
