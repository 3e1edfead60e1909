"""Where each variant stops being trainable: a sweep over depth, and its cost.

Each network is built, compiled and trained for a fixed number of steps. What
dies on the way is a result like any other. A folder holds `depth.csv`
(`COLUMNS`), `depth_layers.csv` (`LAYER_COLUMNS`) and the config they belong to.
"""

from collections.abc import Callable, Sequence
import csv
import math
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax import plots
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
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
  'convolutions': int,  # Of the main path: no projections of skips.
  'parameters': int,
  'scan': int,  # 1 where equal blocks were compiled once.
  'steps': int,  # Asked for.
  'finite_steps': int,  # Before the loss or the gradient's norm overflowed.
  'loss_first': float,  # Training loss, mean over the first tenth of the steps.
  'loss_last': float,  # The same over the last tenth; nan if not finite.
  'constant_loss': float,  # BCE of predicting the training slices' own share.
  'trace_seconds': float,  # Tracing and lowering the training step.
  'compile_seconds': float,  # XLA's part.
  'compile_cpu_seconds': float,  # The same, processor time of this process.
  'step_seconds': float,  # Median without the first; nan for a single step.
  'dataset': str,
}
# One row for each of their kernels, projections included, in call order.
LAYER_COLUMNS: dict[str, type] = {
  'variant': str,
  'repetitions': int,
  'convolutions': int,
  'index': int,
  'layer': str,
  'grad_l2_first': float,  # L2 norm of the gradient at initialisation.
  'grad_l2_last': float,  # At the last step that was finite; else nan.
}
FILES = {'depth.csv': COLUMNS, 'depth_layers.csv': LAYER_COLUMNS}


def on_main_path(layer: str) -> bool:
  """Whether a layer is no projection of a short or long skip."""
  return not any(
    part.startswith(('short_skip', 'long_skip')) for part in layer.split('/')
  )


def _cells(config: Config) -> dict[tuple[str, int], Config]:
  """The whole config of each (variant, repetitions), shallow ones first."""
  base = config.copy_and_resolve_references()
  depths = base.depths
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
  cells = {}
  for repetitions in depths.repetitions:
    for variant, whole in config_lib.variants(base).items():
      changed = config_identity.varied([base, whole])
      if any(name.split('.')[0] in ('data', 'seed') for name in changed):
        raise errors.InputError(
          f'The variant {variant!r} changes data or seed: the sweep over depth '
          'compares networks on one data set, change them for all.'
        )
      whole = whole.copy_and_resolve_references()
      whole.model.repetitions = (repetitions,) * len(whole.model.repetitions)
      models.build_model(whole.model)
      cells[variant, repetitions] = whole
  return cells


def sweep(
  config: Config, folder: str | os.PathLike, say: Callable[[str], None]
) -> list[Row]:
  """Trains every variant at every depth; goes on where it was cut off.

  Args:
    config: an experiment with `variants` and `depths`: `repetitions` and
      `steps`.
    folder: where the two CSV files go; finished rows in it are not repeated.
    say: told of progress.

  Returns:
    Rows of depth.csv; those of depth_layers.csv come from `read`.

  Raises:
    InputError: a config or data set that cannot be used, or a folder of
      another; before anything is compiled.
  """
  cells = _cells(config)
  data = sources.load(next(iter(cells.values())))
  for whole in cells.values():
    pipeline = pipeline_lib.make_pipeline(whole, data, 1)
    build_lib.build(whole, pipeline.window, pipeline.steps_per_epoch)
  dataset = data.identity()
  path = workdir_lib.check(folder, config, dataset)
  rows, layers = read(path)
  workdir_lib.describe(path, config, dataset)
  done = {(row['variant'], row['repetitions']) for row in rows}
  for (variant, repetitions), whole in cells.items():
    if (variant, repetitions) in done:
      continue
    place = {'variant': variant, 'repetitions': repetitions}
    row, norms = _train(whole, data, config.depths.steps)
    rows.append(place | row)
    layers += [place | norm for norm in norms]
    # In this order: a row without its layers is never seen.
    for name, found in (('depth_layers.csv', layers), ('depth.csv', rows)):
      lines = ([row[column] for column in FILES[name]] for row in found)
      files.write_csv(path / name, list(FILES[name]), lines)
    say(
      f'{variant:12}  {row["convolutions"]:5d} convolutions  loss '
      f'{row["loss_first"]:.4f} to {row["loss_last"]:.4f}  compiled in '
      f'{row["compile_seconds"]:.1f} s, a step {row["step_seconds"]:.3f} s'
      + ('' if row['finite_steps'] == row['steps'] else '  NOT FINITE')
    )
  return rows


def read(folder: str | os.PathLike) -> tuple[list[Row], list[Row]]:
  """Rows of depth.csv and of depth_layers.csv, as far as they are finished.

  Raises:
    InputError: a file that is not the sweep's.
  """
  tables = []
  for name, columns in FILES.items():
    path = pathlib.Path(folder) / name
    try:
      with path.open(newline='') as file:
        tables.append(
          [
            {key: columns[key](value) for key, value in row.items()}
            for row in csv.DictReader(file)
          ]
        )
    except FileNotFoundError:
      tables.append([])
    except (KeyError, TypeError, ValueError) as e:
      raise errors.InputError(
        f'{path} cannot be read as the sweep over depth wrote it ({e}): choose '
        'another folder, or remove the file.'
      ) from e
  rows, layers = tables
  done = {(row['variant'], row['repetitions']) for row in rows}
  return rows, [r for r in layers if (r['variant'], r['repetitions']) in done]


def _train(
  config: Config, data: sources.DataSet, steps: int
) -> tuple[Row, list[Row]]:
  """One variant at one depth: what it adds to either file."""
  parallel = parallel_lib.make_parallel(config.parallel)
  pipeline = pipeline_lib.make_pipeline(config, data, 1)
  training = build_lib.build(config, pipeline.window, pipeline.steps_per_epoch)
  names = training.kernels
  call = calls.make_train_call(training.train_step, pipeline, parallel, 1)
  state = parallel.replicate(training.create_state(config.seed))
  arrays = parallel.replicate(pipeline_lib.host_arrays(data))
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


def starved(layers: Sequence[Row]) -> float:
  """The smallest gradient norm at initialisation over the median one.

  Args:
    layers: rows of one network; projections are left out.
  """
  norms = [r['grad_l2_first'] for r in layers if on_main_path(r['layer'])]
  return _ratio(np.min(norms), np.median(norms))


def centre(layers: Sequence[Row]) -> float:
  """Median gradient norm of `across` at initialisation over the classifier's.

  Args:
    layers: rows of one network; projections are left out.
  """
  norms = {
    r['layer']: r['grad_l2_first'] for r in layers if on_main_path(r['layer'])
  }
  inside = [norm for name, norm in norms.items() if name.startswith('across/')]
  return _ratio(np.median(inside), norms['classifier'])


def _ratio(a: float, b: float) -> float:
  """Of norms that may be zero or infinite."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(np.float64(a) / b)


def figure(rows: Sequence[Row], layers: Sequence[Row]) -> Any:
  """Loss, gradient at initialisation and compile time against depth.

  Args:
    rows: of depth.csv.
    layers: of depth_layers.csv.

  Returns:
    A matplotlib Figure; a cross at the upper edge is a value that is not
    finite, or zero.
  """
  drawn = plots.make_figure(10, 8)
  axes = drawn.subplots(2, 2).ravel()
  variants = list(dict.fromkeys(row['variant'] for row in rows))
  few = max(1, rows[0]['steps'] // 10)
  depths = sorted({row['convolutions'] for row in rows})
  # The depth of the paper's network, as near as there is one.
  reference = min(depths, key=lambda depth: abs(depth - 140))
  titles = (
    (f'Training loss, last {few} of {rows[0]["steps"]} steps', 'BCE (nats)'),
    ('Gradient of the centre at initialisation', "norm over the classifier's"),
    ('Most starved layer at initialisation', 'smallest norm over the median'),
    ('Compiling the training step', f'time over that at {reference}'),
  )
  for ax, (title, label) in zip(axes, titles, strict=True):
    ax.set_title(title)
    ax.set_ylabel(label)
    ax.set_xlabel('convolutions on the main path')
    ax.set_xscale('log')
    ax.set_xticks(depths, depths)
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
  for i, variant in enumerate(variants):
    own = sorted(
      (row for row in rows if row['variant'] == variant),
      key=lambda row: row['convolutions'],
    )
    x = [row['convolutions'] for row in own]
    groups = [
      [
        r
        for r in layers
        if (r['variant'], r['repetitions']) == (variant, row['repetitions'])
      ]
      for row in own
    ]
    compiled = {r['convolutions']: r['compile_cpu_seconds'] for r in own}
    for ax, y in zip(
      axes,
      (
        [row['loss_last'] for row in own],
        [centre(group) for group in groups],
        [starved(group) for group in groups],
        [
          seconds / compiled.get(reference, math.nan)
          for seconds in compiled.values()
        ],
      ),
      strict=True,
    ):
      _line(ax, x, y, i, variant)
  axes[0].axhline(
    rows[0]['constant_loss'], color='0.3', ls='--', label='constant prediction'
  )
  axes[0].plot([], [], 'x', color='0.3', ms=9, label='not finite')
  for ax in axes[1:3]:
    ax.set_yscale('log')
  for ax in axes:
    # Room for the crosses.
    ax.margins(y=0.2)
  axes[3].set_ylim(bottom=0)
  drawn.legend(
    *axes[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=len(variants) + 2,
  )
  drawn.suptitle(f'Depth and skips: {rows[0]["dataset"]}')
  return drawn


def _line(
  ax: Any,
  xs: Sequence[int],
  ys: Sequence[float],
  i: int,
  label: str,
) -> None:
  x, y, colour = np.asarray(xs), np.asarray(ys), plots.CYCLE[i]
  good = np.isfinite(y) & (y > 0)
  ax.plot(x[good], y[good], 'osD^'[i % 4] + '-', color=colour, label=label)
  # Of each variant at a height of its own, or one would hide the other.
  heights = np.full(np.sum(~good), 0.97 - 0.04 * i)
  ax.plot(
    x[~good],
    heights,
    'x',
    color=colour,
    ms=9,
    transform=ax.get_xaxis_transform(),
  )
