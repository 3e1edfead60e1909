"""Figures of what `measure` returns: gradient, routes, signal propagation."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from skipnet_jax import plots
from skipnet_jax.analysis import lesions as lesions_lib
from skipnet_jax.analysis import measure
from skipnet_jax.analysis import propagation as propagation_lib
from skipnet_jax.analysis import routes as routes_lib
from skipnet_jax.analysis.page import figures

# Of `routes.ROUTES`.
_COLOURS = ('black', plots.BLUE, plots.VERMILION, plots.PINK)
# By run, and by moment of its training, such as 'best epoch'.
Points = dict[str, dict[str, measure.Point]]


def _flat(points: Points) -> list[tuple[str, str, measure.Point]]:
  return [(run, m, p) for run, own in points.items() for m, p in own.items()]


def _conditions(points: Points) -> str:
  sides = {point.window for _, _, point in _flat(points)}
  return (
    f'centre {" and ".join(f"{y}x{x}" for y, x in sorted(sides))} of the first '
    'training slice, batch statistics, no dropout'
  )


def _looks(
  curves: Iterable[tuple[str, str]],
) -> dict[tuple[str, str], dict[str, Any]]:
  """Of each run and moment: the colour is the run, the line the moment."""
  pairs = list(curves)
  runs, moments = (dict.fromkeys(pair[i] for pair in pairs) for i in (0, 1))
  colours = dict(zip(runs, plots.CYCLE, strict=False))
  lines = ('-',) if len(moments) == 1 else ('--', '-')
  styles = dict(zip(moments, lines, strict=False))
  return {
    (run, moment): dict(color=colours[run], ls=styles[moment], lw=1.3)
    for run, moment in pairs
  }


def gradient_norms(points: Points, dataset: str) -> figures.FigureWithData:
  """The gradient's norm by depth."""
  figure, (ax,) = figures.make_grid(1, 4.0, columns=1)
  curves = _flat(points)
  places = figures.mark_depth([ax], [point.layers for _, _, point in curves])
  looks = _looks((run, moment) for run, moment, _ in curves)
  for (run, moment, point), x in zip(curves, places, strict=True):
    y = np.where(point.grad_l2 > 0, point.grad_l2, np.nan)
    figures.draw_by_depth(
      ax,
      x,
      y,
      point.layers,
      label=plots.legend_label(f'{run}, {moment}'),
      **looks[run, moment],
    )
  ax.set(yscale='log', ylabel='L2 norm of the gradient')
  norms: dict[str, list[np.ndarray]] = {}
  for run, _, point in curves:
    norms.setdefault(run, []).append(point.grad_l2)
  cut = figures.clip_log_axis(
    ax, {run: np.concatenate(each) for run, each in norms.items()}
  )
  ax.grid(axis='y', alpha=0.3)
  ax.legend(fontsize=8)
  figure.suptitle(f'Gradient by depth, input left: {dataset}')
  return figures.FigureWithData(
    'gradient_norms',
    'Gradient by depth',
    "L2 norm of the gradient of each convolution's kernel "
    f'({_conditions(points)}). {figures.PROJECTIONS}{cut}',
    figure,
    ('run', 'at', 'layer_index', 'layer', 'stage', 'grad_l2'),
    [
      row
      for run, moment, p in curves
      for row in figures.layer_rows(
        (run, moment), p.layers, map(figures.stage_of, p.layers), p.grad_l2
      )
    ],
  )


def split(points: Points, dataset: str) -> figures.FigureWithData:
  """Shares of each layer's gradient by kind of skip."""
  panels = _flat(points)
  figure, axes = figures.make_grid(
    len(panels), 2.5, columns=len(panels) // len(points), sharey=False
  )
  for ax, (run, moment, point) in zip(axes, panels, strict=True):
    (x,) = figures.mark_depth([ax], [point.layers])
    for route, colour in zip(routes_lib.ROUTES, _COLOURS, strict=True):
      y = point.shares[route]
      ax.plot(x, y, '.-', color=colour, lw=1.2, ms=3, label=route)
    ax.axhline(0, color='0.6', lw=0.6)
    ax.set_yscale('symlog', linthresh=1)
    ax.yaxis.set_major_formatter('{x:g}')
    ax.set_title(f'{run}, {moment}', fontsize=9)
    ax.set_ylabel('share of the gradient')
    ax.grid(axis='y', alpha=0.3)
  axes[0].legend(fontsize=7, ncols=4)
  figure.suptitle(f'The gradient by kind of skip it came over: {dataset}')
  return figures.FigureWithData(
    'split',
    'The gradient by kind of skip',
    'For each convolution, the part of its gradient g that came over no skip, '
    'over long skips only, over short skips only, and over both kinds: '
    '<g_route, g> / <g, g>. The four parts add up to 1; a negative one points '
    'against g. The axis is linear between -1 and 1, logarithmic beyond. The '
    'gradient is stopped on the skips of a kind; the forward pass is unchanged '
    f'({_conditions(points)}).',
    figure,
    ('run', 'at', 'layer_index', 'layer', 'grad_l2', *routes_lib.ROUTES),
    [
      row
      for run, moment, p in panels
      for row in figures.layer_rows(
        (run, moment), p.layers, p.grad_l2, *p.shares.values()
      )
    ],
  )


def path_lengths(points: Points, dataset: str) -> figures.FigureWithData | None:
  """The gradient by residual branches passed; None without short skips."""
  curves = [
    (run, moment, point.lengths)
    for run, moment, point in _flat(points)
    if point.lengths is not None
  ]
  if not curves:
    return None
  figure, (left, right) = figures.make_grid(2, 4.0)
  places = figures.mark_depth(
    [right], [lengths.layers for *_, lengths in curves]
  )
  looks = _looks((run, moment) for run, moment, _ in curves)
  for (run, moment, lengths), x in zip(curves, places, strict=True):
    look = looks[run, moment]
    left.plot(
      lengths.shares[0], label=plots.legend_label(f'{run}, {moment}'), **look
    )
    right.plot(x, lengths.mean_length(), **look)
  left.set_xlabel('residual branches on the path')
  left.set_ylabel(f'share of the gradient of {curves[0][2].layers[0]}')
  left.axhline(0, color='0.6', lw=0.6)
  left.legend(fontsize=8)
  right.set_ylabel('mean number of branches on a path')
  for ax in (left, right):
    ax.grid(alpha=0.3)
  figure.suptitle(f'The gradient by length of path: {dataset}')
  rounding = max(lengths.rounding for *_, lengths in curves)
  return figures.FigureWithData(
    'path_lengths',
    'The gradient by length of path',
    'Left: the gradient of the first convolution, by the number of residual '
    'branches that it passed (Veit et al. 2016). Right: the mean number that '
    'the gradient of each convolution passed. All paths are counted, none is '
    'sampled; the gradient also passes long skips, which shorten paths. '
    f'Rounding error of a share: {rounding:.1e}.',
    figure,
    ('run', 'at', 'layer_index', 'layer', 'branches', 'share'),
    [
      (run, moment, i, layer, k, float(share))
      for run, moment, lengths in curves
      for i, layer in enumerate(lengths.layers)
      for k, share in enumerate(lengths.shares[i])
    ],
  )


_LESIONS = {
  'bce_added': 'BCE that is added without the branch',
  'v_rand_lost': 'V_rand that is lost',
  'share': 'norm of the branch / norm of the sum',
  'cosine': 'cosine of the branch and the rest',
}


def lesions(
  lost: dict[str, lesions_lib.Lesions], dataset: str
) -> figures.FigureWithData:
  """What trained networks lose without each branch, by depth."""
  figure, axes = figures.make_grid(4, 3.2)
  columns = {
    run: {
      'bce_added': each.bce - each.whole[0],
      'v_rand_lost': each.whole[1] - each.v_rand,
      'share': each.share,
      'cosine': each.cosine,
    }
    for run, each in lost.items()
  }
  axes[0].set_yscale('symlog', linthresh=0.01)
  for ax, (quantity, title) in zip(axes, _LESIONS.items(), strict=True):
    # Else markers at the edges are cut.
    ax.margins(y=0.1)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel('depth of the sum, input 0 to output 1')
    for (run, each), colour in zip(lost.items(), plots.CYCLE, strict=False):
      kinds = np.array(each.kinds)
      for kind, marker in (('short', '.'), ('long', 'D')):
        of_kind = kinds == kind
        if not of_kind.any():
          continue
        ax.plot(
          each.depth[of_kind],
          columns[run][quantity][of_kind],
          marker,
          color=colour,
          ms=5,
          label=plots.legend_label(f'{run}, {kind} skips'),
        )
    ax.axhline(0, color='0.6', lw=0.6)
    ax.set_title(title, fontsize=9)
    ax.grid(axis='y', alpha=0.3)
  figure.legend(
    *axes[0].get_legend_handles_labels(),
    fontsize=7,
    ncols=4,
    loc='outside lower center',
  )
  figure.suptitle(f'Networks that lack one branch, input left: {dataset}')
  return figures.FigureWithData(
    'lesions',
    'Networks that lack one branch',
    'At the best epoch, one branch at a time is left out (Veit et al. 2016): '
    'of a short skip the residual branch, of a long one the side of the '
    'contracting path. BCE in nats and V_rand are of the centres of the '
    'validation slices, with running statistics; the axis of BCE is linear '
    'below 0.01. Depth: the share of the layers that are called before the '
    'sum. Below: how much of each sum the branch is.',
    figure,
    ('run', 'depth', 'skip', 'kind', 'bce', 'v_rand', *_LESIONS),
    [
      (
        *(run, float(each.depth[i]), name, each.kinds[i]),
        *(float(each.bce[i]), float(each.v_rand[i])),
        *(float(columns[run][key][i]) for key in _LESIONS),
      )
      for run, each in lost.items()
      for i, name in enumerate(each.names)
    ],
  )


_COLUMNS = ('mean_square', 'variance', 'tangent', 'gradient')
_TITLES = {
  'mean_square': 'mean square of the output',
  'tangent': 'change of the output per change of the image',
  'gradient': 'mean square of dL/d(output)',
}


def propagate(
  measured: dict[str, propagation_lib.Propagation], dataset: str
) -> figures.FigureWithData:
  """Signal sizes at initialisation by depth, with a band over the seeds."""
  figure, axes = figures.make_grid(3, 3.9, columns=3)
  places = figures.mark_depth(axes, [p.layers for p in measured.values()])
  cut = ''
  for ax, (quantity, title) in zip(axes, _TITLES.items(), strict=True):
    for (run, p), x, colour in zip(
      measured.items(), places, plots.CYCLE, strict=False
    ):
      values = getattr(p, quantity)
      values = np.where(values > 0, values, np.nan)
      low, middle, high = np.nanpercentile(values, (0, 50, 100), axis=0)
      ax.plot(x, middle, color=colour, lw=1.2, label=plots.legend_label(run))
      ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    ax.set_yscale('log')
    ax.set_title(title, fontsize=9)
    ax.grid(axis='y', alpha=0.3)
    by_run = {run: getattr(p, quantity) for run, p in measured.items()}
    if said := figures.clip_log_axis(ax, by_run):
      cut += f' {title.capitalize()}:{said}'
  axes[0].legend(fontsize=7)
  count = len(measure.SEEDS)
  figure.suptitle(
    f'Signal at initialisation, median and range of {count} seeds: {dataset}'
  )
  return figures.FigureWithData(
    'propagation',
    'Signal propagation at initialisation',
    f'Median and range over {count} seeds. Forward: the mean square of each '
    "convolution's output, and of its change per mean square of a random "
    'change of the image (jvp). Backward: the mean square of the gradient of '
    'the loss at the output (vjp). A signal of exactly 0 is in the table, but '
    f'not in the curves.{cut}',
    figure,
    ('run', 'seed', 'layer_index', 'layer', *_COLUMNS),
    [
      row
      for run, p in measured.items()
      for i, seed in enumerate(measure.SEEDS)
      for row in figures.layer_rows(
        (run, seed), p.layers, *(getattr(p, name)[i] for name in _COLUMNS)
      )
    ],
  )
