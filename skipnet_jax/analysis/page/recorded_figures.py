"""Figures of what runs recorded: heat maps, profiles by depth, curves."""

from collections.abc import Sequence

import numpy as np

from skipnet_jax import plots
from skipnet_jax.analysis.page import shown
from skipnet_jax.runs import recorded


def _log_range(values: np.ndarray) -> tuple[float, float]:
  """Limits of a logarithmic scale for values of which some may be 0 or NaN."""
  positive = values[np.isfinite(values) & (values > 0)]
  if not positive.size:
    return 1e-12, 1.0
  low, high = np.percentile(positive, (0.5, 99.9))
  # Five decades at most: below, everything counts as nothing.
  return max(low, high * 1e-5), max(high, low * 1.01)


_QUANTITIES = {
  'net_change': (
    'Net change of the weights',
    'mean |W at the end - W at the beginning of the epoch|',
    "The quantity of the paper's Figure 4: for each convolution and epoch, "
    'the mean over its kernel of the absolute net change during the epoch.',
  ),
  'grad_l2': (
    'Gradient of the loss',
    'L2 norm of the gradient, mean over steps',
    'For each convolution and epoch, the L2 norm of the gradient of the loss '
    'without L2 penalty, averaged over the steps of the epoch.',
  ),
}


def heat_map(
  runs: Sequence[recorded.RecordedRun], dataset: str, quantity: str
) -> shown.Shown:
  """One panel a run, layer by epoch, one logarithmic colour scale for all."""
  from matplotlib import colors

  title, label, text = _QUANTITIES[quantity]
  tables = [run.flow[quantity] for run in runs]
  low, high = _log_range(np.concatenate([t.ravel() for t in tables]))
  # Its table has a column for each epoch.
  longest = max(run.epochs for run in runs)
  figure, axes = shown.make_grid(len(runs), 4.4)
  for ax, run, table in zip(axes, runs, tables, strict=True):
    ax.set_facecolor('0.85')
    drawn = np.where(table > 0, table, low / 10)
    image = ax.imshow(
      np.where(np.isnan(table), np.nan, drawn).T,
      norm=colors.LogNorm(low, high),
      cmap='viridis',
      aspect='auto',
      interpolation='nearest',
      extent=(0.5, run.epochs + 0.5, len(run.layers) - 0.5, -0.5),
    )
    ax.set_title(f'{run.name} ({len(run.layers)} convolutions)', fontsize=10)
    stages = shown.stages_of(run.layers)
    for _, begin, _ in stages[1:]:
      ax.axhline(begin - 0.5, color='white', lw=0.4)
    shown.label_stages(ax, stages, len(run.layers))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel('epoch')
  figure.colorbar(
    image, ax=list(axes), label=label, extend='both', shrink=0.8, aspect=40
  )
  figure.suptitle(f'{title}, by layer (input at the top) and epoch: {dataset}')
  return shown.Shown(
    f'heat_map_{quantity}',
    title,
    text
    + ' Layers in the order of the forward pass, the input at the top; one '
    'logarithmic colour scale for all panels. Grey: not recorded.',
    figure,
    (
      *('run', 'layer_index', 'layer', 'stage'),
      *map(str, range(1, longest + 1)),
    ),
    [
      (run.name, i, layer, shown.stage_of(layer), *map(float, table[:, i]))
      for run, table in zip(runs, tables, strict=True)
      for i, layer in enumerate(run.layers)
    ],
  )


def _mean_over(table: np.ndarray, epochs: slice) -> np.ndarray:
  """Mean over some epochs, `[l]`; NaN where none was recorded."""
  rows = table[epochs]
  seen = np.isfinite(rows)
  total = np.where(seen, rows, 0).sum(0, dtype=np.float64)
  return np.where(seen.any(0), total / np.maximum(seen.sum(0), 1), np.nan)


def early_and_late(run: recorded.RecordedRun) -> tuple[np.ndarray, np.ndarray]:
  """Net change averaged over the first tenth and last half of epochs, `[l]`."""
  tenth, half = max(1, run.epochs // 10), -(-run.epochs // 2)
  table = run.flow['net_change']
  return (
    _mean_over(table, slice(tenth)),
    _mean_over(table, slice(-half, None)),
  )


def least_served(run: recorded.RecordedRun, quantity: str) -> tuple[str, float]:
  """The stage that got least of a quantity in the last half of the epochs.

  Returns:
    Its name, and the geometric mean of the quantity over its convolutions and
    those epochs over that of all: 1 is even, 0 a stage that gets nothing.
  """
  late = run.flow[quantity][-(-run.epochs // -2) :]
  late = late[np.isfinite(late).all(1)]
  logs = np.log(np.maximum(late, 1e-30)).mean(0)
  ratios = {
    stage: float(np.exp(logs[begin:end].mean() - logs.mean()))
    for stage, begin, end in shown.stages_of(run.layers)
  }
  least = min(ratios, key=ratios.__getitem__)
  return least, ratios[least]


def profiles(runs: Sequence[recorded.RecordedRun], dataset: str) -> shown.Shown:
  """Net change by depth, early and late in training."""
  figure, axes = shown.make_grid(2, 4.0, sharey=True)
  places = shown.mark_depth(axes, [run.layers for run in runs])
  series = [early_and_late(run) for run in runs]
  for ax, part, name in zip(
    axes, (0, 1), ('first tenth', 'last half'), strict=True
  ):
    for run, x, ys, colour in zip(
      runs, places, series, plots.CYCLE, strict=False
    ):
      ax.plot(x, ys[part], '.-', color=colour, lw=1.2, ms=3, label=run.name)
    ax.set_yscale('log')
    ax.set_title(f'{name} of the epochs', fontsize=10)
    ax.grid(axis='y', alpha=0.3)
  axes[0].set_ylabel('mean |net change| in an epoch')
  axes[0].legend(fontsize=8)
  figure.suptitle(f'Net change by depth, input left: {dataset}')
  return shown.Shown(
    'profiles',
    'Net change by depth',
    'The heat map averaged over the first tenth and the last half of the '
    'recorded epochs. Networks of the same stages are aligned stage by stage.',
    figure,
    ('run', 'layer_index', 'layer', 'stage', 'first_tenth', 'last_half'),
    [
      (
        run.name,
        i,
        layer,
        shown.stage_of(layer),
        float(early[i]),
        float(late[i]),
      )
      for run, (early, late) in zip(runs, series, strict=True)
      for i, layer in enumerate(run.layers)
    ],
  )


_CURVES = ('train_loss', 'valid_loss', 'train_accuracy', 'valid_accuracy')


def curves(runs: Sequence[recorded.RecordedRun], dataset: str) -> shown.Shown:
  """Losses and accuracies by epoch (the paper's Figure 3)."""
  figure, axes = shown.make_grid(2, 4.0)
  ends = []
  for run, colour in zip(runs, plots.CYCLE, strict=False):
    epochs = np.arange(1, run.epochs + 1)
    for ax, kind in zip(axes, ('loss', 'accuracy'), strict=True):
      for part, style in (('train', ':'), ('valid', '-')):
        ax.plot(
          epochs,
          run.curve(f'{part}_{kind}'),
          style,
          color=colour,
          lw=1.2,
          label=run.name if part == 'valid' else None,
        )
    ends += [
      run.curve('train_loss'),
      run.curve('valid_loss')[run.epochs // 10 :],
    ]
  constants = {
    run.summary['constant_val_bce']
    for run in runs
    if run.config.train.loss == 'bce' and 'constant_val_bce' in run.summary
  }
  for constant in constants:
    axes[0].axhline(constant, color=plots.GREY, ls='--', lw=1)
    axes[0].annotate(
      'constant prediction',
      (1, constant),
      xycoords=('axes fraction', 'data'),
      ha='right',
      va='bottom',
      fontsize=8,
      color=plots.GREY,
    )
  values = np.concatenate(ends)
  low, high = np.percentile(values[np.isfinite(values)], (0, 90))
  high = max([high, *(1.2 * constant for constant in constants)])
  margin = 0.05 * (high - low) + 1e-6
  axes[0].set_ylim(low - margin, high + margin)
  axes[0].set_ylabel('loss without L2, ' + _loss_name(runs))
  axes[1].set_ylabel('share of pixels right at threshold 1/2')
  for ax in axes:
    ax.set_xlabel('epoch')
    ax.grid(alpha=0.3)
  axes[1].legend(fontsize=8, title='solid: validation, dotted: training')
  figure.suptitle(f'Loss and accuracy: {dataset}')
  return shown.Shown(
    'curves',
    'Loss and accuracy',
    "As in the paper's Figure 3, for these runs. Training with augmentation "
    'and dropout, validation with running statistics; peaks beyond the axis '
    'are cut off.',
    figure,
    ('run', 'epoch', *_CURVES, 'valid_bce'),
    [
      (run.name, record['epoch'], *(record[c] for c in (*_CURVES, 'valid_bce')))
      for run in runs
      for record in run.records
    ],
  )


def _loss_name(runs: Sequence[recorded.RecordedRun]) -> str:
  names = {run.config.train.loss for run in runs}
  return 'BCE in nats' if names == {'bce'} else ' and '.join(sorted(names))
