"""A finished run, opened: its network, parameters and data."""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import sources
from skipnet_jax.models import network
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import workdir
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import optim
from skipnet_jax.step import state as state_lib

SPLITS = ('valid', 'train')


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run's network with the parameters of its best checkpoint.

  Attributes:
    path: the run's folder.
    config: the run's config.
    dataset: name and fingerprint of what it was trained on.
    model: the network.
    variables: params (averaged ones where the run keeps them), batch_stats.
    best_epoch: after which the checkpoint was made.
  """

  path: pathlib.Path
  config: ml_collections.ConfigDict
  dataset: dict[str, str]
  model: network.Network
  variables: dict[str, Any]
  best_epoch: int

  @property
  def warning(self) -> str:
    """A sentence for every artefact; '' where the data were real."""
    if not self.dataset['name'].startswith('synthetic'):
      return ''
    return (
      f'SYNTHETIC DATA: {self.path} was trained on {self.dataset["name"]}, so '
      'nothing here says anything about real tissue.'
    )


def abstract_state(
  config: ml_collections.ConfigDict,
) -> tuple[network.Network, state_lib.TrainState]:
  """A config's network, and what its checkpoints hold: shapes and dtypes."""
  # The shapes depend neither on the window nor on the length of an epoch.
  sides = models.build_model(config.model).init_size()
  training = build_lib.build(config, sides, 1)
  return training.model, training.abstract_state


def open_run(path: str | os.PathLike) -> TrainedRun:
  """Restores the best checkpoint of a run; compiles nothing.

  It is `skipnet_jax.load_run`.

  Args:
    path: the run's folder, the `--workdir` of its training.

  Returns:
    The run; the arrays of its `variables` are float32, on the first device.

  Raises:
    InputError: the folder is no run's, has no best checkpoint, or one of
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
  config_lib.validate(config)
  model, like = abstract_state(config)
  checkpoints = checkpoint.Checkpoints(path, create=False)
  try:
    state, meta = checkpoints.restore_best(
      like, lambda text: print(text, file=sys.stderr)
    )
  finally:
    checkpoints.close()
  return TrainedRun(
    path=path,
    config=config,
    dataset=workdir.read_dataset(path),
    model=model,
    variables={
      'params': optim.eval_params(state.params, state.opt_state),
      'batch_stats': state.batch_stats,
    },
    best_epoch=int(meta['best_epoch']),
  )


def load_data(run: TrainedRun) -> sources.DataSet:
  """The data set that a run was trained on.

  Raises:
    InputError: it is not found, or another one is.
  """
  data = sources.load(run.config)
  if data.fingerprint() != run.dataset['fingerprint']:
    raise errors.InputError(
      f'{run.path} was trained on {run.dataset["name"]!r}, but the data found '
      f'now are another {data.name!r}: put the stacks back, or name their '
      'folder in SKIPNET_DATA_DIR.'
    )
  return data


def best_threshold(
  runs: Sequence[TrainedRun], plain: bool
) -> tuple[float, str]:
  """The threshold with the best V_rand that a run's own scores name.

  Args:
    runs: of the prediction.
    plain: whether nothing is averaged, which has scores of its own.

  Returns:
    That of scores.json, else of summary.json; 0.5 where there is none or
    several runs are averaged; and what it comes from.
  """
  if len(runs) > 1:
    return 0.5, 'the default for several runs'
  for path in (runs[0].path / 'scores.json', runs[0].path / 'summary.json'):
    if not path.exists():
      continue
    try:
      content = json.loads(path.read_text())
      if plain:
        content = content.get('plain', content)
      return float(content['threshold_v_rand']), str(path)
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise errors.InputError(
        f'{path} has no readable threshold_v_rand ({type(e).__name__}): make '
        'it anew with evaluate, or give --threshold.'
      ) from e
  return 0.5, f'the default, as {runs[0].path} has no scores'
