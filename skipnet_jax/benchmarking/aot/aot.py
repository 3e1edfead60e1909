"""Predicts a training step on a TPU slice that is not there.

libtpu compiles the sharded step for a topology ahead of time, on a Linux
machine with a CPU alone: nothing is executed. What the compiler counts and what
the vendor publishes give bounds, and every figure is a prediction.
"""

from collections.abc import Callable
import dataclasses
import textwrap
from typing import Any

import ml_collections

from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import tables
from skipnet_jax.benchmarking.aot import bounds
from skipnet_jax.benchmarking.aot import slices
from skipnet_jax.benchmarking.aot import tpu_step
from skipnet_jax.benchmarking.timing import hardware
from skipnet_jax.data import isbi2012
from skipnet_jax.data import sources

# Compilations, of minutes each, beside the one of the batch asked for.
SEARCH = 2
# What the next guess must promise over what fits, to be worth minutes.
_WORTH = 1.1
# Of its memory, what a device leaves to a program: v5e 15.75 of 16 GiB.
_USABLE = 0.98

Say = Callable[[str], None]


def predict(
  config: ml_collections.ConfigDict, topology: str, *, say: Say
) -> dict[str, Any]:
  """Compiles the training step for a slice and says what it must cost.

  The step is the one that `train` runs, given a batch that lies on the devices:
  `config.train.batch_size` images divided among them, parameters and optimizer
  state on each. Then other batches are compiled, to find the largest that fits.

  Args:
    config: a validated config.
    topology: see `slices.parse_topology`.
    say: given a line after each compilation, which takes minutes.

  Returns:
    JSON values: `identity`, `software`, `host` (which compiled), `topology`
    (with its device's published figures), `workload`; `rows`: the batch asked
    for and the largest that fits, see `tpu_step.Step.compile`; `search`:
    `attempts` (batch_per_device, compile_s, peak_bytes, error),
    `largest_per_device` and `too_large_per_device` (None: not met),
    see `search`;
    `weak_scaling` of the last row, see `bounds.weak_scaling`.

  Raises:
    InputError: an unknown topology, no libtpu, a batch that the devices do not
      divide, a network or image that cannot be used.
  """
  known = slices.parse_topology(topology)
  batch = config.train.batch_size
  if batch % known.devices:
    raise errors.InputError(
      f'train.batch_size is {batch}, which the {known.devices} devices of '
      f'{topology} do not divide: give a multiple of {known.devices}.'
    )
  step = tpu_step.Step(
    config, _window(config), slices.devices(known), _steps_per_epoch(config)
  )
  identity = {
    'experiment': config.experiment,
    'config_hash': config_identity.hash_of(config),
    'config': config_identity.to_flat(config),
    'git': environment.git_state(),
    'command': environment.command(),
    'date': environment.now(),
  }
  seen = hardware.hardware()
  host = {n: seen[n] for n in ('cpu', 'cores', 'memory_bytes', 'load_average')}
  rows: dict[int, dict[str, Any]] = {}

  def fits(per_device: int) -> bool:
    rows[per_device] = row = step.compile(per_device)
    say(_line(row))
    return row['error'] is None

  asked = batch // known.devices

  def guess() -> int:
    held = [(b, row['memory']['peak']) for b, row in rows.items()]
    # A line through the last two, at first through nothing but the state.
    (low, less), (high, more) = [
      (0, rows[asked]['memory']['arguments']),
      *held,
    ][-2:]
    room = _USABLE * step.peak.memory_gib * 2**30 - more
    return high + int(room * (high - low) / max(1, more - less))

  largest, too_large = search(fits, asked, guess, SEARCH)
  shown = [rows[b] for b in dict.fromkeys((asked, largest)) if b]
  return {
    'what': 'predictions: compiled ahead of time, nothing executed',
    'identity': identity,
    'software': hardware.software(),
    'host': host,
    'topology': {
      'name': known.name,
      'devices': known.devices,
      'device_kind': step.kind,
      'peak': dataclasses.asdict(step.peak),
    },
    'workload': step.describe(),
    'rows': shown,
    'search': {
      'attempts': [_attempt(row) for row in rows.values()],
      'largest_per_device': largest or None,
      'too_large_per_device': too_large,
    },
    'weak_scaling': bounds.weak_scaling(
      rows[largest]['floors'], rows[largest]['collectives'], largest, step.peak
    )
    if largest
    else [],
  }


def search(
  fits: Callable[[int], bool],
  start: int,
  guess: Callable[[], int],
  attempts: int,
) -> tuple[int, int | None]:
  """The largest number that fits: by guesses, then by bisection.

  Args:
    fits: tried on `start`, then at most `attempts` times.
    start: at least 1.
    guess: of the largest, asked while all that was tried fits; one that is
      less than a tenth above what fits ends the search.
    attempts: at least 0.

  Returns:
    The largest number that was seen to fit (0: none), and the smallest that was
    seen not to (None: none).
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
  """Sides of a training image; the data themselves are not needed."""
  side = config.data.crop or config.data.size
  if side:
    return side, side
  if config.data.source == 'stack' or config.data.source.startswith('tfds:'):
    raise errors.InputError(
      f'data.source is {config.data.source!r} and data.size is 0: the '
      'prediction reads no data, so give the side as data.size or data.crop.'
    )
  return isbi2012.SHAPE[1:]


def _steps_per_epoch(config: ml_collections.ConfigDict) -> int:
  """Those of the run; 1 where the data alone could tell."""
  source = config.data.source
  if source == 'stack' or source.startswith('tfds:'):
    return 1
  count = config.data.slices if source == 'synthetic' else isbi2012.SHAPE[0]
  train, _ = sources.split(
    config.data.train, config.data.valid, count, config.seed
  )
  return max(1, len(train) // config.train.batch_size)


def _attempt(row: dict[str, Any]) -> dict[str, Any]:
  fits = row['error'] is None
  return {
    'batch_per_device': row['batch_per_device'],
    'compile_s': row['compile']['compile_s'] if fits else None,
    'peak_bytes': row['memory']['peak'] if fits else None,
    'error': row['error'],
  }


def _line(row: dict[str, Any]) -> str:
  head = f'{row["batch_per_device"]} images on each device'
  if row['error'] is not None:
    return f'{head}: does not fit ({row["error"]})'
  return (
    f'{head}: compiled in {row["compile"]["compile_s"]:.0f} s, '
    f'{row["memory"]["peak"] / 2**30:.2f} GiB'
  )


def format_table(report: dict[str, Any]) -> str:
  """A report of `predict` as text, in 100 columns."""
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
      lines.append(tables.line([label, *map(cell, rows)], widths, ''))
    lines += [
      'XLA counts bytes that stay in on-chip memory too: so does the memory '
      'floor.',
      '',
    ]
  for attempt in found['attempts']:
    if attempt['error']:
      lines += textwrap.wrap(
        f'{attempt["batch_per_device"]} images on each device do not fit: '
        f'{attempt["error"]}',
        100,
        subsequent_indent='  ',
      )
  largest = found['largest_per_device']
  limit = found['too_large_per_device']
  lines.append(
    f'{len(found["attempts"])} compilations: '
    + (f'{largest} images on each device fit' if largest else 'no batch fits')
    + (f', {limit} do not' if limit else '')
  )
  if report['weak_scaling']:
    lines += [
      '',
      f'predicted weak scaling, {largest} images on each device, nothing sent '
      'while computing:',
    ]
    cells = [['devices', 'collectives, ms', 'efficiency', 'images/s']]
    cells += [
      [
        str(row['devices']),
        f'{1e3 * row["collective_s"]:.3f}',
        f'{row["efficiency"]:.4f}',
        f'{row["images_per_second"]:.1f}',
      ]
      for row in report['weak_scaling']
    ]
    lines += [tables.line(row, (8, 18, 12, 12), '') for row in cells]
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


_CELLS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
  ('images on each device', lambda row: str(row['batch_per_device'])),
  ('compile, s', _scaled('compile', 'compile_s', by=1)),
  ('model GFLOPs, by formula', _scaled('model_flops', by=1e9)),
  ('HLO GFLOPs', _scaled('hlo_flops', by=1e9)),
  ('HLO GB read and written', _scaled('hlo_bytes', by=1e9)),
  ('peak memory, GiB', _scaled('memory', 'peak', by=2**30)),
  ('  of it arguments', _scaled('memory', 'arguments', by=2**30)),
  ('  of it temporaries', _scaled('memory', 'temporaries', by=2**30)),
  ('collectives, count / MB', _collectives),
  ('compute floor, ms', _scaled('floors', 'compute_s', by=1e-3)),
  ('memory floor, ms', _scaled('floors', 'memory_s', by=1e-3)),
  ('collective floor, ms', _scaled('floors', 'collective_s', by=1e-3)),
  ('floor of a step, ms', _scaled('floors', 'step_s', by=1e-3)),
  ('  bound by', lambda row: row['floors']['bound']),
  ('MFU in that floor', _scaled('mfu_limit', by=1)),
)
