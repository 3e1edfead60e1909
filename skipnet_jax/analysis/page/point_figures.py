"""Figures of what was measured at a point: gradients, routes, propagation."""

import numpy as np

from skipnet_jax import plots
from skipnet_jax.analysis import measure
from skipnet_jax.analysis import propagation as propagation_lib
from skipnet_jax.analysis import routes as routes_lib
from skipnet_jax.analysis.page import shown

_ROUTE_COLOURS = dict(
  zip(
    routes_lib.ROUTES,
    ('black', plots.BLUE, plots.VERMILION, plots.PINK),
    strict=True,
  )
)
Points = dict[str, dict[str, measure.Point]]


def _where(points: Points) -> str:
  sides = {p.window for at in points.values() for p in at.values()}
  return (
    f'centre {" and ".join(f"{y}x{x}" for y, x in sorted(sides))} of the first '
    'training slice, batch statistics, no dropout'
  )


def gradient_norms(points: Points, dataset: str) -> shown.Shown:
  """The gradient's norm by depth at the points that were measured."""
  figure, (ax,) = shown.make_grid(1, 4.0, columns=1)
  cells = [(r, m, p) for r, at in points.items() for m, p in at.items()]
  places = shown.mark_depth([ax], [p.layers for _, _, p in cells])
  for (run, moment, point), x, colour in zip(
    cells, places, plots.CYCLE, strict=False
  ):
    y = np.where(point.grad_l2 > 0, point.grad_l2, np.nan)
    ax.plot(x, y, '.-', color=colour, lw=1.2, ms=3, label=f'{run}, {moment}')
  ax.set_yscale('log')
  ax.set_ylabel('L2 norm of the gradient')
  ax.grid(axis='y', alpha=0.3)
  ax.legend(fontsize=8)
  figure.suptitle(f'Gradient by depth, input left: {dataset}')
  return shown.Shown(
    'gradient_norms',
    'Gradient by depth',
    f"L2 norm of the gradient of each convolution's kernel ({_where(points)}).",
    figure,
    ('run', 'at', 'layer_index', 'layer', 'stage', 'grad_l2'),
    [
      (run, moment, i, layer, shown.stage_of(layer), float(point.grad_l2[i]))
      for run, moment, point in cells
      for i, layer in enumerate(point.layers)
    ],
  )


def split(points: Points, dataset: str) -> shown.Shown:
  """Shares of each layer's gradient by kind of skip.

  Args:
    points: of each run, by name of the point.
    dataset: named in the title.
  """
  moments = list(dict.fromkeys(m for at in points.values() for m in at))
  cells = [(run, m) for run in points for m in moments if m in points[run]]
  figure, axes = shown.make_grid(
    len(cells), 2.5, columns=len(moments), sharey=False
  )
  for ax, (run, moment) in zip(axes, cells, strict=True):
    point = points[run][moment]
    (x,) = shown.mark_depth([ax], [point.layers])
    for route, colour in _ROUTE_COLOURS.items():
      ax.plot(
        x, point.shares[route], '.-', color=colour, lw=1.2, ms=3, label=route
      )
    ax.axhline(0, color='0.6', lw=0.6)
    ax.set_yscale('symlog', linthresh=1)
    ax.yaxis.set_major_formatter('{x:g}')
    ax.set_title(f'{run}, {moment}', fontsize=9)
    ax.set_ylabel('share of the gradient')
    ax.grid(axis='y', alpha=0.3)
  axes[0].legend(fontsize=7, ncols=4)
  figure.suptitle(f'The gradient by kind of skip it came over: {dataset}')
  return shown.Shown(
    'split',
    'The gradient by kind of skip',
    'For each convolution, the part of its gradient g that came over no skip, '
    'over long skips only, over short skips only, and over both kinds: '
    '<g_route, g> / <g, g>, which adds up to 1; a negative share pulls against '
    'the whole. Linear between -1 and 1, logarithmic beyond. The gradient is '
    'stopped on the skips of a kind in an otherwise unchanged forward pass '
    f'({_where(points)}).',
    figure,
    ('run', 'at', 'layer_index', 'layer', 'grad_l2', *routes_lib.ROUTES),
    [
      (
        run,
        moment,
        i,
        layer,
        float(point.grad_l2[i]),
        *(float(point.shares[route][i]) for route in routes_lib.ROUTES),
      )
      for run, at in points.items()
      for moment, point in at.items()
      for i, layer in enumerate(point.layers)
    ],
  )


def path_lengths(points: Points, dataset: str) -> shown.Shown | None:
  """The gradient by residual branches passed; None without short skips."""
  cells = [
    (run, moment, point.lengths)
    for run, at in points.items()
    for moment, point in at.items()
    if point.lengths is not None
  ]
  if not cells:
    return None
  figure, (left, right) = shown.make_grid(2, 4.0)
  places = shown.mark_depth(
    [right], [lengths.layers for _, _, lengths in cells]
  )
  styles = {
    moment: style
    for moment, style in zip(
      dict.fromkeys(c[1] for c in cells), ('--', '-'), strict=False
    )
  }
  colours = dict(
    zip(dict.fromkeys(c[0] for c in cells), plots.CYCLE, strict=False)
  )
  for (run, moment, lengths), x in zip(cells, places, strict=True):
    look = dict(color=colours[run], ls=styles[moment], lw=1.3)
    left.plot(lengths.shares[0], label=f'{run}, {moment}', **look)
    right.plot(x, lengths.mean_length(), **look)
  left.set_xlabel('residual branches on the path')
  left.set_ylabel(f'share of the gradient of {cells[0][2].layers[0]}')
  left.axhline(0, color='0.6', lw=0.6)
  left.legend(fontsize=8)
  right.set_ylabel('mean number of branches on a path')
  for ax in (left, right):
    ax.grid(alpha=0.3)
  figure.suptitle(f'The gradient by length of path: {dataset}')
  rounding = max(lengths.rounding for _, _, lengths in cells)
  return shown.Shown(
    'path_lengths',
    'The gradient by length of path',
    'Left: the gradient of the first convolution, by the number of residual '
    'branches that it passed (Veit et al. 2016). Right: the mean number behind '
    'each convolution. All paths are counted, none sampled; long skips are '
    f'open and shorten paths. Rounding error of a share: {rounding:.1e}.',
    figure,
    ('run', 'at', 'layer_index', 'layer', 'branches', 'share'),
    [
      (run, moment, i, layer, k, float(share))
      for run, moment, lengths in cells
      for i, layer in enumerate(lengths.layers)
      for k, share in enumerate(lengths.shares[i])
    ],
  )


_COLUMNS = ('mean_square', 'variance', 'tangent', 'gradient')
_SIGNALS = (
  ('mean_square', 'mean square of the output'),
  ('tangent', 'change of the output per change of the image'),
  ('gradient', 'mean square of dL/d(output)'),
)


def propagate(
  measured: dict[str, propagation_lib.Propagation], dataset: str
) -> shown.Shown:
  """Signal sizes at initialisation by depth, with a band over the seeds."""
  figure, axes = shown.make_grid(3, 3.9, columns=3)
  places = shown.mark_depth(axes, [p.layers for p in measured.values()])
  for (run, p), x, colour in zip(
    measured.items(), places, plots.CYCLE, strict=False
  ):
    for ax, (quantity, _) in zip(axes, _SIGNALS, strict=True):
      values = getattr(p, quantity)
      values = np.where(values > 0, values, np.nan)
      low, middle, high = np.nanpercentile(values, (0, 50, 100), axis=0)
      ax.plot(x, middle, color=colour, lw=1.2, label=run)
      ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
  for ax, (_, label) in zip(axes, _SIGNALS, strict=True):
    ax.set_yscale('log')
    ax.set_title(label, fontsize=9)
    ax.grid(axis='y', alpha=0.3)
  axes[0].legend(fontsize=7)
  count = len(next(iter(measured.values())).mean_square)
  figure.suptitle(
    f'Signal at initialisation, median and range of {count} seeds: {dataset}'
  )
  return shown.Shown(
    'propagation',
    'Signal propagation at initialisation',
    f'Over {count} seeds, median and whole range: forward, the mean square of '
    "each convolution's output and of its change per mean square of a random "
    'change of the image (jvp); backward, the mean square of the gradient of '
    'the loss at the output (vjp). A seed whose signal is exactly 0 is left '
    'out of the curve, not of the table.',
    figure,
    ('run', 'seed', 'layer_index', 'layer', *_COLUMNS),
    [
      (
        run,
        seed,
        i,
        layer,
        *(float(getattr(p, q)[row, i]) for q in _COLUMNS),
      )
      for run, p in measured.items()
      for row, seed in enumerate(measure.SEEDS)
      for i, layer in enumerate(p.layers)
    ],
  )
