"""Training speed of a study's rows, measured in turns."""

from collections.abc import Callable
import pathlib
import statistics
from typing import Any

import jax

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.analysis.page import report
from skipnet_jax.benchmarking import plan as cells
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.timing import turns
from skipnet_jax.studies import plan

FILE = 'speed.json'


def measure(
  study: plan.Study, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
  """Times a training step of every row; each round times every row once.

  The step is that of `train` on one device, data augmentation included, with
  the config of the row's first run. The trained parameters are discarded.

  Args:
    study: from `plan.make`.
    rounds: timed steps of each row.
    say: called with each progress message.

  Returns:
    JSON values: the environment, and `rows` by label: first_call_s, error,
    batch, flops (of a step, by formula), seconds (of each round) and against
    (`turns.ratio` of these to the seconds of the study's first row).

  Raises:
    InputError: no round, or invalid data or an invalid network.
  """
  if rounds < 1:
    raise errors.InputError(f'rounds is {rounds}; it must be at least 1.')
  works = {}
  for name, config in study.runs.items():
    label = study.row_of[name]
    if label not in works:
      say(f'setting up: {label}')
      dtype, batch = config.model.dtype, config.train.batch_size
      cell = cells.Cell('train', 'augment', 'jit', 1, dtype, batch)
      works[label] = cell, workload.Bench(config).build(cell)
  steps = {label: _step(work) for label, (_, work) in works.items()}
  rows = turns.first_calls(steps, say=say)
  running = {name: steps[name] for name in steps if not rows[name]['error']}
  say(f'{rounds} rounds of {len(running)} training steps')
  timed = turns.take_turns(running, rounds=rounds)
  first = next(iter(study.rows))
  for label, (cell, work) in works.items():
    rows[label] |= {'batch': cell.batch, 'flops': work.flops}
    if label in timed:
      seconds = timed[label].seconds
      rows[label]['seconds'] = list(seconds)
      if first in timed:
        rows[label]['against'] = turns.ratio(seconds, timed[first].seconds)
  return {
    'command': environment.command(),
    'date': environment.now(),
    'git': environment.git_state(),
    'versions': environment.versions(('jax', 'jaxlib', 'flax', 'optax')),
    'device': jax.local_devices()[0].device_kind,
    'cpu_cores': environment.usable_cores(),
    'rounds': rounds,
    'rows': rows,
  }


def _step(work: workload.Work) -> Callable[[], Any]:
  step = None

  def call():
    nonlocal step
    if step is None:
      step = work.start(work.jitted.lower(*work.arguments).compile())
    return jax.block_until_ready(step())

  return call


def check(folder: pathlib.Path) -> None:
  """Checks that `write` replaces nothing but older measurements.

  Raises:
    InputError: there is another `speed.json`.
  """
  path = folder / FILE
  own = {'rounds', 'rows'} <= files.read_json(path).keys()
  remedy = 'it is no measurement of this tool; move it away'
  files.check_outputs([path], overwrite=own, remedy=remedy)


def write(folder: pathlib.Path, measured: dict[str, Any]) -> None:
  """Writes or replaces `speed.json` in the study's folder."""
  folder.mkdir(parents=True, exist_ok=True)
  files.write_json(folder / FILE, measured)


def table(measured: dict[str, Any]) -> report.Table:
  """Images per second of each row, also relative to the first row."""
  first = next(iter(measured['rows']))
  lines = []
  for label, row in measured['rows'].items():
    if row['error']:
      lines.append([label, f'failed: {row["error"]}', '-', '-', '-'])
      continue
    seconds, flops = statistics.median(row['seconds']), row['flops'] / 1e9
    relative = '-'
    if against := row.get('against'):
      # A ratio of images per second: above 1 is faster.
      images = row['batch'] / measured['rows'][first]['batch']
      middle, low, high = (
        images / against[name] for name in ('median', 'q75', 'q25')
      )
      relative = f'{middle:.3g} ({low:.3g} to {high:.3g})'
    rates = f'{row["batch"] / seconds:.3g}', relative, f'{flops / seconds:.3g}'
    lines.append([label, f'{flops:,.4g}', *rates])
  return report.Table(
    'Speed',
    'Training steps with data augmentation, measured in turns in '
    f'{measured["rounds"]} rounds on one {measured["device"]} with '
    f'{measured["cpu_cores"]} CPU cores. GFLOPs: of the kernels, by formula. '
    f"images/s: of the median step. over {first}'s: ratio of images/s in each "
    'round, median and quartiles. On a shared machine only the ratios are '
    'reliable.',
    ['row', 'GFLOPs a step', 'images/s', f"over {first}'s", 'GFLOP/s'],
    lines,
  )
