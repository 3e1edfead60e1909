"""Networks that ship with the package, and how a run becomes one of them.

A network is a folder of `skipnet_jax/pretrained`: config.json as of a run,
weights.npz, what was fitted to its predictions, and card.json.
"""

from collections.abc import Callable, Mapping
import hashlib
import io
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import data_set
from skipnet_jax.runs import trained
from skipnet_jax.runs import workdir

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'pretrained'
WEIGHTS, CARD = 'weights.npz', 'card.json'
# Changes with the meaning of the files.
VERSION = 1
_REMEDY = 'install skipnet_jax again'


def names(folder: pathlib.Path = FOLDER) -> list[str]:
  """The names of the networks."""
  return sorted(path.parent.name for path in folder.glob(f'*/{CARD}'))


def open_pretrained(
  name: str, folder: pathlib.Path = FOLDER
) -> trained.TrainedRun:
  """Opens a network that ships; compiles nothing and needs no network.

  Its public name is `skipnet_jax.load_pretrained`.

  Args:
    name: one of `names`.
    folder: of all networks.

  Returns:
    What `trained.open_run` returns of a run; its `path` is the network's
    folder. The arrays of its `variables` are float32, on the first device.

  Raises:
    InputError: an unknown name; weights that are damaged, or of another version
      of the package.

  Example:
    >>> import skipnet_jax
    >>> run = skipnet_jax.load_pretrained('em_membranes')
    >>> run.pixel_size
    4.0
  """
  known = names(folder)
  if name not in known:
    raise errors.InputError(
      f'There are no weights named {name!r}: '
      f'{config_lib.nearest(name, known) if known else _REMEDY}'
    )
  path = folder / name
  card = _read_card(path)
  config = workdir.read_config(path)
  config_checks.validate(config)
  training = trained.build(config)
  wanted = jax.eval_shape(lambda s: s.variables(), training.abstract_state)
  return trained.TrainedRun(
    path=path,
    config=config,
    dataset=workdir.read_dataset(path),
    model=training.model,
    variables=_read_weights(path / WEIGHTS, card['sha256'], wanted),
    best_epoch=card['best_epoch'],
    ships=True,
  )


def _read_card(path: pathlib.Path) -> dict[str, Any]:
  file = path / CARD
  try:
    card = json.loads(file.read_text())
    version, digest = card['version'], str(card['sha256'])
    epoch = int(card['best_epoch'])
  except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
    raise errors.InputError(
      f'{file} {files.why_unreadable(e)}: {_REMEDY}.'
    ) from e
  if version != VERSION:
    raise errors.InputError(
      f'{file} is of version {version}, but this skipnet_jax reads version '
      f'{VERSION}: {_REMEDY}.'
    )
  return {'sha256': digest, 'best_epoch': epoch}


def _read_weights(
  file: pathlib.Path, digest: str, wanted: Any
) -> dict[str, Any]:
  """The arrays of a file, as a tree of the shapes of `wanted`."""
  try:
    content = file.read_bytes()
  except OSError as e:
    raise errors.InputError(
      f'{file} cannot be read ({e.strerror}): {_REMEDY}.'
    ) from e
  found = hashlib.sha256(content).hexdigest()
  if found != digest:
    raise errors.InputError(
      f'{file} is damaged, its SHA-256 is {found[:16]}... where {CARD} has '
      f'{digest[:16]}...: {_REMEDY}.'
    )
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    flat = {name: arrays[name] for name in arrays.files}
  shapes = flax.traverse_util.flatten_dict(wanted, sep='/')
  if {n: a.shape for n, a in flat.items()} != {
    n: s.shape for n, s in shapes.items()
  }:
    raise errors.InputError(
      f'{file} is of another version of the network {file.parent.name}: '
      f'{_REMEDY}.'
    )
  device = jax.local_devices()[0]
  tree = flax.traverse_util.unflatten_dict(
    {n: jax.device_put(jnp.asarray(a), device) for n, a in flat.items()},
    sep='/',
  )
  # Flax's tree of a network without BatchNorm has no entry for it.
  return {'params': {}, 'batch_stats': {}} | tree


def export(
  run: trained.TrainedRun,
  folder: pathlib.Path,
  dataset: str,
  card: Mapping[str, Any],
) -> None:
  """Writes a run's network as one that ships.

  Args:
    run: whose best checkpoint is written.
    folder: of this network. Its other files are left as they are.
    dataset: the name of the training data, for messages.
    card: more to write into card.json, such as where the weights come from.
  """
  folder.mkdir(parents=True, exist_ok=True)
  flat = flax.traverse_util.flatten_dict(run.variables, sep='/')
  buffer = io.BytesIO()
  # Its type has no room for names that are not written out.
  save: Callable[..., None] = np.savez
  save(buffer, **{name: np.asarray(flat[name]) for name in sorted(flat)})
  weights = buffer.getvalue()
  files.write_whole(folder / WEIGHTS, weights)
  identity: data_set.Identity = {**run.dataset, 'name': dataset}
  config = json.loads(run.config.to_json())
  # Where the data lay is nobody's business, and is nowhere now.
  if config['data']['source'] == 'stack':
    config['data'] |= {'image': 'image.tif', 'label': 'labels.tif'}
  files.write_json(
    folder / 'config.json', {'dataset': identity, 'config': config}
  )
  files.write_json(
    folder / CARD,
    {
      'version': VERSION,
      'sha256': hashlib.sha256(weights).hexdigest(),
      'best_epoch': run.best_epoch,
      **card,
    },
  )
