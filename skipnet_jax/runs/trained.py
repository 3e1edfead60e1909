"""Opens a finished run: its network, parameters and data."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config_checks
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import chunk_store
from skipnet_jax.data import data_set
from skipnet_jax.data import sources
from skipnet_jax.models import network
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import workdir
from skipnet_jax.scores import scores
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import state as state_lib

TrainState = state_lib.TrainState


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run's network with the parameters of its best checkpoint.

  Attributes:
    path: the run's folder.
    config: the run's config.
    dataset: name, fingerprint and pixel size of its training data.
    model: the network.
    variables: params (averaged ones if the run keeps them), batch_stats.
    best_epoch: the epoch of the checkpoint.
    ships: whether it is part of the package, so that nothing is added to it.
  """

  path: pathlib.Path
  config: ml_collections.ConfigDict
  dataset: data_set.Identity
  model: network.Network
  variables: dict[str, Any]
  best_epoch: int
  ships: bool = False

  @property
  def pixel_size(self) -> float:
    """Side of a pixel of the training data in nanometres; 0: unknown."""
    return data_set.trained_pixel_size(self.dataset)

  @property
  def warning(self) -> str:
    """A sentence that all outputs repeat; '' for real data."""
    if not self.dataset['name'].startswith('synthetic'):
      return ''
    return (
      f'SYNTHETIC DATA: {self.path} was trained on {self.dataset["name"]}, so '
      'nothing here says anything about real tissue.'
    )


def build(config: ml_collections.ConfigDict) -> build_lib.Training:
  """A config's training, for its network and the shapes of its checkpoints."""
  # They depend neither on the window nor on the length of an epoch.
  sides = models.build_model(config.model).init_size()
  return build_lib.build(config, sides, 1)


def open_run(path: str | os.PathLike) -> TrainedRun:
  """Restores the best checkpoint of a run; compiles nothing.

  Its public name is `skipnet_jax.load_run`.

  Args:
    path: the run's folder, the `--workdir` of its training.

  Returns:
    The run; the arrays of its `variables` are float32, on the first device.

  Raises:
    InputError: the folder is not a run, has no best checkpoint, or one of
      another model.

  Example:
    >>> import skipnet_jax
    >>> run = skipnet_jax.load_run('runs/long_short')
    >>> run.config.model.name
    'fc_resnet'
    >>> sorted(run.variables)
    ['batch_stats', 'params']
  """
  path = pathlib.Path(path)
  config = workdir.read_config(path)
  config_checks.validate(config)
  training = build(config)
  checkpoints = checkpoint.Checkpoints(path, create=False)
  try:
    state, meta = checkpoints.restore_best(
      training.abstract_state, lambda text: print(text, file=sys.stderr)
    )
  finally:
    checkpoints.close()
  return TrainedRun(
    path=path,
    config=config,
    dataset=workdir.read_dataset(path),
    model=training.model,
    variables=state.averaged().variables(),
    best_epoch=int(meta['best_epoch']),
  )


def open_states(path: str | os.PathLike) -> tuple[TrainState, TrainState]:
  """A run's best and latest states, as training left them.

  Raises:
    InputError: as `open_run`.
  """
  config = workdir.read_config(path)
  like = build(config).abstract_state
  checkpoints = checkpoint.Checkpoints(pathlib.Path(path), create=False)

  def warn(text: str) -> None:
    print(text, file=sys.stderr)

  try:
    best, _ = checkpoints.restore_best(like, warn)
    latest = checkpoints.restore_latest(like, warn)
  finally:
    checkpoints.close()
  return best, latest[0] if latest else best


def load_data(
  run: TrainedRun, image: str = '', label: str = ''
) -> data_set.DataSet:
  """Loads the data set of a run's training.

  Args:
    run: of `open_run`.
    image: of a run on a stack of one's own: where that lies now; by default
      where it lay.
    label: the same of the labels.

  Raises:
    InputError: the data set is missing, or has changed.
  """
  config = run.config.copy_and_resolve_references()
  own = config.data.source == 'stack'
  if (image or label) and not own:
    raise errors.InputError(
      f'{run.path} was trained on {run.dataset["name"]!r}, which is not a '
      'stack of your own: leave out --image and --labels.'
    )
  config.data.image = image or environment.expand_home(config.data.image)
  config.data.label = label or environment.expand_home(config.data.label)
  for path in (config.data.image, config.data.label) if own else ():
    if not (chunk_store.is_url(path) or pathlib.Path(path).exists()):
      raise errors.InputError(
        f'{run.path} was trained on {path}, which is not there: if it was '
        'moved, give its new place to evaluate by --image and --labels, or to '
        'train by --config.data.image and --config.data.label.'
      )
  data = sources.load(config)
  changed = data.change_since(run.dataset)
  if changed:
    raise errors.InputError(
      f'{run.path} was trained on {run.dataset["name"]!r}, but {data.name!r} '
      f'now has other {changed}: put back '
      + (
        'what it was trained on.'
        if own
        else 'the stacks, or name their folder in SKIPNET_DATA_DIR.'
      )
    )
  return data


def network_of(run: TrainedRun) -> str:
  """Sixteen hex digits that differ for other parameters."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(run.variables):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _is_of(run: TrainedRun, content: Mapping[str, Any]) -> bool:
  """Whether scores are of the best checkpoint, as far as they say."""
  epoch = content.get('best_epoch', run.best_epoch)
  if epoch != run.best_epoch:
    return False
  return 'network' not in content or content['network'] == network_of(run)


def best_threshold(
  runs: Sequence[TrainedRun],
  plain: bool,
  calibration: Mapping[str, float] | None = None,
) -> tuple[float, str]:
  """The threshold with the best V_rand in a run's own scores.

  Args:
    runs: of the prediction.
    plain: whether nothing is averaged; scores.json has separate scores for it.
    calibration: of the prediction, as scores.json has it; None: none. Scores
      with another calibration, or of an earlier checkpoint, are of no use.

  Returns:
    The threshold from scores.json, else from summary.json, else 0.5, which
    several averaged runs always get; and its origin.
  """
  if len(runs) > 1:
    return 0.5, 'the default for several runs'
  for path in (runs[0].path / 'scores.json', runs[0].path / 'summary.json'):
    try:
      content = json.loads(path.read_text())
      if not _is_of(runs[0], content):
        continue
      calibrations = [*content.get('calibration', {}).values()] or [None]
      if calibration not in calibrations:
        continue
      if plain:
        content = content.get('plain', content)
      threshold = scores.from_json(float(content['threshold_v_rand']))
      return threshold, str(path)
    except FileNotFoundError:
      continue
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
      raise errors.InputError(
        f'{path} has no readable threshold_v_rand: write it again with '
        'evaluate, or give --threshold.'
      ) from e
  if calibration is not None:
    return 0.5, 'the best of the training slices, by calibration'
  return 0.5, f'the default, as {runs[0].path} has no scores of this network'
