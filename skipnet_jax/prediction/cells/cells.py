"""Cells of a slice by multicut, from a probability map and the image.

The slice is cut into superpixels; a regression gives each edge between two of
them the probability that it lies between two cells; the multicut of these
probabilities gives the cells. Guo et al. 2019 post-process by lifted multicut,
with a random forest in place of the regression.
"""

import dataclasses

import numpy as np
from scipy import special

from skipnet_jax.data import labels as labels_lib
from skipnet_jax.prediction.cells import edges as edges_lib
from skipnet_jax.prediction.cells import lifted as lifted_lib
from skipnet_jax.prediction.cells import logistic
from skipnet_jax.prediction.cells import multicut
from skipnet_jax.prediction.cells import superpixels

METHODS = ('multicut', 'lifted_multicut')
# Probabilities nearer to 0 or 1 cost as this one.
_LEAST_PROBABILITY = 1e-3
# Of all lifted edges together, over the number of edges. Chosen on training
# slices, with regressions fitted to other slices.
_LIFTED_WEIGHT = 0.5


@dataclasses.dataclass(frozen=True)
class Measured:
  """A slice's superpixels, see `edges.build_graph` and `edges.features`."""

  graph: edges_lib.Graph
  features: np.ndarray
  regions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Regressions:
  """Log odds that an edge, or a lifted edge, lies between two cells.

  `lifted` is None if the training slices have too few lifted edges.
  """

  local: logistic.Logistic
  lifted: logistic.Logistic | None


def measure(inside: np.ndarray, image: np.ndarray) -> Measured:
  """Superpixels and edge features of a slice.

  Args:
    inside: `[y, x]` float, the probability of the inside of cells, as the
      network gives it: not calibrated.
    image: `[y, x]`, grey values.

  Raises:
    InputError: the probabilities are not finite.
  """
  graph = edges_lib.build_graph(superpixels.superpixels(inside))
  return Measured(graph, *edges_lib.features(graph, inside, image))


def segment(
  measured: Measured, regressions: Regressions, method: str
) -> np.ndarray:
  """Numbers the cells of a slice.

  Args:
    measured: the slice.
    regressions: fitted to training slices.
    method: one of METHODS; with 'lifted_multicut', `regressions.lifted` is not
      None.

  Returns:
    `[y, x]` int32, numbers from 1 up, without borders. A slice of one
    superpixel is one cell.
  """
  graph = measured.graph
  edges = len(graph.edges)
  if not edges:
    return graph.labels + np.int32(1)
  log_odds = regressions.local.log_odds(measured.features)
  weights = np.sqrt(graph.lengths / graph.lengths.mean())
  lifted: tuple[np.ndarray, np.ndarray] | tuple[()] = ()
  if method == 'lifted_multicut':
    assert regressions.lifted is not None
    pairs, found = lifted_lib.find(graph, measured.regions, log_odds)
    weight = _LIFTED_WEIGHT * edges / max(1, len(pairs))
    lifted = pairs, weight * _costs(regressions.lifted.log_odds(found))
  groups = multicut.solve(
    graph.nodes, graph.edges, weights * _costs(log_odds), *lifted
  )
  return (groups + np.int32(1))[graph.labels]


def draw(cells: np.ndarray) -> np.ndarray:
  """A slice's cells as a picture, `[y, x]` bool: False on their borders.

  The border of two cells is the pixels on its left or upper side, as where
  `evaluate` scores numbered cells.
  """
  return labels_lib.outside_borders(cells[None], both=False)[0]


def _costs(log_odds: np.ndarray) -> np.ndarray:
  """What it costs to cut edges, by the log odds that they are cut."""
  limit = special.logit(1 - _LEAST_PROBABILITY)
  return -np.clip(log_odds, -limit, limit)
