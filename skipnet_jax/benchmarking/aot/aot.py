"""Predicts a training step on TPUs or GPUs, none of which is needed.

libtpu, or XLA's plugin for CUDA, compiles the sharded step ahead of time, on a
Linux machine with a CPU only; nothing is executed. The counts of the compiled
program and the published rates give bounds: every figure is a prediction. For a
GPU, nothing is autotuned either: on a real one, XLA times several kernels for
some products and takes the fastest.
"""

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any

import ml_collections

from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import tables
from skipnet_jax.benchmarking.aot import bounds
from skipnet_jax.benchmarking.aot import sharded_step
from skipnet_jax.benchmarking.aot import slices
from skipnet_jax.benchmarking.hlo import kernels
from skipnet_jax.benchmarking.hlo import profiling
from skipnet_jax.benchmarking.hlo import program as program_lib
from skipnet_jax.benchmarking.timing import hardware
from skipnet_jax.benchmarking.timing import largest as largest_lib
from skipnet_jax.data import isbi2012
from skipnet_jax.data import pipeline
from skipnet_jax.data import slice_split

# Compilations that search for the largest batch; each takes minutes.
SEARCH = 2
# Share of a GPU's memory that JAX uses unless it is told otherwise.
_GPU_SHARE = 0.75
# A guess is tried only if it exceeds what fits by this factor.
_WORTH = 1.1


def predict(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  say: Callable[[str], None],
  folder: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Compiles the training step for TPUs or GPUs and predicts its least time.

  The step is the one that `train` runs, with its batch on the devices:
  `config.train.batch_size` images are divided among them, and each has
  parameters and optimizer state. Then it compiles other batches, to find the
  largest that fits.

  Args:
    config: a validated config.
    topology: see `slices.chips`.
    say: receives a line after each compilation, which takes minutes.
    folder: is made if it is not there; gets `program.hlo.txt`, the program of
      the config's batch, and `kernels.csv`, a row for each of its kernels. Then
      no larger batch is searched for.

  Returns:
    JSON values: `identity`, `software`, `host` (which compiled), `topology`
    (with the published figures of its devices), `workload`; `rows`: the
    config's batch and the largest that fits, see `sharded_step.Step.compile`;
    `search`: `attempts` (batch_per_device, compile_s, peak_bytes, error),
    `largest_per_device` and `too_large_per_device` (None if no batch was), see
    `search`; `weak_scaling` of the last row, see `bounds.weak_scaling`.

  Raises:
    InputError: an unknown topology, no compiler for it, a batch that the
      devices do not divide, a network or image that cannot be used.
  """
  chips = slices.chips(topology)
  batch = config.train.batch_size
  if batch % chips:
    raise errors.InputError(
      f'train.batch_size is {batch}, which cannot be divided among the {chips} '
      f'devices of {topology}: give a multiple of {chips}.'
    )
  step = sharded_step.Step(
    config, _window(config), slices.devices(topology), _steps_per_epoch(config)
  )
  identity = {
    'experiment': config.experiment,
    'config_hash': config_identity.hash_of(config),
    'config': config_identity.to_flat(config),
    'git': environment.git_state(),
    'command': environment.command(),
    'date': environment.now(),
  }
  machine = hardware.hardware()
  host = ('cpu', 'cores', 'memory_bytes', 'load_average')
  rows: dict[int, dict[str, Any]] = {}

  def fits(per_device: int) -> bool:
    rows[per_device] = row = step.compile(per_device)
    if row['error']:
      result = f'does not fit ({row["error"]})'
    else:
      result = (
        f'compiled in {row["compile"]["compile_s"]:.0f} s, '
        f'{row["memory"]["peak"] / 2**30:.2f} GiB'
      )
    say(f'{per_device} images on each device: {result}')
    return row['error'] is None

  asked = batch // chips

  def guess() -> int:
    # A line through the last two points; at first, through the state alone.
    points = [(0, rows[asked]['memory']['arguments'])]
    points += [(b, row['memory']['peak']) for b, row in rows.items()]
    limit = sharded_step.USABLE * step.peak.memory_gib * 2**30
    return largest_lib.extrapolate(points, limit) or 0

  largest, too_large = search(fits, asked, guess, 0 if folder else SEARCH)
  if folder:
    folder.mkdir(parents=True, exist_ok=True)
  if folder and largest:
    (folder / 'program.hlo.txt').write_text(step.hlo)
    program = program_lib.Program(step.hlo)
    profiling.write_csv(folder / 'kernels.csv', kernels.table(program))
  return {
    'what': 'predictions: compiled ahead of time, nothing executed'
    + (', nothing autotuned' if step.gpu else ''),
    'identity': identity,
    'software': hardware.software(),
    'host': {name: machine[name] for name in host},
    'topology': {
      'name': topology,
      'devices': chips,
      'device_kind': step.kind,
      'peak': dataclasses.asdict(step.peak),
    },
    'workload': step.describe(),
    'rows': [rows[b] for b in dict.fromkeys((asked, largest)) if b],
    'search': {
      'attempts': [
        {
          'batch_per_device': per_device,
          'compile_s': row['compile'] and row['compile']['compile_s'],
          'peak_bytes': row['memory'] and row['memory']['peak'],
          'error': row['error'],
        }
        for per_device, row in rows.items()
      ],
      'largest_per_device': largest or None,
      'too_large_per_device': too_large,
    },
    'weak_scaling': bounds.weak_scaling(
      rows[largest]['floors'],
      rows[largest]['collectives'],
      largest,
      step.peak,
      chips,
      step.linked,
    )
    # The program of one device does not say what several would send.
    if largest and chips > 1
    else [],
  }


def search(
  fits: Callable[[int], bool],
  start: int,
  guess: Callable[[], int],
  attempts: int,
) -> tuple[int, int | None]:
  """Finds the largest number that fits, by guesses and then by bisection.

  Args:
    fits: called with `start`, and then at most `attempts` times.
    start: at least 1.
    guess: guesses the result, as long as every number that was tried fits. A
      guess that is less than a tenth above what fits ends the search.
    attempts: at least 0.

  Returns:
    The largest number that fitted (0: none did), and the smallest that did not
    (None: all did).
  """
  low, high = (start, None) if fits(start) else (0, start)
  while attempts and (high is None or high - low > 1):
    if high is not None:
      trial = (low + high) // 2
    elif (trial := guess()) < _WORTH * low:
      break
    if fits(trial):
      low = trial
    else:
      high = trial
    attempts -= 1
  return low, high


def _window(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Sides of a training image; reads no data."""
  side = config.data.crop or config.data.size
  if side:
    return side, side
  if config.data.source == 'stack' or config.data.source.startswith('tfds:'):
    raise errors.InputError(
      f'data.source is {config.data.source!r} and data.size is 0, but a '
      'prediction reads no data: give the side as data.size or data.crop.'
    )
  return isbi2012.SHAPE[1:]


def _steps_per_epoch(config: ml_collections.ConfigDict) -> int:
  """Batches in an epoch of the run; 1 where only the data could tell."""
  source = config.data.source
  if asked := config.train.steps_per_epoch:
    return asked
  if source == 'stack' or source.startswith('tfds:'):
    return 1
  count = config.data.slices if source == 'synthetic' else isbi2012.SHAPE[0]
  train, _ = slice_split.split(
    config.data.train, config.data.valid, count, config.seed
  )
  return pipeline.one_pass(len(train), config.train.batch_size)


def format_table(report: dict[str, Any]) -> str:
  """A report of `predict` as text, in at most 100 columns."""
  place, work = report['topology'], report['workload']
  peak, found = place['peak'], report['search']
  link = peak['link_gb_s']
  lines = [
    f'{place["name"]}, {place["devices"]} x {place["device_kind"]}: '
    f'{report["what"]}',
    f'{work["model"]}, {work["convolutions"]} convolutions, '
    f'{work["parameters"]:,} parameters, {work["dtype"]}, '
    f'{work["image_size"][0]}x{work["image_size"][1]}, {work["optimizer"]}',
    f'published: {peak["bf16_tflops"]:g} TFLOP/s in bfloat16, '
    f'{peak["bandwidth_gb_s"]:g} GB/s, {peak["memory_gib"]:g} GiB, links '
    f'{f"{link:g} GB/s" if link else "unknown"}',
    f'  ({peak["source"]})',
    '',
  ]
  rows = [row for row in report['rows'] if row['error'] is None]
  if rows:
    lines.append('of one device:')
    widths = [-40, *[20] * len(rows)]
    for label, cell in _CELLS:
      on_chip = [
        r['kernels']['bytes'] > r['kernels']['hbm_bytes'] for r in rows
      ]
      if label == _IN_HBM and not any(on_chip):
        continue
      lines.append(tables.line([label, *map(cell, rows)], widths, ''))
    if any(row['hlo_bytes'] for row in rows):
      lines += tables.paragraph(
        'HLO GB include what stays in on-chip memory. The memory floor is that '
        "of the kernels' bytes in HBM."
      )
    gpu = any(row['floors']['launch_s'] for row in rows)
    if gpu:
      lines += tables.paragraph(
        'The compute floor is that of the FLOPs by formula, the memory floor '
        "that of the kernels' bytes; a launch is assumed to take at least "
        f'{1e6 * bounds.LAUNCH_S:g} microseconds. One after the other, each '
        'kernel takes the longer of a launch and its bytes.'
      )
    needed = max(row['memory']['peak'] for row in rows) / 2**30
    if gpu and needed > _GPU_SHARE * peak['memory_gib']:
      lines += tables.paragraph(
        f'By default JAX uses {_GPU_SHARE:.0%} of the memory of a GPU: for '
        f'{needed:.2f} GiB, set XLA_PYTHON_CLIENT_MEM_FRACTION to at least '
        f'{math.ceil(100 * needed / peak["memory_gib"]) / 100:.2f}.'
      )
    lines += [
      '',
      f'kernels of a step of {rows[0]["batch_per_device"]} images on each '
      'device, by their shapes and names in the compiled program:',
      *kernels.format_count(rows[0]['kernels']),
      '',
    ]
  for attempt in found['attempts']:
    if attempt['error']:
      lines += tables.paragraph(
        f'{attempt["batch_per_device"]} images on each device do not fit: '
        f'{attempt["error"]}',
        2,
      )
  largest = found['largest_per_device']
  limit = found['too_large_per_device']
  tries = len(found['attempts'])
  lines.append(
    f'{tries} compilation{"s" * (tries > 1)}: '
    + (f'{largest} images on each device fit' if largest else 'no batch fits')
    + (f', {limit} do not' if limit else '')
  )
  if report['weak_scaling']:
    lines += [
      '',
      f'bound of weak scaling, {largest} images on each device, if '
      'communication does not overlap computation:',
    ]
    cells = [['devices', 'collectives, ms', 'efficiency', 'images/s at most']]
    cells += [
      [
        str(row['devices']),
        f'{1e3 * row["collective_s"]:.3f}',
        f'{row["efficiency"]:.4f}',
        f'{row["images_per_second"]:.1f}',
      ]
      for row in report['weak_scaling']
    ]
    lines += [tables.line(row, (8, 18, 12, 17), '') for row in cells]
  return '\n'.join(lines)


def _scaled(*path: str, by: float) -> Callable[[dict[str, Any]], str]:
  def cell(row):
    for name in path:
      row = row[name]
    return 'unknown' if row is None else f'{row / by:,.3f}'

  return cell


def _collectives(row: dict[str, Any]) -> str:
  count = sum(entry['count'] for entry in row['collectives'].values())
  moved = sum(entry['bytes'] for entry in row['collectives'].values())
  return f'{count} / {moved / 1e6:,.2f}'


_IN_HBM = '  of it in HBM, not on the chip'
_CELLS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
  ('images on each device', lambda row: str(row['batch_per_device'])),
  ('compile, s', _scaled('compile', 'compile_s', by=1)),
  ('model GFLOPs, by formula', _scaled('model_flops', by=1e9)),
  ('HLO GFLOPs', _scaled('hlo_flops', by=1e9)),
  ('HLO GB read and written', _scaled('hlo_bytes', by=1e9)),
  ('kernels', lambda row: f'{row["kernels"]["kernels"]:,}'),
  (
    f'  below {kernels.SMALL // 10**6} MB',
    lambda row: f'{row["kernels"]["small"]:,}',
  ),
  (
    "GB of the kernels' operands and results",
    _scaled('kernels', 'bytes', by=1e9),
  ),
  (_IN_HBM, _scaled('kernels', 'hbm_bytes', by=1e9)),
  ('fewest GB, by formula', _scaled('min_bytes', by=1e9)),
  (
    "  HBM's bytes over them",
    lambda row: f'{row["kernels"]["hbm_bytes"] / row["min_bytes"]:.2f}',
  ),
  ('peak memory, GiB', _scaled('memory', 'peak', by=2**30)),
  ('  of it arguments', _scaled('memory', 'arguments', by=2**30)),
  ('  of it temporaries', _scaled('memory', 'temporaries', by=2**30)),
  ('collectives, count / MB', _collectives),
  ('compute floor, ms', _scaled('floors', 'compute_s', by=1e-3)),
  ('memory floor, ms', _scaled('floors', 'memory_s', by=1e-3)),
  ('collective floor, ms', _scaled('floors', 'collective_s', by=1e-3)),
  ('launch floor, ms', _scaled('floors', 'launch_s', by=1e-3)),
  ('kernels one after the other, ms', _scaled('kernels_s', by=1e-3)),
  ('floor of a step, ms', _scaled('floors', 'step_s', by=1e-3)),
  ('  bound by', lambda row: row['floors']['bound']),
  ('MFU in that floor', _scaled('mfu_limit', by=1)),
)
