"""A drawing of a network of stages, with the names that the axes use."""

import itertools
import re

import ml_collections

from skipnet_jax import plots
from skipnet_jax.analysis.page import figures
from skipnet_jax.runs import recorded

_BOX = {'boxstyle': 'round,pad=0.35', 'fc': 'white', 'ec': 'black'}


def network(
  groups: dict[str, list[recorded.RecordedRun]],
) -> figures.FigureWithData | None:
  """Draws the stages of the first network, and lists those of all.

  Args:
    groups: runs by network, see `recorded.by_network`.

  Returns:
    None if the networks have no contracting and expanding path of stages.
  """
  firsts = [group[0] for group in groups.values()]
  sizes = [dict(_main_sizes(run)) for run in firsts]
  names = list(sizes[0])
  depth = sum(re.fullmatch(r'down_\d+', name) is not None for name in names)
  ups = [name for name in names if re.fullmatch(r'up_\d+', name)]
  if not (depth and len(ups) == depth and 'across' in names):
    return None
  if any(list(other) != names for other in sizes):
    return None
  places = {f'down_{i}': (float(i), -i) for i in range(1, depth + 1)}
  places['across'] = (depth + 1.5, -depth - 1)
  places |= {
    f'up_{i}': (depth + 2 + i, i - depth - 1) for i in range(1, depth + 1)
  }
  places['classifier'] = (2 * depth + 3.8, -1)
  figure = plots.make_figure(10, 4.2)
  ax = figure.subplots()
  order = [name for name in names if name in places]
  for one, other in itertools.pairwise(order):
    _arrow(ax, places[one], places[other], color='black')
  for i in range(1, depth + 1):
    _arrow(
      ax,
      places[f'down_{i}'],
      places[f'up_{depth + 1 - i}'],
      color=plots.BLUE,
      linestyle='--',
    )
  for name in order:
    ax.text(
      *places[name], name, ha='center', va='center', bbox=_BOX, fontsize=8
    )
  ax.text(
    depth + 1.5, -0.85, 'long skips', ha='center', color=plots.BLUE, fontsize=9
  )
  ax.set_xlim(0, 2 * depth + 4.6)
  ax.set_ylim(-depth - 1.6, -0.3)
  ax.set_axis_off()
  switches = '; '.join(f'{run.name}: {_switches(run.config)}' for run in firsts)
  return figures.FigureWithData(
    'network',
    'The stages of the networks',
    'From the image at the upper left to the prediction at the upper right. '
    'Each step down halves the resolution, each step up doubles it. A long '
    'skip adds the output of a stage of the contracting path to the input of '
    'a stage of the expanding path; a short skip, not drawn, goes around each '
    f'block inside a stage. {switches}.',
    figure,
    ('network', 'stage', 'convolutions'),
    [
      (run.name, stage, count)
      for run, stages in zip(firsts, sizes, strict=True)
      for stage, count in stages.items()
    ],
  )


def _arrow(ax, begin, end, **look) -> None:
  ax.annotate(
    '',
    end,
    begin,
    arrowprops={'arrowstyle': '->', 'shrinkA': 18, 'shrinkB': 18, **look},
  )


def _main_sizes(run: recorded.RecordedRun) -> list[tuple[str, int]]:
  """Stages and their convolutions, without the projections of skips."""
  main = [name for name in run.layers if not figures.is_projection(name)]
  return [(name, end - begin) for name, begin, end in figures.stages_of(main)]


def _switches(config: ml_collections.ConfigDict) -> str:
  kinds = [
    kind
    for kind in ('long', 'short')
    if config.model.get(f'{kind}_skips', False)
  ]
  return f'{" and ".join(kinds)} skips' if kinds else 'no skips'
