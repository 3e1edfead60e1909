"""A figure with its numbers, and the depth axis that figures share."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

import numpy as np

from skipnet_jax import plots

_WIDTH = 10.0  # Inches.


@dataclasses.dataclass(frozen=True)
class Shown:
  """A figure and what it was drawn from.

  Attributes:
    name: of its files.
    title: its heading.
    text: what it shows, and how it was computed.
    figure: a matplotlib Figure.
    columns: of its table.
    rows: of its table.
  """

  name: str
  title: str
  text: str
  figure: Any
  columns: Sequence[str]
  rows: Iterable[Sequence[Any]]


def stage_of(layer: str) -> str:
  """The part of the network that a layer lies in: its outermost module."""
  # A long skip's projections belong to the stage that they feed.
  return layer.split('/')[0].removeprefix('long_skip_')


def stages_of(layers: Sequence[str]) -> list[tuple[str, int, int]]:
  """Name, first layer and one behind the last of each run of equal stages."""
  found: list[tuple[str, int, int]] = []
  for i, layer in enumerate(layers):
    if found and found[-1][0] == stage_of(layer):
      found[-1] = (found[-1][0], found[-1][1], i + 1)
    else:
      found.append((stage_of(layer), i, i + 1))
  return found


def depth_positions(layers: Sequence[str]) -> np.ndarray:
  """Layers' places on an axis where every stage has the length 1, `[l]`."""
  places = np.zeros(len(layers))
  for n, (_, begin, end) in enumerate(stages_of(layers)):
    places[begin:end] = n + (np.arange(end - begin) + 0.5) / (end - begin)
  return places


def mark_depth(
  axes: Sequence[Any], networks: Sequence[Sequence[str]]
) -> list[np.ndarray]:
  """Marks the stages on the x axes; returns each network's positions.

  Networks of the same stages are aligned by stage, others by relative depth.
  """
  names = [[name for name, _, _ in stages_of(layers)] for layers in networks]
  aligned = all(n == names[0] for n in names) and len(names[0]) <= 30
  for ax in axes:
    if aligned:
      ax.set_xticks(np.arange(len(names[0])) + 0.5, names[0], fontsize=8)
      ax.tick_params(axis='x', rotation=60, length=0)
      ax.set_xlim(0, len(names[0]))
      for edge in range(1, len(names[0])):
        ax.axvline(edge, color='0.9', lw=0.8, zorder=0)
    else:
      ax.set_xlabel('relative depth, input 0 to output 1')
      ax.set_xlim(0, 1)
  if aligned:
    return [depth_positions(layers) for layers in networks]
  return [(np.arange(len(n)) + 0.5) / len(n) for n in networks]


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
  """Names stages on a y axis of layers, the narrow ones where there is room."""
  labels: dict[float, str] = {}
  for name, begin, end in sorted(stages, key=lambda s: s[1] - s[2]):
    middle = (begin + end - 1) / 2
    if all(abs(middle - taken) >= count / 28 for taken in labels):
      labels[middle] = name
  ax.set_yticks(list(labels), list(labels.values()), fontsize=7)
  ax.tick_params(axis='y', length=0)
