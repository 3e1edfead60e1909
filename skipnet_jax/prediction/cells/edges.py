"""The edges between the superpixels of a slice, and what is known of each."""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import ndimage
from scipy import special

# The same for all networks and slices. Smoothing in pixels.
_MEMBRANE_SMOOTHING = (0.0, 1.6, 4.0)
_IMAGE_SMOOTHING = (0.0, 1.6)
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# Probabilities nearer to 0 or 1 have the log odds of this one.
_LEAST_PROBABILITY = 1e-3

_MAPS = (
  *(f'membrane_{sigma:g}' for sigma in _MEMBRANE_SMOOTHING),
  *(f'image_{sigma:g}' for sigma in _IMAGE_SMOOTHING),
)
_STATISTICS = ('std', 'mean', 'min', 'max', *(f'q{q:g}' for q in _QUANTILES))
_REGION = (
  *('membrane_mean', 'membrane_std', 'image_mean', 'image_std', 'log_size'),
)
REGION_FEATURES = tuple(
  f'region_{name}_{kind}'
  for kind in ('difference', 'minimum', 'maximum')
  for name in _REGION
)
FEATURES = (
  *(f'{name}_{statistic}' for name in _MAPS for statistic in _STATISTICS),
  *(
    f'{name}_{statistic}_log_odds'
    for name in _MAPS[: len(_MEMBRANE_SMOOTHING)]
    for statistic in _STATISTICS[1:]
  ),
  'log_length',
  *REGION_FEATURES,
)


@dataclasses.dataclass(frozen=True)
class Graph:
  """Superpixels and the edges between those that touch by a side.

  Attributes:
    labels: `[y, x]` int32, the superpixel of each pixel, from 0 up.
    nodes: number of superpixels.
    edges: `[e, 2]` int64, the smaller number first, in increasing order.
    lengths: `[e]` int64, the pixel sides along each edge.
    pixels: `[2 * sum(lengths)]` int64, the pixels on both sides of the first
      edge, then of the second, as places in the flat slice.
  """

  labels: np.ndarray
  nodes: int
  edges: np.ndarray
  lengths: np.ndarray
  pixels: np.ndarray


def build_graph(labels: np.ndarray) -> Graph:
  """The graph of superpixels `[y, x]` int32, numbered from 0 up."""
  nodes = int(labels.max()) + 1
  width = labels.shape[1]
  sides = []
  for step, first, second in (
    (1, labels[:, :-1], labels[:, 1:]),
    (width, labels[:-1], labels[1:]),
  ):
    y, x = np.nonzero(first != second)
    sides.append(np.stack([y * width + x, y * width + x + step]))
  pixels = np.concatenate(sides, 1)
  ends = np.sort(labels.ravel()[pixels].astype(np.int64), 0)
  keys = ends[0] * nodes + ends[1]
  order = np.argsort(keys, kind='stable')
  unique, lengths = np.unique(keys, return_counts=True)
  return Graph(
    labels=labels,
    nodes=nodes,
    edges=np.stack([unique // nodes, unique % nodes], 1),
    lengths=lengths,
    pixels=pixels[:, order].T.ravel(),
  )


def features(
  graph: Graph, inside: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What is known of each edge, and of each superpixel.

  Args:
    graph: of `build_graph`.
    inside: `[y, x]` float, the probability of the inside of cells.
    image: `[y, x]`, grey values.

  Returns:
    `[e, len(FEATURES)]` float64 of the edges; `[nodes, 5]` of the superpixels:
    mean and standard deviation of the probability of a membrane and of the
    normalised image, and the logarithm of the number of pixels.
  """
  membrane = 1 - np.asarray(inside, np.float64)
  grey = np.asarray(image, np.float64)
  grey = (grey - grey.mean()) / (grey.std() or 1.0)
  # One map at a time: a slice may be large.
  statistics = [
    _border_statistics(
      graph,
      (ndimage.gaussian_filter(source, sigma) if sigma else source).ravel(),
    )
    for source, sigmas in (
      (membrane, _MEMBRANE_SMOOTHING),
      (grey, _IMAGE_SMOOTHING),
    )
    for sigma in sigmas
  ]
  log_odds = [
    special.logit(
      np.clip(found[:, 1:], _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    )
    for found in statistics[: len(_MEMBRANE_SMOOTHING)]
  ]
  regions = _region_statistics(graph, (membrane, grey))
  length = np.log(graph.lengths)[:, None]
  of_edges = [
    *(*statistics, *log_odds, length),
    of_pairs(regions, graph.edges),
  ]
  return np.concatenate(of_edges, 1), regions


def of_pairs(regions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
  """REGION_FEATURES of pairs `[p, 2]` of superpixels, `[p, 15]`.

  `regions` are those of `features`. The order of a pair does not matter.
  """
  one, two = regions[pairs[:, 0]], regions[pairs[:, 1]]
  parts = np.abs(one - two), np.minimum(one, two), np.maximum(one, two)
  return np.concatenate(parts, 1)


def _border_statistics(graph: Graph, values: np.ndarray) -> np.ndarray:
  """_STATISTICS of the pixels on both sides of each edge, `[e, 9]`."""
  counts = 2 * graph.lengths
  if not len(counts):
    return np.zeros((0, len(_STATISTICS)))
  starts = np.cumsum(counts) - counts
  edge = np.repeat(np.arange(len(counts)), counts)
  found = values[graph.pixels]
  found = found[np.lexsort((found, edge))]
  mean = np.add.reduceat(found, starts) / counts
  squares = np.add.reduceat((found - mean[edge]) ** 2, starts) / counts

  def at(share: float) -> np.ndarray:
    place = share * (counts - 1)
    below = place.astype(np.int64)
    low = found[starts + below]
    high = found[starts + np.minimum(below + 1, counts - 1)]
    return low + (place - below) * (high - low)

  shares: Sequence[float] = (0.0, 1.0, *_QUANTILES)
  return np.stack([np.sqrt(squares), mean, *map(at, shares)], 1)


def _region_statistics(graph: Graph, maps: Sequence[np.ndarray]) -> np.ndarray:
  numbers = graph.labels.ravel()
  sizes = np.bincount(numbers)
  columns = []
  for page in maps:
    values = page.ravel()
    mean = np.bincount(numbers, values) / sizes
    squares = np.bincount(numbers, (values - mean[numbers]) ** 2) / sizes
    columns += [mean, np.sqrt(squares)]
  return np.stack([*columns, np.log(sizes)], 1)
