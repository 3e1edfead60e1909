"""A figure together with its data, and the depth axis that figures share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from skipnet_jax import plots

_WIDTH = 10.0  # Inches.
# Of the files of all figures.
NAMES = (
  *('heat_map_net_change', 'heat_map_grad_l2', 'profiles', 'curves'),
  *('gradient_norms', 'split', 'path_lengths', 'propagation', 'depth'),
  *('lesions', 'first_steps', 'critical_sharpness', 'network'),
)


@dataclasses.dataclass(frozen=True)
class FigureWithData:
  """A figure and the table of the numbers in it.

  Attributes:
    name: of its files, one of `NAMES`.
    title: its heading.
    text: what it shows, and how that was computed.
    figure: a matplotlib Figure.
    columns: of the table.
    rows: of the table.
  """

  name: str
  title: str
  text: str
  figure: Any
  columns: Sequence[str]
  rows: Iterable[Sequence[Any]]


def stage_of(layer: str) -> str:
  """The part of the network that contains a layer: its outermost module."""
  # A long skip's projections belong to the stage that they feed.
  return layer.split('/')[0].removeprefix('long_skip_')


def stages_of(layers: Sequence[str]) -> list[tuple[str, int, int]]:
  """Each stage's name, first layer and the layer after its last, in order."""
  stages, begin = [], 0
  for name, group in itertools.groupby(layers, stage_of):
    end = begin + len(list(group))
    stages.append((name, begin, end))
    begin = end
  return stages


def layer_rows(
  network: Sequence[Any], layers: Sequence[str], *columns: Iterable[Any]
) -> Iterator[list[Any]]:
  """Table rows: `network`, layer index, layer, its value in each column."""
  for i, (layer, *values) in enumerate(zip(layers, *columns, strict=True)):
    yield [*network, i, layer, *values]


def mark_depth(
  axes: Sequence[Any], networks: Sequence[Sequence[str]]
) -> list[np.ndarray]:
  """Labels the x axes by depth; returns the x of each network's layers.

  If all networks have the same stages, every stage has the length 1. Otherwise
  x is the relative depth, from 0 to 1.
  """
  stages = [stages_of(layers) for layers in networks]
  names = [name for name, _, _ in stages[0]]
  same = all([name for name, _, _ in other] == names for other in stages)
  aligned = same and len(names) <= 30
  for ax in axes:
    if aligned:
      ax.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=8)
      ax.tick_params(axis='x', rotation=60, length=0)
      ax.set_xlim(0, len(names))
      for edge in range(1, len(names)):
        ax.axvline(edge, color='0.9', lw=0.8, zorder=0)
    else:
      ax.set_xlabel('relative depth, input 0 to output 1')
      ax.set_xlim(0, 1)
  if not aligned:
    return [(np.arange(len(n)) + 0.5) / len(n) for n in networks]
  places = []
  for own in stages:
    counts = enumerate(end - begin for _, begin, end in own)
    parts = [i + (np.arange(count) + 0.5) / count for i, count in counts]
    places.append(np.concatenate(parts))
  return places


PROJECTIONS = (
  'Crosses: 1x1 projections of skips, which are not on the main path; the line '
  'leaves them out.'
)


def is_projection(layer: str) -> bool:
  """Whether a layer projects one side of a skip."""
  return 'skip' in layer.split('/')[-2:][0]


def draw_by_depth(
  ax: Any, x: np.ndarray, y: np.ndarray, layers: Sequence[str], **look: Any
) -> None:
  """Draws values of layers by depth: projections of skips apart, as crosses."""
  beside = np.array([is_projection(layer) for layer in layers])
  ax.plot(x[~beside], y[~beside], marker='.', ms=3, **look)
  ax.plot(x[beside], y[beside], 'x', ms=4, mew=0.8, color=look['color'])


def middle_of_seeds(values: np.ndarray) -> np.ndarray:
  """The median over seeds, of `[seeds, n]`; NaN where one has no value.

  A mean would be of the one seed whose loss jumps to a million.
  """
  return np.median(values, 0)


def draw_band(
  ax: Any, x: np.ndarray, values: np.ndarray, layers: Sequence[str], colour: str
) -> None:
  """Draws the range over several seeds, `[seeds, l]`, on the main path."""
  if len(values) < 2:
    return
  main = np.array([not is_projection(layer) for layer in layers])
  low, high = values[:, main].min(0), values[:, main].max(0)
  ax.fill_between(x[main], low, high, color=colour, alpha=0.2, lw=0)


def seeds_text(groups: Iterable[Sequence[Any]]) -> str:
  """Says what lines and bands are, where a network has several seeds."""
  counts = [len(group) for group in groups]
  if max(counts) < 2:
    return ''
  return f' Lines: the median of {max(counts)} seeds; bands: their range.'


def make_grid(count: int, height: float, columns: int = 2, **options: Any):
  """A figure of `count` axes, each `height` inches high, and the axes."""
  columns = min(columns, count)
  rows = -(-count // columns)
  figure = plots.make_figure(_WIDTH, rows * height + 0.4)
  axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
  for ax in axes[count:]:
    ax.set_visible(False)
  return figure, axes[:count]


def label_stages(ax: Any, stages: list, count: int) -> None:
  """Labels a y axis of layers; narrow stages only where there is space."""
  labels: dict[float, str] = {}
  for name, begin, end in sorted(stages, key=lambda s: s[1] - s[2]):
    middle = (begin + end - 1) / 2
    if all(abs(middle - taken) >= count / 28 for taken in labels):
      labels[middle] = name
  ax.set_yticks(list(labels), list(labels.values()), fontsize=7)
  ax.tick_params(axis='y', length=0)


# A run is cut off where it makes a logarithmic axis so many times as long as
# the others need, and by so many decades longer.
_SQUASHES, _DECADES = 2.0, 2.0


def clip_log_axis(ax: Any, by_run: Mapping[str, np.ndarray]) -> str:
  """Cuts a logarithmic y axis off where one of several runs squashes the rest.

  Args:
    ax: the axes; the values are drawn.
    by_run: the values, by the run's name; NaN and what is not positive do not
      count.

  Returns:
    What was cut off, a sentence with a leading blank; '' if nothing was.
  """
  logs = {}
  for run, values in by_run.items():
    good = values[np.isfinite(values) & (values > 0)]
    if good.size:
      logs[run] = np.log10(good)
  if len(logs) < 3:
    return ''

  def limits(names: Iterable[str]) -> tuple[float, float]:
    chosen = [logs[name] for name in names]
    return min(map(np.min, chosen)), max(map(np.max, chosen))

  low, high = limits(logs)
  others = {run: limits(name for name in logs if name != run) for run in logs}
  run = min(others, key=lambda name: others[name][1] - others[name][0])
  begin, end = others[run]
  saved = (high - low) - (end - begin)
  if saved < _DECADES or high - low < _SQUASHES * (end - begin):
    return ''
  margin = 0.05 * (end - begin) + 0.05
  ax.set_ylim(10 ** (begin - margin), 10 ** (end + margin))
  reached = [
    f'{10**edge:.0e}'
    for edge, beyond in ((low, low < begin), (high, high > end))
    if beyond
  ]
  return f' The axis is cut off: {run} reaches {" and ".join(reached)}.'
