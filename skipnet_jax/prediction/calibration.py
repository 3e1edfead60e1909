"""Calibration: moves the best threshold of a network's output to 0.5.

The scores' thresholds are 0.1 apart, but V_rand is often best between 0.9 and
1: one gap in a membrane joins two cells. All odds are divided by those of
the best threshold of the training slices, so that the order of all pixels stays
as it is and the scores' thresholds are dense where they matter.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from scipy import special

from skipnet_jax.prediction import fitted
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores

KIND = fitted.Kind(
  file='calibration.json',
  flag='--calibration=fit',
  version=1,
  remedy=', or pass --calibration=off',
)
# Thresholds that are tried, as log odds.
_LOG_ODDS = np.arange(-4, 16.25, 0.5)
# The scores' thresholds from 0.1 to 0.9 span all thresholds whose V_rand is at
# least this share of the best.
_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Calibration:
  """An increasing map of probabilities.

  Attributes:
    log_odds: of the threshold that becomes 0.5.
    scale: by which the difference to it, as log odds, is multiplied.
  """

  log_odds: float
  scale: float

  @property
  def threshold(self) -> float:
    """The threshold of the network's output that becomes 0.5."""
    return float(special.expit(self.log_odds))

  def __call__(self, probability: np.ndarray) -> np.ndarray:
    """Maps probabilities; float32, of the same shape."""
    odds = special.logit(np.asarray(probability, np.float64))
    mapped = special.expit(self.scale * (odds - self.log_odds))
    return mapped.astype(np.float32)

  def for_json(self) -> dict[str, float]:
    """The fields, and the threshold to read."""
    return dataclasses.asdict(self) | {'threshold': self.threshold}


def fit(predictions: np.ndarray, inside: np.ndarray) -> Calibration:
  """Fits to predictions of training slices.

  Args:
    predictions: `[z, y, x]` float, the probability of the inside of cells.
    inside: `[z, y, x]` bool, True inside.
  """
  found = scores.score_stack(
    predictions, inside, [float(t) for t in special.expit(_LOG_ODDS)]
  )
  rows = [row['v_rand'] for row in found['per_threshold']]
  values = np.array([0.0 if v is None else v for v in rows])
  best = _LOG_ODDS[values.argmax()]
  near = _LOG_ODDS[values >= _SHARE * values.max()]
  reach = max(best - near[0], near[-1] - best, 1e-3)
  # At most 1: a larger one would round more pixels to 1.
  scale = min(1.0, special.logit(0.9) / reach)
  return Calibration(float(best), float(scale))


def of_run(
  run: trained.TrainedRun, averaging: fitted.Averaging
) -> Calibration | None:
  """The calibration in a run's folder; None if it has none for this averaging.

  Raises:
    InputError: calibration.json cannot be used.
  """
  content = fitted.read(run, KIND, averaging)
  return None if content is None else _from_json(run, averaging, content)


def describe(
  run: trained.TrainedRun,
  averaging: fitted.Averaging,
  calibration: Calibration | None,
) -> str:
  """A sentence on what was done; '' if the run has no calibration at all."""
  path = run.path / KIND.file
  if calibration is not None:
    return (
      f"{averaging.name}: calibrated, so that the network's "
      f'{calibration.threshold:.3f} is 0.5 now ({path})'
    )
  if not path.exists():
    return ''
  return (
    f'{averaging.name}: not calibrated, as {path} has no fit for it; for one, '
    f'{fitted.remedy(run, KIND, averaging)}'
  )


def _from_json(
  run: trained.TrainedRun,
  averaging: fitted.Averaging,
  content: Mapping[str, Any],
) -> Calibration:
  try:
    found = Calibration(float(content['log_odds']), float(content['scale']))
  except (LookupError, TypeError, ValueError) as e:
    raise fitted.refusal(run, KIND, averaging, 'has no readable fit') from e
  if not (np.isfinite(found.log_odds) and 0 < found.scale <= 1):
    raise fitted.refusal(run, KIND, averaging, f'has an unusable fit ({found})')
  return found
