"""Figures of an evaluation: the scores' curves, and where a slice is wrong."""

from typing import Any

import numpy as np

from skipnet_jax import plots
from skipnet_jax.scores import scores
from skipnet_jax.scores import thinning

SPLIT, MERGE, BOTH = plots.VERMILION, plots.BLUE, plots.YELLOW
_BORDER = 0.15  # Grey of the segmentation's borders.


def score_curves(
  results: dict[str, dict[str, Any]], title: str, warning: str = ''
) -> np.ndarray:
  """Draws both scores over the thresholds, their maxima marked.

  Args:
    results: name to the content of a scores.json; the second and later ones
      are drawn dashed.
    title: what was scored.
    warning: written below; '' for none.

  Returns:
    `[y, x, 3]` uint8.
  """
  figure = plots.make_figure(7, 4.5, dpi=150)
  axes = figure.subplots()
  for index, (name, result) in enumerate(results.items()):
    rows = result['per_threshold']
    limits = [row['threshold'] for row in rows]
    for key, label, colour in (
      ('v_rand', 'V_rand', plots.BLUE),
      ('v_info', 'V_info', plots.ORANGE),
    ):
      values = [np.nan if row[key] is None else row[key] for row in rows]
      best, at = result[key], result[f'threshold_{key}']
      text = 'undefined' if best is None else f'{best:.4f} at {at:.1f}'
      axes.plot(
        limits,
        values,
        '--' if index else '-',
        color=colour,
        label=f'{label} {text}, {name}',
      )
      if best is not None:
        axes.plot(at, best, 'o', color=colour, ms=7)
  axes.set(
    xlabel='threshold: inside where the probability is above',
    ylabel='score',
    xlim=(-0.02, 1.02),
    ylim=(-0.02, 1.02),
  )
  axes.set_title(title, fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend()
  if warning:
    figure.supxlabel(warning, color=plots.VERMILION, fontsize=8, wrap=True)
  return plots.to_array(figure)


def error_map(
  prediction: np.ndarray,
  inside: np.ndarray,
  threshold: float,
  image: np.ndarray | None = None,
) -> tuple[np.ndarray, float, float]:
  """Colours the pixels that are wrongly split off or merged.

  Args:
    prediction: `[y, x]` float, 1 inside.
    inside: `[y, x]` bool, True inside.
    threshold: a pixel is inside where the prediction is above.
    image: `[y, x]`, shown faintly below the colours; None: white.

  Returns:
    `[y, x, 3]` float 0..1: borders of the thinned segmentation dark, split
    errors in SPLIT, merge errors in MERGE, pixels that are both in BOTH; and
    the shares of split and of merge errors in the inside.
  """
  from matplotlib import colors

  segments = thinning.thin_borders(prediction.astype(np.float64) > threshold)
  split, merge = scores.split_merge_errors(
    segments, thinning.label_regions(inside)
  )
  grey = 1.0 if image is None else 0.55 + 0.45 * plots.stretch(image)
  drawn = np.ones((*inside.shape, 3)) * np.atleast_2d(grey)[..., None]
  drawn[segments == 0] = _BORDER
  for where, colour in ((split, SPLIT), (merge, MERGE), (split & merge, BOTH)):
    drawn[where] = colors.to_rgb(colour)
  every, splits, merges = (
    int(np.count_nonzero(pixels)) for pixels in (inside, split, merge)
  )
  return drawn, splits / max(1, every), merges / max(1, every)


def slice_panel(
  prediction: np.ndarray,
  inside: np.ndarray,
  threshold: float,
  image: np.ndarray | None = None,
  *,
  title: str = '',
  warning: str = '',
) -> np.ndarray:
  """Draws image, label, prediction and errors of one slice, side by side.

  Args:
    prediction: see `error_map`, as all up to `image`; None leaves that out.
    inside: True inside.
    threshold: of the segmentation.
    image: the slice itself, or None.
    title: above all.
    warning: below the title; '' for none.

  Returns:
    `[y, x, 3]` uint8; every pixel of the slice has one of its own.
  """
  from matplotlib import patches

  shown = [('label', inside), ('prediction', prediction)]
  if image is not None:
    shown.insert(0, ('image', plots.stretch(image)))
  drawn, split, merge = error_map(prediction, inside, threshold, image)
  shown.append((f'segmentation at {threshold:.1f}', drawn))
  height, width = inside.shape
  columns = 2 if len(shown) == 4 else 3
  rows = len(shown) // columns
  ratio = np.clip(height / width, 0.2, 5)
  side = 4.0 / max(ratio, 1)
  figure = plots.make_figure(
    columns * side + 0.2,
    rows * (side * ratio + 0.35) + 1.1,
    # Layout takes some of the room: 1.15 leaves no pixel out.
    dpi=max(100, 1.15 * width / side),
  )
  for axes, (name, picture) in zip(
    figure.subplots(rows, columns).flat, shown, strict=True
  ):
    axes.imshow(picture, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
    axes.set_title(name, fontsize=10)
    axes.set_axis_off()
  heading = '\n'.join(filter(None, [title, warning]))
  figure.suptitle(heading, fontsize=10, wrap=True)
  figure.legend(
    handles=[
      patches.Patch(color=SPLIT, label=f'split errors {split:.1%}'),
      patches.Patch(color=MERGE, label=f'merge errors {merge:.1%}'),
      patches.Patch(color=BOTH, label='both'),
      patches.Patch(color=(_BORDER,) * 3, label='borders'),
    ],
    loc='outside lower center',
    ncols=4,
    fontsize=9,
    frameon=False,
  )
  return plots.to_array(figure)
