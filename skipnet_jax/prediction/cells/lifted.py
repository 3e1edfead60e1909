"""Lifted edges: pairs of superpixels that are near, but do not touch."""

import numpy as np

from skipnet_jax.prediction.cells import edges as edges_lib

# Edges on the shortest path between the two, at most.
MAX_DISTANCE = 4

FEATURES = (
  'path_highest',
  'path_sum',
  'distance',
  *edges_lib.REGION_FEATURES,
)


def find(
  graph: edges_lib.Graph, regions: np.ndarray, log_odds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The lifted edges of a slice, and what is known of each.

  A path leads over 2 to MAX_DISTANCE edges. Of a pair, `path_highest` is the
  log odds of the most likely cut on the path where that is least, `path_sum`
  the negative logarithm of the chance that no edge of a path is cut, where that
  is least, and `distance` the number of edges on the shortest path.

  Args:
    graph: of `edges.build_graph`.
    regions: of `edges.features`.
    log_odds: `[e]` float64, that an edge of the graph is cut.

  Returns:
    `[l, 2]` int64 pairs of superpixels, the smaller first, in increasing order;
    their features, `[l, len(FEATURES)]` float64.
  """
  nodes = graph.nodes
  ends = np.concatenate([graph.edges, graph.edges[:, ::-1]])
  highest = np.tile(log_odds, 2)
  total = np.logaddexp(0, highest)
  order = np.argsort(ends[:, 0], kind='stable')
  first, second = ends[order].T
  step_highest, step_total = highest[order], total[order]
  starts = np.searchsorted(first, np.arange(nodes + 1))
  degrees = np.diff(starts)

  keys = known = first * nodes + second
  path_highest, path_total = step_highest, step_total
  found = []
  for distance in range(2, MAX_DISTANCE + 1):
    # Every path goes on over every edge of its last superpixel.
    last = keys % nodes
    counts = degrees[last]
    path = np.repeat(np.arange(len(keys)), counts)
    offsets = np.arange(len(path)) - np.repeat(
      np.cumsum(counts) - counts, counts
    )
    edge = starts[last][path] + offsets
    reached = keys[path] // nodes * nodes + second[edge]
    new = reached // nodes != reached % nodes
    new &= ~np.isin(reached, known)
    path, edge, reached = path[new], edge[new], reached[new]
    keys, place = np.unique(reached, return_inverse=True)
    highest = np.full(len(keys), np.inf)
    total = highest.copy()
    np.minimum.at(
      highest, place, np.maximum(path_highest[path], step_highest[edge])
    )
    np.minimum.at(total, place, path_total[path] + step_total[edge])
    path_highest, path_total = highest, total
    known = np.union1d(known, keys)
    once = keys // nodes < keys % nodes
    distances = np.full(np.count_nonzero(once), float(distance))
    columns = highest[once], total[once], distances
    found.append((keys[once], np.stack(columns, 1)))
  keys = np.concatenate([each for each, _ in found])
  order = np.argsort(keys, kind='stable')
  pairs = np.stack([keys // nodes, keys % nodes], 1)[order]
  paths = np.concatenate([each for _, each in found])[order]
  return pairs, np.concatenate([paths, edges_lib.of_pairs(regions, pairs)], 1)
