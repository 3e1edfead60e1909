"""A finished run as a predictor, and its scores on its own data."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.data import sources
from skipnet_jax.evaluation import inference
from skipnet_jax.evaluation import scores
from skipnet_jax.training import build as build_lib
from skipnet_jax.training import checkpoint
from skipnet_jax.training import optim
from skipnet_jax.training import state as state_lib
from skipnet_jax.training import workdir

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
  model: nn.Module
  variables: inference.Variables
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
) -> tuple[nn.Module, state_lib.TrainState]:
  """A config's network, and what its checkpoints hold: shapes and dtypes."""
  # The shapes depend neither on the window nor on the length of an epoch.
  training = build_lib.build(config, state_lib.SIDES, 1)
  return training.model, training.abstract_state


def open_run(path: str | os.PathLike) -> TrainedRun:
  """Restores the best checkpoint of a run; compiles nothing.

  Raises:
    InputError: the folder is no run's, has no best checkpoint, or one of
      another model.
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


def make_predictor(
  runs: Sequence[TrainedRun], *, tta: bool = False, mc_samples: int = 0
) -> inference.Predictor:
  """Averages the runs' predictions, see `inference.Predictor`.

  Raises:
    InputError: runs of different networks, or dropout samples of a network
      without dropout.
  """
  first = runs[0]
  for other in runs[1:]:
    changed = config_identity.differences(
      *(
        {f'model.{name}': value for name, value in run.config.model.items()}
        for run in (first, other)
      )
    )
    if changed:
      raise errors.InputError(
        f'{first.path} and {other.path} have different networks: '
        f'{", ".join(changed)}; average runs of one network.'
      )
  if mc_samples < 0:
    raise errors.InputError(
      f'--mc_samples is {mc_samples}; it must be at least 0 (no dropout).'
    )
  if mc_samples and not getattr(first.model, 'dropout', 0):
    raise errors.InputError(
      f'--mc_samples is {mc_samples}, but {first.path} has model.dropout 0: '
      'leave it out, or train with dropout.'
    )
  return inference.Predictor(
    first.model, [r.variables for r in runs], tta=tta, mc_samples=mc_samples
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


def score_slices(
  predictor: inference.Predictor,
  data: sources.DataSet,
  slices: Sequence[int],
  say: Callable[[str], None] = lambda _: None,
  advance: Callable[[], object] = lambda: None,
) -> tuple[np.ndarray, dict[str, Any]]:
  """Predicts some slices of a data set and scores them.

  Returns:
    The predictions, `[z, y, x]` float32, and the content of a scores.json
    whose `per_slice` has the data set's own numbers.
  """
  tiling = predictor.tiling(data.image.shape[1:], say=say)
  predictions = np.stack(
    [
      predictor(data.around(z, predictor.slices), tiling, advance)[0]
      for z in slices
    ]
  )
  result = scores.score_stack(predictions, data.label[list(slices)])
  for z, row in zip(slices, result['per_slice'], strict=True):
    row['slice'] = int(z)
  return predictions, result


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
