"""Figures of what runs recorded: heat maps, profiles by depth, curves."""

from collections.abc import Sequence
import math

import numpy as np
from scipy import stats

from skipnet_jax import plots
from skipnet_jax.analysis.page import figures
from skipnet_jax.runs import recorded
from skipnet_jax.step import telemetry

Runs = Sequence[recorded.RecordedRun]


def _log_range(values: np.ndarray) -> tuple[float, float]:
  """Limits of a logarithmic scale for values of which some may be 0 or NaN."""
  positive = values[np.isfinite(values) & (values > 0)]
  if not positive.size:
    return 1e-12, 1.0
  low, high = np.percentile(positive, (0.5, 99.9))
  # Five decades at most: smaller values have the colour of the lower limit.
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


def heat_map(runs: Runs, dataset: str, quantity: str) -> figures.FigureWithData:
  """One panel for each run, layer by epoch; all share a logarithmic scale."""
  title, label, text = _QUANTITIES[quantity]
  tables = [run.flow[quantity] for run in runs]
  return _heat_map(
    f'heat_map_{quantity}', title, label, text, 'epoch', dataset, runs, tables
  )


def first_steps(runs: Runs, dataset: str) -> figures.FigureWithData | None:
  """The gradient of each of the first steps; None if no run recorded them."""
  shown = [run for run in runs if len(run.first_steps)]
  if not shown:
    return None
  at = telemetry.STEP_QUANTITIES.index('grad_l2')
  return _heat_map(
    'first_steps',
    'Gradient of the first steps',
    'L2 norm of the gradient',
    'For each convolution and each of the first steps, the L2 norm of the '
    'gradient of the loss without L2 penalty.',
    'step',
    dataset,
    shown,
    [run.first_steps[:, at] for run in shown],
  )


def _heat_map(
  name: str,
  title: str,
  label: str,
  text: str,
  unit: str,
  dataset: str,
  runs: Runs,
  tables: Sequence[np.ndarray],
) -> figures.FigureWithData:
  """Panels of `[times, layers]` of each run; time is in `unit`."""
  from matplotlib import colors

  low, high = _log_range(np.concatenate([t.ravel() for t in tables]))
  figure, axes = figures.make_grid(len(runs), 4.4)
  for ax, run, table in zip(axes, runs, tables, strict=True):
    ax.set_facecolor('0.85')
    # NaN stays; zeros are drawn below the scale.
    drawn = np.where(table <= 0, low / 10, table)
    image = ax.imshow(
      drawn.T,
      norm=colors.LogNorm(low, high),
      cmap='viridis',
      aspect='auto',
      interpolation='nearest',
      extent=(0.5, len(table) + 0.5, len(run.layers) - 0.5, -0.5),
    )
    ax.set_title(f'{run.name} ({len(run.layers)} convolutions)', fontsize=10)
    stages = figures.stages_of(run.layers)
    for _, begin, _ in stages[1:]:
      ax.axhline(begin - 0.5, color='white', lw=0.4)
    figures.label_stages(ax, stages, len(run.layers))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel(unit)
  figure.colorbar(
    image, ax=list(axes), label=label, extend='both', shrink=0.8, aspect=40
  )
  figure.suptitle(f'{title}, by layer (input at the top) and {unit}: {dataset}')
  times = range(1, max(map(len, tables)) + 1)
  return figures.FigureWithData(
    name,
    title,
    f'{text} Layers are in the order of the forward pass, the input at the '
    'top; all panels share one logarithmic colour scale. Grey: not recorded.',
    figure,
    ('run', 'layer_index', 'layer', 'stage', *map(str, times)),
    [
      row
      for run, table in zip(runs, tables, strict=True)
      for row in figures.layer_rows(
        [run.name],
        run.layers,
        map(figures.stage_of, run.layers),
        *table.astype(np.float64),
      )
    ],
  )


def early_and_late(run: recorded.RecordedRun) -> tuple[np.ndarray, np.ndarray]:
  """Net change averaged over the first tenth and last half of epochs, `[l]`.

  NaN for a layer without a record of these epochs.
  """
  table = np.ma.masked_invalid(run.flow['net_change'])
  early, late = table[: max(1, run.epochs // 10)], table[run.epochs // 2 :]
  return (
    early.mean(0, dtype=np.float64).filled(np.nan),
    late.mean(0, dtype=np.float64).filled(np.nan),
  )


def profiles(runs: Runs, dataset: str) -> figures.FigureWithData:
  """Net change by depth, early and late in training."""
  figure, axes = figures.make_grid(2, 4.0, sharey=True)
  changes = {run.name: early_and_late(run) for run in runs}
  groups = recorded.by_network(runs)
  firsts = [group[0] for group in groups.values()]
  places = figures.mark_depth(axes, [run.layers for run in firsts])
  for (name, group), x, colour in zip(
    groups.items(), places, plots.CYCLE, strict=False
  ):
    for i, ax in enumerate(axes):
      seeds = np.stack([changes[run.name][i] for run in group])
      figures.draw_by_depth(
        ax,
        x,
        figures.middle_of_seeds(seeds),
        group[0].layers,
        color=colour,
        lw=1.2,
        label=plots.legend_label(name),
      )
      figures.draw_band(ax, x, seeds, group[0].layers, colour)
  for ax, part in zip(axes, ('first tenth', 'last half'), strict=True):
    ax.set_yscale('log')
    ax.set_title(f'{part} of the epochs', fontsize=10)
    ax.grid(axis='y', alpha=0.3)
  both = {name: np.concatenate(change) for name, change in changes.items()}
  cut = figures.clip_log_axis(axes[0], both)  # The axes share their limits.
  axes[0].set_ylabel('mean |net change| in an epoch')
  axes[0].legend(fontsize=8)
  figure.suptitle(f'Net change by depth, input left: {dataset}')
  return figures.FigureWithData(
    'profiles',
    'Net change by depth',
    'The heat map averaged over the first tenth and the last half of the '
    'epochs. Networks of the same stages are aligned stage by stage. '
    f'{figures.PROJECTIONS}{cut}{figures.seeds_text(groups.values())}',
    figure,
    ('run', 'layer_index', 'layer', 'stage', 'first_tenth', 'last_half'),
    [
      row
      for run in runs
      for row in figures.layer_rows(
        [run.name],
        run.layers,
        map(figures.stage_of, run.layers),
        *changes[run.name],
      )
    ],
  )


_CURVES = ('train_loss', 'valid_loss', 'train_accuracy', 'valid_accuracy')


def curves(runs: Runs, dataset: str) -> figures.FigureWithData:
  """Losses and accuracies by epoch (the paper's Figure 3)."""
  figure, axes = figures.make_grid(2, 4.0)
  losses = []
  groups = recorded.by_network(runs)
  for (name, group), colour in zip(groups.items(), plots.CYCLE, strict=False):
    count = min(run.epochs for run in group)
    epochs = np.arange(1, count + 1)
    for ax, kind in zip(axes, ('loss', 'accuracy'), strict=True):
      training, validation = (
        np.stack([run.curve(f'{part}_{kind}')[:count] for run in group])
        for part in ('train', 'valid')
      )
      middle = figures.middle_of_seeds(training)
      ax.plot(epochs, middle, ':', color=colour, lw=1.2)
      ax.plot(
        epochs,
        figures.middle_of_seeds(validation),
        '-',
        color=colour,
        lw=1.2,
        label=plots.legend_label(name),
      )
      if len(group) > 1:
        low, high = validation.min(0), validation.max(0)
        ax.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
      if kind == 'loss':
        losses += [training.ravel(), validation[:, count // 10 :].ravel()]
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
  values = np.concatenate(losses)
  low, high = np.percentile(values[np.isfinite(values)], (0, 90))
  high = max([high, *(1.2 * constant for constant in constants)])
  margin = 0.05 * (high - low) + 1e-6
  axes[0].set_ylim(low - margin, high + margin)
  names = {run.config.train.loss for run in runs}
  loss = 'BCE in nats' if names == {'bce'} else ' and '.join(sorted(names))
  axes[0].set(xlabel='epoch', ylabel=f'loss without L2, {loss}')
  axes[1].set(xlabel='epoch', ylabel='share of pixels right at threshold 1/2')
  for ax in axes:
    ax.grid(alpha=0.3)
  axes[1].legend(fontsize=8, title='solid: validation, dotted: training')
  figure.suptitle(f'Loss and accuracy: {dataset}')
  columns = (*_CURVES, 'valid_bce')
  return figures.FigureWithData(
    'curves',
    'Loss and accuracy',
    "As in the paper's Figure 3, for these runs. Training with augmentation "
    'and dropout, validation with running statistics; peaks beyond the axis '
    f'are cut off.{figures.seeds_text(groups.values())}',
    figure,
    ('run', 'epoch', *columns),
    [
      (run.name, record['epoch'], *(record[name] for name in columns))
      for run in runs
      for record in run.records
    ],
  )


_CRITICAL = 'critical_sharpness_ratio'


def critical_sharpness(
  runs: Runs, dataset: str
) -> figures.FigureWithData | None:
  """By epoch, beside the validation loss; None if no run recorded it."""
  shown = [
    run for run in runs if any(_CRITICAL in record for record in run.records)
  ]
  if not shown:
    return None
  figure, axes = figures.make_grid(2, 4.0)
  groups = recorded.by_network(shown)
  correlations = []
  rows = []
  for (name, group), colour in zip(groups.items(), plots.CYCLE, strict=False):
    found = []
    for run in group:
      ratios, losses = run.curve(_CRITICAL), run.curve('valid_loss')
      look = {
        'color': colour,
        'lw': 1.0,
        'alpha': 1 if run is group[0] else 0.4,
      }
      label = plots.legend_label(name) if run is group[0] else None
      epochs = np.arange(1, run.epochs + 1)
      axes[0].plot(epochs, ratios, label=label, **look)
      axes[1].plot(epochs, losses, **look)
      found.append(_jump_correlation(ratios, losses))
      rows += [
        (run.name, record['epoch'], *(record.get(c) for c in _COLUMNS))
        for record in run.records
      ]
    correlations.append(f'{name} {" / ".join(f"{c:.2f}" for c in found)}')
  axes[0].axhline(1, color=plots.GREY, ls='--', lw=1)
  axes[0].set(yscale='log', ylabel='critical sharpness / (2 / learning rate)')
  positive = all(_positive(run.curve('valid_loss')) for run in shown)
  axes[1].set(
    yscale='log' if positive else 'linear', ylabel='validation loss without L2'
  )
  for ax in axes:
    ax.set_xlabel('epoch')
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
  axes[0].legend(fontsize=8)
  figure.suptitle(f'Critical sharpness by epoch: {dataset}')
  return figures.FigureWithData(
    'critical_sharpness',
    'Critical sharpness by epoch',
    'The critical sharpness is 2 / the smallest learning rate at which the '
    'next step would raise the training loss (Kalra and Barkeshli 2024), '
    'measured on the centre of one training slice without dropout. Above the '
    'dashed line, the learning rate of training itself raises that loss. Rank '
    'correlation of the ratio with the rise of the validation loss in the next '
    f'epoch: {"; ".join(correlations)}.',
    figure,
    ('run', 'epoch', *_COLUMNS),
    rows,
  )


_COLUMNS = ('critical_sharpness', _CRITICAL, 'learning_rate', 'valid_loss')


def _positive(losses: np.ndarray) -> bool:
  return bool(np.nanmin(losses) > 0)


def _jump_correlation(ratios: np.ndarray, losses: np.ndarray) -> float:
  """Spearman's, of an epoch's ratio and the next rise of the log loss.

  A Dice loss is negative: its own rise counts.
  """
  rise = np.diff(np.log(losses) if _positive(losses) else losses)
  both = np.isfinite(ratios[:-1]) & np.isfinite(rise)
  if np.count_nonzero(both) < 3:
    return math.nan
  ranks = [stats.rankdata(x[both]) for x in (ratios[:-1], rise)]
  if any(np.ptp(r) == 0 for r in ranks):
    return math.nan
  return float(np.corrcoef(*ranks)[0, 1])
