"""Logistic regression: the probability of a class, from features."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from scipy import special

# The same for all networks and slices.
_L2 = 10.0
_MAX_STEPS = 100
_TOLERANCE = 1e-8


@dataclasses.dataclass(frozen=True)
class Logistic:
  """A fitted regression.

  Attributes:
    names: of the features.
    mean: `[f]`, what is subtracted from each feature.
    scale: `[f]`, by which it is then divided.
    weights: `[f]`, of the features so normalised.
    bias: the log odds where all of these are 0.
  """

  names: tuple[str, ...]
  mean: np.ndarray
  scale: np.ndarray
  weights: np.ndarray
  bias: float

  def log_odds(self, features: np.ndarray) -> np.ndarray:
    """`[n]` log odds of the class, from features `[n, f]`."""
    return (features - self.mean) / self.scale @ self.weights + self.bias

  def for_json(self) -> dict[str, Any]:
    """The regression as JSON values, see `from_json`."""
    rows = zip(self.mean, self.scale, self.weights, strict=True)
    return {
      'bias': self.bias,
      'features': {
        name: dict(
          zip(('mean', 'scale', 'weight'), map(float, row), strict=True)
        )
        for name, row in zip(self.names, rows, strict=True)
      },
    }


def from_json(content: Mapping[str, Any], names: tuple[str, ...]) -> Logistic:
  """The regression that `for_json` wrote.

  Raises:
    ValueError: it has other features than `names`, or no finite numbers.
  """
  try:
    rows = content['features']
    if tuple(rows) != names:
      raise ValueError('it has other features')
    mean, scale, weights = (
      np.array([rows[name][key] for name in names], np.float64)
      for key in ('mean', 'scale', 'weight')
    )
    found = Logistic(names, mean, scale, weights, float(content['bias']))
  except KeyError as e:
    raise ValueError(f'it has no {e}') from e
  except TypeError as e:
    raise ValueError('it has a value of another type') from e
  parts = found.mean, found.scale, found.weights, found.bias
  if not all(np.isfinite(part).all() for part in parts) or 0 in found.scale:
    raise ValueError('it has numbers that are not finite')
  return found


def fit(
  features: np.ndarray, positive: np.ndarray, names: tuple[str, ...]
) -> Logistic:
  """Fits by Newton's method: the sum of the losses plus 5 * sum(weights^2).

  Args:
    features: `[n, f]` float64, finite.
    positive: `[n]` bool, True in the class; both values occur.
    names: of the features.
  """
  mean, scale = features.mean(0), features.std(0)
  # A feature that never varies says nothing.
  scale = np.where(scale > 1e-12, scale, 1.0)
  x = np.concatenate(
    [(features - mean) / scale, np.ones((len(features), 1))], 1
  )
  penalty = np.append(np.full(len(names), _L2), 0.0)
  weights = np.zeros(len(penalty))

  def loss(weights: np.ndarray) -> float:
    odds = x @ weights
    losses = np.logaddexp(0, np.where(positive, -odds, odds))
    return float(losses.sum() + 0.5 * penalty @ weights**2)

  reached = loss(weights)
  for _ in range(_MAX_STEPS):
    share = special.expit(x @ weights)
    slope = x.T @ (share - positive) + penalty * weights
    curvature = (x * (share * (1 - share))[:, None]).T @ x + np.diag(penalty)
    step = np.linalg.solve(curvature, slope)
    length = 1.0
    while loss(weights - length * step) > reached and length > 1e-6:
      length /= 2
    weights = weights - length * step
    before, reached = reached, loss(weights)
    if before - reached < _TOLERANCE * max(1.0, reached):
      break
  return Logistic(names, mean, scale, weights[:-1], float(weights[-1]))
