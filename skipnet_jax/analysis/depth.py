"""The sweep over depth: how deep each variant can be and still train.

Every network is built, compiled and trained for a fixed number of steps. The
sweep's folder holds `depth.csv` (`COLUMNS`), `depth_layers.csv`
(`LAYER_COLUMNS`) and the config.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
import math
import operator
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax import plots
from skipnet_jax.data import data_set
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.runs import lock
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import calls
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import telemetry

Config = ml_collections.ConfigDict
Row = dict[str, Any]

# One row for each variant and depth.
COLUMNS: dict[str, type] = {
  'variant': str,
  'repetitions': int,  # Blocks in each of the seven main stages.
  'convolutions': int,  # On the main path, without projections of skips.
  'parameters': int,
  'scan': int,  # 1 if equal blocks were compiled once.
  'steps': int,  # Requested.
  'finite_steps': int,  # Before the loss or the gradient's norm overflowed.
  'loss_first': float,  # Training loss, mean over the first tenth of the steps.
  'loss_last': float,  # The same over the last tenth; nan if not finite.
  'constant_loss': float,  # BCE of predicting the mean label everywhere.
  'trace_seconds': float,  # Tracing and lowering the training step.
  'compile_seconds': float,  # Compiling it by XLA.
  'compile_cpu_seconds': float,  # The same, processor time of this process.
  'step_seconds': float,  # Median without the first; nan for a single step.
  'dataset': str,
}
# One row for each kernel, projections included, in call order.
LAYER_COLUMNS: dict[str, type] = {
  'variant': str,
  'repetitions': int,
  'convolutions': int,
  'index': int,
  'layer': str,
  'grad_l2_first': float,  # L2 norm of the gradient at initialisation.
  'grad_l2_last': float,  # At the last finite step; nan without one.
}
FILES = {'depth.csv': COLUMNS, 'depth_layers.csv': LAYER_COLUMNS}


def on_main_path(layer: str) -> bool:
  """Whether a layer is not a projection of a short or long skip."""
  return not any(
    part.startswith(('short_skip', 'long_skip')) for part in layer.split('/')
  )


def _configs(config: Config) -> dict[tuple[str, int], Config]:
  """The complete config of each (variant, repetitions), by repetitions."""
  base = config.copy_and_resolve_references()
  depths = base.depths
  whole = isinstance(depths, ml_collections.ConfigDict) and (
    type(depths.get('steps')) is int
    and isinstance(depths.get('repetitions'), tuple | list)
    and all(type(n) is int for n in depths.repetitions)
  )
  if not whole or 'repetitions' not in base.model:
    raise errors.InputError(
      f'depths is {config_checks.short(depths)}; it must have the whole number '
      'steps and the tuple of whole numbers repetitions, for a network whose '
      'config.model has repetitions.'
    )
  with base.unlocked():
    del base.depths
  if depths.steps < 1 or not depths.repetitions or min(depths.repetitions) < 1:
    raise errors.InputError(
      f'depths.steps is {depths.steps} and depths.repetitions '
      f'{tuple(depths.repetitions)}; give whole numbers of at least 1.'
    )
  if base.parallel.mode != 'jit':
    raise errors.InputError(
      f'parallel.mode is {base.parallel.mode!r}; the sweep over depth runs on '
      'one device: give jit.'
    )
  config_checks.require_random_start(base, 'the sweep over depth')
  configs = {}
  for repetitions in depths.repetitions:
    for variant, changes in config_checks.variants(base).items():
      config_checks.require_same_data(
        base, variant, changes, 'the sweep over depth'
      )
      one = changes.copy_and_resolve_references()
      one.model.repetitions = (repetitions,) * len(one.model.repetitions)
      models.build_model(one.model)
      configs[variant, repetitions] = one
  return configs


def sweep(
  config: Config, folder: str | os.PathLike, log: Callable[[str], None]
) -> list[Row]:
  """Trains every variant at every depth; resumes after an interruption.

  `config` is an experiment with `variants`, `depths.repetitions` and
  `depths.steps`. Networks in the CSV files of `folder` are not trained again;
  `log` is called with a line on each of the others.

  Returns:
    Rows of depth.csv; `read` also returns those of depth_layers.csv.

  Raises:
    InputError: a config or data set that cannot be used, or a folder of
      another config or data set; before anything is compiled.
  """
  configs = _configs(config)
  data = sources.load(next(iter(configs.values())))
  for one in configs.values():
    pipeline = pipeline_lib.make_pipeline(one, data, 1)
    build_lib.build(one, pipeline.window, pipeline.steps_per_epoch)
  path = workdir_lib.check(folder, config, data)
  with lock.claim(path):
    return _sweep(config, configs, data, path, log)


def _sweep(
  config: Config,
  configs: Mapping[tuple[str, int], Config],
  data: data_set.DataSet,
  path: pathlib.Path,
  log: Callable[[str], None],
) -> list[Row]:
  rows, layers = read(path)
  workdir_lib.describe(path, config, data.identity())
  done = {(row['variant'], row['repetitions']) for row in rows}
  for (variant, repetitions), one in configs.items():
    if (variant, repetitions) in done:
      continue
    network = {'variant': variant, 'repetitions': repetitions}
    row, norms = _train(one, data, config.depths.steps)
    rows.append(network | row)
    layers += [network | norm for norm in norms]
    # The layers first: `read` ignores layers without a row in depth.csv.
    for name, table in (('depth_layers.csv', layers), ('depth.csv', rows)):
      columns = list(FILES[name])
      lines = ([row[column] for column in columns] for row in table)
      files.write_csv(path / name, columns, lines)
    log(
      f'{variant:12}  {row["convolutions"]:5d} convolutions  loss '
      f'{row["loss_first"]:.4f} to {row["loss_last"]:.4f}  compiled in '
      f'{row["compile_seconds"]:.1f} s, a step {row["step_seconds"]:.3f} s'
      + ('' if row['finite_steps'] == row['steps'] else '  NOT FINITE')
    )
  return rows


def read(folder: str | os.PathLike) -> tuple[list[Row], list[Row]]:
  """Rows of depth.csv and depth_layers.csv, of the networks that are finished.

  Raises:
    InputError: a file that `sweep` did not write.
  """
  tables = []
  for name, columns in FILES.items():
    path = pathlib.Path(folder) / name
    try:
      with path.open(newline='') as file:
        raw = list(csv.DictReader(file))
      tables.append([{k: columns[k](v) for k, v in row.items()} for row in raw])
    except FileNotFoundError:
      tables.append([])
    except (KeyError, TypeError, ValueError) as e:
      raise errors.InputError(
        f'{path} cannot be read, it is not a file of the sweep over depth '
        f'({e}): choose another folder, or remove the file.'
      ) from e
  rows, layers = tables
  done = {(row['variant'], row['repetitions']) for row in rows}
  return rows, [r for r in layers if (r['variant'], r['repetitions']) in done]


def _train(
  config: Config, data: data_set.DataSet, steps: int
) -> tuple[Row, list[Row]]:
  """Trains one network; returns its row of depth.csv, and of its layers."""
  parallel = parallel_lib.make_parallel(config.parallel)
  pipeline = pipeline_lib.make_pipeline(config, data, 1)
  training = build_lib.build(config, pipeline.window, pipeline.steps_per_epoch)
  names = training.kernels
  call = calls.make_train_call(training.train_step, pipeline, parallel, 1)
  state = parallel.replicate(training.create_state(config.seed))
  arrays = pipeline_lib.in_memory(pipeline_lib.host_arrays(data))
  arrays = parallel.replicate(arrays)
  clock = [time.perf_counter()]
  lowered = call.lower(state, arrays)
  clock.append(time.perf_counter())
  cpu = time.process_time()
  compiled = lowered.compile()
  cpu = time.process_time() - cpu
  clock.append(time.perf_counter())

  quantity = telemetry.STEP_QUANTITIES.index('grad_l2')
  values: list[float] = []
  norms: list[np.ndarray] = []
  finite = True
  while finite and len(values) < steps:
    state, metrics = compiled(state, arrays)
    metrics = jax.device_get(metrics)
    clock.append(time.perf_counter())
    # A step that is not finite changes nothing: the next would be the same.
    finite = not metrics['nonfinite']
    if finite or not norms:
      norms.append(metrics['flow'][quantity])
    if finite:
      values.append(float(metrics['loss']))
  trace, compilation, *seconds = np.diff(clock)
  few = max(1, steps // 10)
  row = {
    'convolutions': sum(map(on_main_path, names)),
    'parameters': training.parameters,
    'scan': int(config.model.get('scan', False)),
    'steps': steps,
    'finite_steps': len(values),
    'loss_first': float(np.mean(values[:few])) if values else math.nan,
    'loss_last': float(np.mean(values[-few:])) if finite else math.nan,
    'constant_loss': data.constant_bce(data.train),
    'trace_seconds': float(trace),
    'compile_seconds': float(compilation),
    'compile_cpu_seconds': cpu,
    'step_seconds': float(np.median(seconds[1:] or math.nan)),
    'dataset': data.name,
  }
  last = norms[-1] if values else np.full(len(names), math.nan)
  return row, [
    {
      'convolutions': row['convolutions'],
      'index': i,
      'layer': name,
      'grad_l2_first': float(norms[0][i]),
      'grad_l2_last': float(last[i]),
    }
    for i, name in enumerate(names)
  ]


def gradient_ratios(layers: Sequence[Row]) -> tuple[float, float]:
  """Ratios of gradient norms at initialisation, from the rows of one network.

  Returns:
    The median norm of `across` over the classifier's; and the smallest norm
    over the median norm. Projections do not count.
  """
  norms = {
    r['layer']: r['grad_l2_first'] for r in layers if on_main_path(r['layer'])
  }
  every = list(norms.values())
  across = [norm for name, norm in norms.items() if name.startswith('across/')]
  # Norms may be zero or infinite.
  with np.errstate(divide='ignore', invalid='ignore'):
    centre = np.median(across) / norms['classifier']
    return centre, np.min(every) / np.median(every)


def figure(rows: Sequence[Row], layers: Sequence[Row]) -> Any:
  """Draws what `read` returns against depth, as a matplotlib Figure.

  A cross at the upper edge marks a value that is zero or not finite.
  """
  drawn = plots.make_figure(10, 8)
  axes = drawn.subplots(2, 2).ravel()
  variants = list(dict.fromkeys(row['variant'] for row in rows))
  few = max(1, rows[0]['steps'] // 10)
  depths = sorted({row['convolutions'] for row in rows})
  # The depth nearest to that of the paper's network.
  reference = min(depths, key=lambda depth: abs(depth - 140))
  titles = (
    (f'Training loss, last {few} of {rows[0]["steps"]} steps', 'BCE (nats)'),
    ('Gradient of the centre at initialisation', "norm over the classifier's"),
    ('Most starved layer at initialisation', 'smallest norm over the median'),
    ('Compiling the training step', f'time over that at {reference}'),
  )
  for ax, (title, label) in zip(axes, titles, strict=True):
    ax.set(title=title, ylabel=label, xscale='log')
    ax.set_xlabel('convolutions on the main path')
    ax.set_xticks(depths, depths)
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
  for i, variant in enumerate(variants):
    own = [row for row in rows if row['variant'] == variant]
    own.sort(key=operator.itemgetter('convolutions'))
    compiled = {r['convolutions']: r['compile_cpu_seconds'] for r in own}
    points = []
    for row in own:
      network = variant, row['repetitions']
      kernels = [
        r for r in layers if (r['variant'], r['repetitions']) == network
      ]
      seconds = row['compile_cpu_seconds'] / compiled.get(reference, math.nan)
      points.append([row['loss_last'], *gradient_ratios(kernels), seconds])
    for ax, y in zip(axes, np.transpose(points), strict=True):
      _plot_line(ax, np.array(list(compiled)), y, i, variant)
  axes[0].axhline(
    rows[0]['constant_loss'], color='0.3', ls='--', label='constant prediction'
  )
  axes[0].plot([], [], 'x', color='0.3', ms=9, label='not finite')
  axes[1].set_yscale('log')
  axes[2].set_yscale('log')
  for ax in axes:
    ax.margins(y=0.2)  # Room for the crosses.
  axes[3].set_ylim(bottom=0)
  entries = axes[0].get_legend_handles_labels()
  drawn.legend(*entries, loc='outside lower center', ncols=len(variants) + 2)
  drawn.suptitle(f'Depth and skips: {rows[0]["dataset"]}')
  return drawn


def _plot_line(
  ax: Any, x: np.ndarray, y: np.ndarray, i: int, name: str
) -> None:
  colour = plots.CYCLE[i]
  good = np.isfinite(y) & (y > 0)
  ax.plot(
    x[good],
    y[good],
    'osD^'[i % 4] + '-',
    color=colour,
    label=plots.legend_label(name),
  )
  # Every variant has its own height, so that no cross hides another.
  heights = np.full(np.sum(~good), 0.97 - 0.04 * i)
  edge = ax.get_xaxis_transform()
  ax.plot(x[~good], heights, 'x', color=colour, ms=9, transform=edge)
