"""Runs as one predictor, and its scores on a data set."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.data import sources
from skipnet_jax.prediction import inference
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores


def make_predictor(
  runs: Sequence[trained.TrainedRun], *, tta: bool = False, mc_samples: int = 0
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
  if mc_samples and not first.model.dropout:
    raise errors.InputError(
      f'--mc_samples is {mc_samples}, but {first.path} has model.dropout 0: '
      'leave it out, or train with dropout.'
    )
  return inference.Predictor(
    first.model, [r.variables for r in runs], tta=tta, mc_samples=mc_samples
  )


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
