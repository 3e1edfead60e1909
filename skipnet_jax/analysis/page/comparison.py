"""The contents of a gradient-flow report: its figures, tables and texts."""

from collections.abc import Callable, Iterable, Sequence
import json
import math

import jax
import ml_collections

from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax.analysis import depth
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import measure
from skipnet_jax.analysis.page import drawing
from skipnet_jax.analysis.page import figures as figures_lib
from skipnet_jax.analysis.page import findings
from skipnet_jax.analysis.page import page_tables
from skipnet_jax.analysis.page import point_figures
from skipnet_jax.analysis.page import recorded_figures
from skipnet_jax.analysis.page import report
from skipnet_jax.data import data_set
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.runs import recorded
from skipnet_jax.runs import trained
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import state as state_lib

Config = ml_collections.ConfigDict
Log = Callable[[str], None]
Runs = Sequence[recorded.RecordedRun]

# Side of the measured windows, in pixels: of runs; smaller before training, to
# take no more than a minute.
_RUN_SIDE, _INITIAL_SIDE = 256, 128
INITIAL, BEST, LAST = 'at initialisation', 'best epoch', 'last epoch'
_NOTATION = (
  'Stages are named in the order of the forward pass: down_1, down_2, ... '
  'halve the resolution, across is the centre, up_1, up_2, ... double it, '
  'classifier gives the prediction. W is the kernel of a convolution, g its '
  'gradient. A short skip goes around a block, a long one from down to up.'
)
_SCORES = (
  'V_rand compares a segmentation with the labels by pairs of pixels, V_info '
  'by information: 1 is perfect, and split or merged cells lower both.'
)


def of_runs(
  title: str,
  runs: Runs,
  log: Log = lambda _: None,
) -> report.Page:
  """Compares recorded runs; measures them at their first and best parameters.

  Args:
    title: of the page.
    runs: from `recorded.open_runs`.
    log: called with a message on each run.

  Raises:
    InputError: the data or the checkpoint of a run is missing.
  """
  groups = recorded.by_network(runs)
  # What is measured is that of the first seed.
  firsts = [group[0] for group in groups.values()]
  opened = [trained.open_run(run.path) for run in firsts]
  data = [trained.load_data(run) for run in opened]
  configs = {run.name: run.config for run in runs}
  dataset = ' and '.join(dict.fromkeys(one.name for one in data))
  points: point_figures.Points = {}
  signals, lost, sharp = {}, {}, {}
  for run, best, stacks in zip(firsts, opened, data, strict=True):
    what = 'gradient by route, propagation, lesions, sharpness'
    log(f'Measuring {run.name}: {what}')
    batch = measure.centre_batch(run.config, stacks, _RUN_SIDE)
    valid = measure.centre_batch(
      run.config, stacks, _RUN_SIDE, stacks.drawn(stacks.valid)
    )
    found = measure.lesions(run.config, best.variables, valid)
    if found is not None:
      lost[run.name] = found
    initial = measure.initial_variables(run.config)
    moments = {INITIAL: initial, BEST: best.variables}
    sharp[run.name] = _sharpness(run, stacks, initial)
    measured = measure.measure(run.config, moments, batch)
    points[run.name], signals[run.name] = measured
    _say_found(points[run.name], log)
  first = recorded_figures.first_steps(firsts, dataset)
  drawn = drawing.network(groups)
  critical = recorded_figures.critical_sharpness(runs, dataset)
  centre = any(name.startswith('across/') for name in runs[0].layers)
  epochs = ', '.join(dict.fromkeys(f'{run.epochs}' for run in runs))
  environments = {
    f'{run.name}: environment': json.dumps(run.environment, indent=2)
    for run in runs
  }
  return report.Page(
    title=title,
    subtitle=(
      f'{len(runs)} runs of {epochs} epochs on {dataset}. How much is each '
      'layer updated, with and without long and short skips? After Figure 4 of '
      'Drozdzal et al. 2016 (arXiv 1608.04117).'
    ),
    findings=findings.sentences(runs),
    notes=(*([_NOTATION] if centre else []), _SCORES),
    figures=[
      *([drawn] if drawn else []),
      recorded_figures.heat_map(firsts, dataset, 'net_change'),
      recorded_figures.profiles(runs, dataset),
      recorded_figures.heat_map(firsts, dataset, 'grad_l2'),
      *([first] if first else []),
      recorded_figures.curves(runs, dataset),
      *([critical] if critical else []),
      *_point_figures(points, signals, dataset),
      *([point_figures.lesions(lost, dataset)] if lost else []),
    ],
    tables=[
      page_tables.differences(configs),
      page_tables.scores(runs),
      page_tables.least_trained(runs),
      page_tables.sharpness(sharp),
      *page_tables.found_skips(points),
    ],
    warnings=[*_warnings(data), *_warm_starts(configs)],
    details=_details(configs) | environments,
  )


def at_init(
  title: str, configs: dict[str, Config], data: data_set.DataSet, log: Log
) -> report.Page:
  """Compares networks before training, on one slice of the data.

  `configs` are complete, by name; `log` is called with a message on each.

  Raises:
    InputError: a model without convolutions, or one that cannot take the size
      of the window.
  """
  points: point_figures.Points = {}
  signals = {}
  rows = []
  for name, config in configs.items():
    config_checks.require_random_start(config, '--at-init')
    log(f'Measuring {name}: gradient by route, propagation')
    batch = measure.centre_batch(config, data, _INITIAL_SIDE)
    variables = measure.initial_variables(config)
    points[name], signals[name] = measure.measure(
      config, {INITIAL: variables}, batch
    )
    _say_found(points[name], log)
    point = points[name][INITIAL]
    norms = dict(zip(point.layers, point.grad_l2.tolist(), strict=True))
    least, most = (f(norms, key=norms.__getitem__) for f in (min, max))
    parameters = state_lib.parameter_count(variables['params'])
    row = [name, len(norms), parameters, math.hypot(*norms.values())]
    rows.append([*row, norms[least], least, norms[most], most])
  table = report.Table(
    'Gradient at initialisation',
    'L2 norm of the gradient of the loss: of all kernels together, and of the '
    'kernels with the smallest and the largest norm.',
    (
      *('network', 'convolutions', 'parameters', 'gradient'),
      *('least', 'where', 'most', 'where'),
    ),
    rows,
  )
  return report.Page(
    title=title,
    subtitle=(
      f'{len(configs)} network{"s" * (len(configs) > 1)} before any training, '
      f'on one slice of {data.name}.'
    ),
    figures=_point_figures(points, signals, data.name),
    tables=[
      *([page_tables.differences(configs)] if len(configs) > 1 else []),
      table,
      *page_tables.found_skips(points),
    ],
    warnings=_warnings([data]),
    details=_details(configs),
  )


def of_depths(
  title: str, config: Config, rows: list[depth.Row], layers: list[depth.Row]
) -> report.Page:
  """Shows up to which depth each variant can be trained.

  `rows` and `layers` are from `depth.read`, `config` is that of the sweep.
  """
  steps = rows[0]['steps']
  columns = (
    *('variant', 'convolutions', 'parameters', 'finite_steps'),
    *('loss_first', 'loss_last', 'constant_loss'),
  )
  return report.Page(
    title=title,
    subtitle=(
      f'{len(rows)} networks, {steps} training steps each, on '
      f'{rows[0]["dataset"]}.'
    ),
    figures=[
      figures_lib.FigureWithData(
        'depth',
        'Where each variant stops being trainable',
        'Training loss at the end; gradient at initialisation of the centre '
        'and of the most starved convolution; compile time (processor time) '
        'divided by that at about 140 convolutions. A cross at the upper edge '
        'marks a value that is not finite, or zero.',
        depth.figure(rows, layers),
        tuple(depth.COLUMNS),
        [[row[column] for column in depth.COLUMNS] for row in rows],
      )
    ],
    tables=[
      report.Table(
        'Training by depth',
        f'{steps} steps each. Loss: mean training loss (augmented, with '
        'dropout, without L2) of the first and the last tenth of the steps. '
        'Constant: the BCE of predicting the mean label of the training slices '
        'everywhere.',
        [column.replace('_', ' ') for column in columns],
        [[row[column] for column in columns] for row in rows],
      )
    ],
    warnings=_warnings([sources.load(config)]),
    details={'config': json.dumps(config_identity.to_flat(config), indent=2)},
  )


def _point_figures(
  points, signals, dataset: str
) -> list[figures_lib.FigureWithData]:
  lengths = point_figures.path_lengths(points, dataset)
  return [
    point_figures.gradient_norms(points, dataset),
    point_figures.split(points, dataset),
    *([lengths] if lengths else []),
    point_figures.propagate(signals, dataset),
  ]


def _sharpness(
  run: recorded.RecordedRun,
  data: data_set.DataSet,
  initial: gradient_flow.Variables,
) -> dict[str, measure.Sharp]:
  """At the start, the best and the last epoch, on the first training slices."""
  # Its schedule counts the steps of an epoch.
  pipeline = pipeline_lib.make_pipeline(run.config, data, 1)
  training = build_lib.build(
    run.config, pipeline.window, pipeline.steps_per_epoch
  )
  best, latest = trained.open_states(run.path)
  states = {
    INITIAL: state_lib.begin(
      training.optimizer, initial, jax.random.key(run.config.seed)
    ),
    BEST: best,
    LAST: latest,
  }
  batch = measure.centre_batch(
    run.config, data, _RUN_SIDE, data.train[: page_tables.SHARP_SLICES]
  )
  return measure.sharpness(run.config, training, states, batch)


def _say_found(points: dict[str, measure.Point], log: Log) -> None:
  """Shows which skips were found in a network that names none."""
  found = next(iter(points.values())).found
  if found:
    log(f'It names no skips; found: {"; ".join(map(str, found))}')


def _warnings(data: Iterable[data_set.DataSet]) -> list[str]:
  return list(dict.fromkeys(one.warning for one in data if one.warning))


def _warm_starts(configs: dict[str, Config]) -> list[str]:
  return [
    f'{name} began with the weights of {config.train.init_from}; what is shown '
    f'{INITIAL} is its network with random values.'
    for name, config in configs.items()
    if config.train.init_from
  ]


def _details(configs: dict[str, Config]) -> dict[str, str]:
  return {
    f'{name}: config {config_identity.hash_of(config)}': json.dumps(
      config_identity.to_flat(config), indent=2
    )
    for name, config in configs.items()
  }
