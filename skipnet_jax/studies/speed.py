"""How fast the rows of a study train, measured in one run, in turns."""

from collections.abc import Callable
import json
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
Measured = dict[str, Any]


def measure(
  study: plan.Study, rounds: int, say: Callable[[str], None]
) -> Measured:
  """Times a training step of every row, one row after the other in each round.

  The step that `train` runs, its batch drawn and augmented inside, on one
  device; the config of the row's first run. Nothing is kept of what it learns.

  Args:
    study: from `plan.make`.
    rounds: timed steps of each row.
    say: told of progress.

  Returns:
    What was measured and by what; `rows`: of each row first_call_s, error,
    batch, flops (of a step, by formula), seconds (of each round) and against,
    the time over that of the study's first row, round by round.

  Raises:
    InputError: no round, or data or a network that cannot be used.
  """
  if rounds < 1:
    raise errors.InputError(f'rounds is {rounds}; it must be at least 1.')
  works = {}
  for name, config in study.runs.items():
    label = study.row_of[name]
    if label not in works:
      say(f'setting up: {label}')
      cell = cells.Cell(
        'train',
        'augment',
        'jit',
        1,
        config.model.dtype,
        config.train.batch_size,
      )
      works[label] = cell, workload.Bench(config).build(cell)
  steps = {label: _step(work) for label, (_, work) in works.items()}
  rows = turns.first_calls(steps, say=say)
  racing = {label: steps[label] for label in steps if not rows[label]['error']}
  say(f'{rounds} rounds of {len(racing)} training steps')
  timed = turns.take_turns(racing, rounds=rounds)
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
  held: list[Callable[[], Any]] = []

  def call():
    if not held:
      held.append(work.start(work.jitted.lower(*work.arguments).compile()))
    return jax.block_until_ready(held[0]())

  return call


def keep(folder: pathlib.Path, measured: Measured) -> None:
  """Writes `speed.json` into the study's folder, over an older one."""
  folder.mkdir(parents=True, exist_ok=True)
  files.write_json(folder / FILE, measured)


def kept(folder: pathlib.Path) -> Measured | None:
  """What `keep` wrote there; None where nothing was measured."""
  path = folder / FILE
  return json.loads(path.read_text()) if path.exists() else None


def table(measured: Measured) -> report.Table:
  """A line a row: images per second, and how many times the first row's."""
  first = next(iter(measured['rows']))
  lines = []
  for label, row in measured['rows'].items():
    if row['error']:
      lines.append([label, f'failed: {row["error"]}', '-', '-', '-'])
      continue
    median = statistics.median(row['seconds'])
    over = '-'
    if against := row.get('against'):
      # Of images, not of seconds: what is fast is above 1.
      images = row['batch'] / measured['rows'][first]['batch']
      middle, low, high = (
        images / against[name] for name in ('median', 'q75', 'q25')
      )
      over = f'{middle:.3g} ({low:.3g} to {high:.3g})'
    flops = row['flops'] / 1e9
    lines.append(
      [
        label,
        f'{flops:,.4g}',
        f'{row["batch"] / median:.3g}',
        over,
        f'{flops / median:.3g}',
      ]
    )
  return report.Table(
    'Speed',
    f'A training step of each row in turns, {measured["rounds"]} rounds, its '
    f'batch drawn and augmented inside; one {measured["device"]}, '
    f'{measured["cpu_cores"]} CPU cores. GFLOPs of the kernels by formula; '
    f"images/s by the median; those over {first}'s round by round, median and "
    'quartiles. On a shared machine only the ratios mean something.',
    ['row', 'GFLOPs a step', 'images/s', f"over {first}'s", 'GFLOP/s'],
    lines,
  )
