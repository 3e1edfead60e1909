"""What a gradient-flow report says of runs, and of networks never trained."""

from collections.abc import Callable, Sequence
from concurrent import futures
import json
import math
from typing import Any

import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax.analysis import depth
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import measure
from skipnet_jax.analysis.page import point_figures
from skipnet_jax.analysis.page import recorded_figures
from skipnet_jax.analysis.page import report
from skipnet_jax.analysis.page import shown as shown_lib
from skipnet_jax.data import sources
from skipnet_jax.runs import recorded
from skipnet_jax.step import state as state_lib

Config = ml_collections.ConfigDict
Say = Callable[[str], None]
# Of a run: the data set that it was trained on, and its best parameters.
Trained = Callable[
  [recorded.RecordedRun], tuple[sources.DataSet, gradient_flow.Variables]
]

_L2 = ('', '_with_l2')
_SCORES = (
  'run',
  'convolutions',
  'parameters',
  'best epoch',
  'train loss',
  'with L2',
  'validation loss',
  'with L2',
  'constant BCE',
  'V_rand',
  'V_info',
)
_GRADIENTS = (
  'network',
  'convolutions',
  'parameters',
  'gradient',
  'least',
  'where',
  'most',
  'where',
)
# Sides of what is looked at, in pixels; without training within a minute.
_TRAINED_SIDE, _INITIAL_SIDE = 256, 128
INITIAL, TRAINED = 'at initialisation', 'best epoch'


def of_runs(
  title: str,
  runs: Sequence[recorded.RecordedRun],
  trained: Trained,
  say: Say = lambda _: None,
) -> report.Page:
  """Compares recorded runs; measures them at their first and best parameters.

  Args:
    title: of the page.
    runs: from `recorded.open_runs`.
    trained: opens a run's data and checkpoint.
    say: told of progress.

  Raises:
    InputError: a run whose data or checkpoint are not there.
  """
  opened = {run.name: trained(run) for run in runs}
  dataset = ' and '.join(dict.fromkeys(d.name for d, _ in opened.values()))
  points: point_figures.Points = {}
  signals = {}
  for run in runs:
    say(f'Measuring {run.name}: gradient by route, propagation')
    data, best = opened[run.name]
    batch = measure.centre_batch(run.config, data, _TRAINED_SIDE)
    first = measure.initial_variables(run.config)
    moments = {INITIAL: first, TRAINED: best}
    points[run.name], signals[run.name] = _measure(
      run.config, moments, batch, run.layers
    )
  figures = [
    recorded_figures.heat_map(runs, dataset, 'net_change'),
    recorded_figures.profiles(runs, dataset),
    recorded_figures.heat_map(runs, dataset, 'grad_l2'),
    recorded_figures.curves(runs, dataset),
    *_point_figures(points, signals, dataset),
  ]
  epochs = ', '.join(dict.fromkeys(f'{run.epochs}' for run in runs))
  return report.Page(
    title=title,
    subtitle=f'{len(runs)} runs of {epochs} epochs on {dataset}.',
    figures=figures,
    tables=[
      _differences({r.name: r.config for r in runs}),
      _scores(runs),
      _least(runs),
    ],
    warnings=_warnings(data for data, _ in opened.values()),
    details=_details({r.name: r.config for r in runs})
    | {
      f'{run.name}: environment': json.dumps(run.environment, indent=2)
      for run in runs
    },
  )


def at_init(
  title: str,
  configs: dict[str, Config],
  data: sources.DataSet,
  say: Say = lambda _: None,
) -> report.Page:
  """Compares networks as they are before training.

  Args:
    title: of the page.
    configs: whole configs by name.
    data: one slice of it is looked at.
    say: told of progress.

  Raises:
    InputError: a model without convolutions, a window it cannot take.
  """
  points: point_figures.Points = {}
  signals = {}
  rows = []
  for name, config in configs.items():
    say(f'Measuring {name}: gradient by route, propagation')
    batch = measure.centre_batch(config, data, _INITIAL_SIDE)
    variables = measure.initial_variables(config)
    points[name], signals[name] = _measure(
      config, {INITIAL: variables}, batch, measure.convolutions(config)
    )
    point = points[name][INITIAL]
    least, most = np.argmin(point.grad_l2), np.argmax(point.grad_l2)
    rows.append(
      (
        name,
        len(point.layers),
        state_lib.parameter_count(variables['params']),
        math.sqrt((point.grad_l2**2).sum()),
        float(point.grad_l2[least]),
        point.layers[least],
        float(point.grad_l2[most]),
        point.layers[most],
      )
    )
  table = report.Table(
    'Gradient at initialisation',
    'L2 norm of the gradient of the loss: of all kernels together, and of the '
    'kernels that get the least and the most of it.',
    _GRADIENTS,
    rows,
  )
  return report.Page(
    title=title,
    subtitle=(
      f'{len(configs)} network{"s" * (len(configs) > 1)} before any training, '
      f'on one slice of {data.name}.'
    ),
    figures=_point_figures(points, signals, data.name),
    tables=[*([_differences(configs)] if len(configs) > 1 else []), table],
    warnings=_warnings([data]),
    details=_details(configs),
  )


def of_depths(
  title: str,
  config: Config,
  rows: Sequence[depth.Row],
  layers: Sequence[depth.Row],
) -> report.Page:
  """Shows where each variant stops being trainable.

  Args:
    title: of the page.
    config: of the sweep.
    rows: from `depth.read`.
    layers: from `depth.read`.
  """
  steps, dataset = rows[0]['steps'], rows[0]['dataset']
  columns = (
    'variant',
    'convolutions',
    'parameters',
    'finite_steps',
    'loss_first',
    'loss_last',
    'constant_loss',
  )
  table = report.Table(
    'Training by depth',
    f'{steps} steps each; mean training loss (augmented, dropout, without L2) '
    'of the first and last tenth of the steps; the BCE of predicting the '
    "training slices' share of membrane everywhere.",
    [column.replace('_', ' ') for column in columns],
    [[row[column] for column in columns] for row in rows],
  )
  shown = shown_lib.Shown(
    'depth',
    'Where each variant stops being trainable',
    'Training loss at the end; gradient at initialisation of the centre and of '
    'the most starved convolution; compile time (processor time) against that '
    'of about 140 convolutions. A cross at the edge: not finite, or zero.',
    depth.figure(rows, layers),
    tuple(depth.COLUMNS),
    [[row[column] for column in depth.COLUMNS] for row in rows],
  )
  return report.Page(
    title=title,
    subtitle=(
      f'{len(rows)} networks, {steps} training steps each, on {dataset}.'
    ),
    figures=[shown],
    tables=[table],
    warnings=_warnings([sources.load(config)]),
    details={'config': json.dumps(config_identity.to_flat(config), indent=2)},
  )


def _measure(config, moments, batch, layers):
  # Side by side: most of the time goes into compiling each, on one core.
  with futures.ThreadPoolExecutor(1) as pool:
    signal = pool.submit(measure.at_init, config, batch, layers)
    points = measure.at_points(config, moments, batch, layers)
    return points, signal.result()


def _point_figures(points, signals, dataset: str) -> list[shown_lib.Shown]:
  lengths = point_figures.path_lengths(points, dataset)
  return [
    point_figures.gradient_norms(points, dataset),
    point_figures.split(points, dataset),
    *([lengths] if lengths else []),
    point_figures.propagate(signals, dataset),
  ]


def _warnings(data) -> list[str]:
  return list(dict.fromkeys(one.warning for one in data if one.warning))


def _details(configs: dict[str, Config]) -> dict[str, str]:
  return {
    f'{name}: config {config_identity.hash_of(config)}': json.dumps(
      config_identity.to_flat(config), indent=2
    )
    for name, config in configs.items()
  }


def _differences(configs: dict[str, Config]) -> report.Table:
  varied = config_identity.varied(list(configs.values()))

  def cell(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value

  return report.Table(
    'What was compared',
    'Every config field in which they differ.'
    if varied
    else 'No field differs.',
    ('', *varied),
    [
      (name, *(cell(values[i]) for values in varied.values()))
      for i, name in enumerate(configs)
    ],
  )


def _least(runs: Sequence[recorded.RecordedRun]) -> report.Table:
  return report.Table(
    'The least served stage',
    'In the last half of the epochs: the stage whose weights moved least, and '
    'the one whose gradient was smallest, each with its share of the mean over '
    'all convolutions (geometric means; 1: even).',
    ('run', 'least net change', 'of the mean', 'least gradient', 'of the mean'),
    [
      (
        run.name,
        *recorded_figures.least_served(run, 'net_change'),
        *recorded_figures.least_served(run, 'grad_l2'),
      )
      for run in runs
    ],
  )


def _scores(runs: Sequence[recorded.RecordedRun]) -> report.Table:
  rows = []
  for run in runs:
    summary = run.summary
    best = run.records[int(np.argmin(run.curve('valid_loss')))]
    rows.append(
      (
        run.name,
        len(run.layers),
        summary.get('parameters'),
        best['epoch'],
        *(best[f'{p}_loss{l2}'] for p in ('train', 'valid') for l2 in _L2),
        summary.get('constant_val_bce'),
        summary.get('v_rand'),
        summary.get('v_info'),
      )
    )
  return report.Table(
    'Losses and scores',
    'Losses at the epoch of the best validation loss, without and with the L2 '
    "term; the BCE of predicting the validation slices' share of membrane "
    'everywhere; V_rand and V_info of that checkpoint (best of the '
    "challenge's thresholds).",
    _SCORES,
    rows,
  )
