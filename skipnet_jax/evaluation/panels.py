"""Figures of an evaluation: curves of the scores, and errors in each slice."""

from typing import Any

import numpy as np

from skipnet_jax import plots
from skipnet_jax.scores import scores
from skipnet_jax.scores import thinning

SPLIT, MERGE, BOTH = plots.VERMILION, plots.BLUE, plots.YELLOW
_BORDER = 0.15  # Grey value of the segmentation's borders.


def score_curves(
  results: dict[str, dict[str, Any]], title: str, warning: str = ''
) -> np.ndarray:
  """Draws both scores over the thresholds, `[y, x, 3]` uint8; marks the maxima.

  `results` maps a name to the content of a scores.json; solid lines show the
  first, dashed lines the others. The warning is written below.
  """
  figure = plots.make_figure(7, 4.5, dpi=150)
  axes = figure.subplots()
  for index, (name, result) in enumerate(results.items()):
    rows = result['per_threshold']
    thresholds = [row['threshold'] for row in rows]
    style = '--' if index else '-'
    for key, colour in (('v_rand', plots.BLUE), ('v_info', plots.ORANGE)):
      values = [np.nan if row[key] is None else row[key] for row in rows]
      best, at = result[key], result[f'threshold_{key}']
      text = 'undefined' if best is None else f'{best:.4f} at {at:.1f}'
      label = f'{key.capitalize()} {text}, {name}'
      axes.plot(thresholds, values, style, color=colour, label=label)
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
    image: `[y, x]`, drawn faintly behind the colours; None: white.

  Returns:
    `[y, x, 3]` float 0..1: borders of the thinned segmentation dark, split
    errors in SPLIT, merge errors in MERGE, pixels that are both in BOTH; and
    the shares of split errors and of merge errors in all pixels inside.
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
  count = max(1, inside.sum())
  return drawn, float(split.sum() / count), float(merge.sum() / count)


def slice_panel(
  prediction: np.ndarray,
  inside: np.ndarray,
  threshold: float,
  image: np.ndarray | None = None,
  *,
  title: str = '',
  warning: str = '',
) -> np.ndarray:
  """Draws image, label, prediction and errors of one slice, `[y, x, 3]` uint8.

  Every pixel of the slice is visible. Arguments are those of `error_map`;
  `warning` is written below the title.
  """
  from matplotlib import patches

  drawn, split, merge = error_map(prediction, inside, threshold, image)
  pictures = {} if image is None else {'image': plots.stretch(image)}
  pictures |= {'label': inside, 'prediction': prediction}
  pictures |= {f'segmentation at {threshold:.1f}': drawn}
  height, width = inside.shape
  columns = 2 if len(pictures) == 4 else 3
  rows = len(pictures) // columns
  ratio = np.clip(height / width, 0.2, 5)
  side = 4.0 / max(ratio, 1)
  figure = plots.make_figure(
    columns * side + 0.2,
    rows * (side * ratio + 0.35) + 1.1,
    # 1.15: the layout takes some of the space.
    dpi=max(100, 1.15 * width / side),
  )
  for axes, (name, picture) in zip(
    figure.subplots(rows, columns).flat, pictures.items(), strict=True
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
