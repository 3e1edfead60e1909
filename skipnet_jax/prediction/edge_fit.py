"""Fits the regressions of `cells` to the training slices of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction.cells import cells
from skipnet_jax.prediction.cells import edges as edges_lib
from skipnet_jax.prediction.cells import lifted as lifted_lib
from skipnet_jax.prediction.cells import logistic
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores
from skipnet_jax.scores import thinning

KIND = fitted.Kind(file='edges.json', flag='--segment=multicut', version=1)
# Parts of the training slices; each is segmented by a fit to the others.
_FOLDS = 5


def true_regions(graph: edges_lib.Graph, inside: np.ndarray) -> np.ndarray:
  """The true region of each superpixel, `[nodes]` int64; 0: none.

  That is the region with more than half of the superpixel's pixels.

  Args:
    graph: the superpixels.
    inside: `[y, x]` bool, the labels, True inside a cell.
  """
  node, region, shared = _overlaps(graph, inside)
  most = 2 * shared > np.bincount(graph.labels.ravel())[node]
  found = np.zeros(graph.nodes, np.int64)
  found[node[most]] = region[most]
  return found


def nearest_regions(graph: edges_lib.Graph, inside: np.ndarray) -> np.ndarray:
  """The true region that shares most pixels with each superpixel.

  No segmentation by these superpixels comes much closer to the labels. One
  without a true region has a number of its own. Arguments and result are those
  of `true_regions`.
  """
  node, region, shared = _overlaps(graph, inside)
  found = region.max() + 1 + np.arange(graph.nodes)
  order = np.argsort(shared, kind='stable')
  order = order[region[order] > 0]
  # The last value that is written to a place stays.
  found[node[order]] = region[order]
  return found


def _overlaps(
  graph: edges_lib.Graph, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Each pair of a superpixel and a true region, and the pixels they share."""
  regions = thinning.label_regions(inside)
  count = int(regions.max()) + 1
  keys, shared = np.unique(
    graph.labels.astype(np.int64) * count + regions, return_counts=True
  )
  return keys // count, keys % count, shared


def fit(
  slices: Sequence[cells.Measured], inside: np.ndarray
) -> cells.Regressions:
  """Fits to slices, where the true regions of both superpixels are known.

  Args:
    slices: of `cells.measure`.
    inside: `[z, y, x]` bool, their labels.

  Raises:
    InputError: all edges are between cells, or none is.
  """
  truths = [
    true_regions(each.graph, page)
    for each, page in zip(slices, inside, strict=True)
  ]
  x, y = _known(
    [each.features for each in slices],
    [each.graph.edges for each in slices],
    truths,
  )
  if y.all() or not y.any():
    raise errors.InputError(
      f'{np.count_nonzero(y)} of the {len(y)} edges between superpixels of the '
      'training slices are between two cells, but there must be some that are '
      'and some that are not: train longer, or label more slices.'
    )
  local = logistic.fit(x, y, edges_lib.FEATURES)
  found = [
    lifted_lib.find(each.graph, each.regions, local.log_odds(each.features))
    for each in slices
  ]
  x, y = _known(
    [each for _, each in found], [pairs for pairs, _ in found], truths
  )
  if y.all() or not y.any():
    return cells.Regressions(local, None)
  return cells.Regressions(local, logistic.fit(x, y, lifted_lib.FEATURES))


def _known(
  features: Sequence[np.ndarray],
  pairs: Sequence[np.ndarray],
  truths: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Features of all pairs of known regions, and whether these differ."""
  x, y = [], []
  for rows, ends, truth in zip(features, pairs, truths, strict=True):
    one, two = truth[ends[:, 0]], truth[ends[:, 1]]
    known = (one > 0) & (two > 0)
    x.append(rows[known])
    y.append((one != two)[known])
  return np.concatenate(x), np.concatenate(y)


def training_scores(
  slices: Sequence[cells.Measured], inside: np.ndarray
) -> dict[str, dict[str, float]]:
  """Scores of slices that are segmented by fits to the others.

  Arguments are those of `fit`.

  Returns:
    Each of `cells.METHODS` to its `v_rand` and `v_info`; {} for a single slice,
    or where no fit to a part of the slices is possible.
  """
  count = len(slices)
  if count < 2:
    return {}
  drawn: dict[str, list[np.ndarray]] = {method: [] for method in cells.METHODS}
  for part in np.array_split(np.arange(count), min(_FOLDS, count)):
    rest = np.setdiff1d(np.arange(count), part)
    try:
      found = fit([slices[z] for z in rest], inside[rest])
    except errors.InputError:
      return {}
    if found.lifted is None:
      drawn.pop('lifted_multicut', None)
    for method, pages in drawn.items():
      pages += [
        cells.draw(cells.segment(slices[z], found, method)) for z in part
      ]
  results = {
    method: scores.score_stack(np.stack(pages), inside, [0.5])
    for method, pages in drawn.items()
  }
  return {
    method: {key: result[key] for key in ('v_rand', 'v_info')}
    for method, result in results.items()
  }


def for_json(
  regressions: cells.Regressions,
  slices: Sequence[int],
  found: Mapping[str, Any],
) -> dict[str, Any]:
  """The content of a fit in edges.json.

  Args:
    regressions: of `fit`.
    slices: the training slices.
    found: their `training_scores`.
  """
  lifted = regressions.lifted
  return {
    'slices': list(slices),
    'training_scores': dict(found),
    'local': regressions.local.for_json(),
    'lifted': None if lifted is None else lifted.for_json(),
  }


def of_run(
  run: trained.TrainedRun, averaging: fitted.Averaging, method: str
) -> tuple[cells.Regressions, Mapping[str, Any]]:
  """The regressions in a run's folder, and their `for_json`.

  Raises:
    InputError: edges.json cannot be used, or has no fit for this averaging and
      method; the message names the command that makes it.
  """
  content = fitted.read(run, KIND, averaging)
  if content is None:
    exists = (run.path / KIND.file).exists()
    problem = f'has no fit for {averaging.name}' if exists else 'is missing'
    raise fitted.refusal(run, KIND, averaging, problem)
  try:
    local = logistic.from_json(content['local'], edges_lib.FEATURES)
    lifted = content['lifted'] and logistic.from_json(
      content['lifted'], lifted_lib.FEATURES
    )
    describe(run, content)
  except (LookupError, TypeError, ValueError) as e:
    raise fitted.refusal(
      run, KIND, averaging, f'has no readable fit ({e})'
    ) from e
  if method == 'lifted_multicut' and not lifted:
    raise errors.InputError(
      f'{run.path / KIND.file} has no fit for lifted edges, as the training '
      'slices have too few: use multicut.'
    )
  return cells.Regressions(local, lifted or None), content


def describe(run: trained.TrainedRun, content: Mapping[str, Any]) -> list[str]:
  """Lines on a fit: its slices, and what lifted edges add on them."""
  path, slices = run.path / KIND.file, content['slices']
  lines = [f'{path}: edges fitted to {len(slices)} training slices']
  found = content['training_scores']
  for method, row in found.items():
    lines.append(
      f'training slices, each by a fit to others, {method}: V_rand '
      f'{row["v_rand"]:.4f}, V_info {row["v_info"]:.4f}'
    )
  if len(found) == 2:
    local, lifted = found['multicut'], found['lifted_multicut']
    rand, info = (lifted[key] - local[key] for key in ('v_rand', 'v_info'))
    lines.append(
      f'there, lifted edges add {rand:+.4f} to V_rand, {info:+.4f} to V_info'
    )
  return lines
