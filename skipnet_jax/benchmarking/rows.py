"""Measures the rows of a plan in this process."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import errors
from skipnet_jax.benchmarking import journal as journal_lib
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.timing import hardware
from skipnet_jax.benchmarking.timing import largest
from skipnet_jax.benchmarking.timing import measure
from skipnet_jax.benchmarking.timing import power
from skipnet_jax.benchmarking.timing import roofline
from skipnet_jax.training import processes

Say = Callable[[str], None]
# A program, compiled, and how that went.
_NOTHING = (None, None, None)


def measure_all(journal: journal_lib.Journal, say: Say) -> None:
  """Measures every row that the journal lacks, and writes it there.

  Joins the other processes first, where the config names several.

  Raises:
    InputError: a plan that cannot be carried out; before anything is compiled.
    RunError: what failed, for another reason than memory.
  """
  config = ml_collections.ConfigDict(journal.config)
  config, section = plan.split(config)
  processes.start(config.parallel)
  _Measuring(journal, config, section, say).run()


class _Measuring:
  def __init__(self, journal: journal_lib.Journal, config, section, say: Say):
    self._journal, self._section, self._say = journal, section, say
    devices = jax.devices()
    self._counts = plan.device_counts(
      section, len(devices), jax.process_count(), devices[0].platform
    )
    for call, dtype, batch in plan.groups(section):
      if batch:
        self._cells(call, dtype, batch, found=False)
    self._bench = workload.Bench(config)
    # The program of the cell before, which may be that of the next one.
    self._last: tuple[Any, Any, Any] = _NOTHING
    # Batch and predicted bytes of what was compiled while searching.
    self._points: list[tuple[int, float]] = []

  def _cells(self, call, dtype, batch, *, found: bool) -> list[plan.Cell]:
    return plan.cells(
      self._section, call, dtype, batch, self._counts, found=found
    )

  def run(self) -> None:
    journal = self._journal
    if not journal.about:
      self._describe()
    cells: dict[plan.Cell, None] = {}
    for call, dtype, batch in plan.groups(self._section):
      size = batch or self._largest(call, dtype)
      if size:
        found = not batch
        cells |= dict.fromkeys(self._cells(call, dtype, size, found=found))
    for i, cell in enumerate(cells, 1):
      if str(cell) not in journal.rows:
        self._say(f'[{i}/{len(cells)}] {cell}')
        journal.rows[str(cell)] = row = self._row(cell)
        journal.save()
        self._say(f'    {_line(row)}')

  def _describe(self) -> None:
    device = jax.local_devices()[0]
    rates = {}
    for dtype in self._section.dtypes:
      rates[dtype] = roofline.measure_rates(device, dtype)
      self._say(
        f'{device.device_kind}, {dtype}: copies {rates[dtype].copy_gb_s:.4g} '
        f'GB/s, multiplies {rates[dtype].matrix_tflops:.3g} TFLOP/s'
      )
    self._journal.about = {
      'software': hardware.software(),
      'hardware': hardware.hardware(),
      'workload': self._bench.describe(),
      'hosts': jax.process_count(),
      'rates': {k: dataclasses.asdict(v) for k, v in rates.items()},
    }
    self._journal.save()

  def _largest(self, call: str, dtype: str) -> int:
    """The largest batch of a group that fits on one device; 0 if none does."""
    group = f'{call} {dtype}'
    found = self._journal.largest
    if group not in found:
      first = plan.trial(self._section, call, dtype, 1)
      self._say(f'Looking for the largest batch of {first}')
      found[group], refused, why = self._search(first)
      # What did not fit is a row of the report too.
      failed = dataclasses.replace(first, batch=refused)
      self._journal.rows[str(failed)] = _failed(failed, why, found[group])
      self._journal.save()
    return found[group]

  def _search(self, cell, high: int | None = None) -> tuple[int, int, str]:
    """Largest batch, smallest that is refused, and why, in steps of devices."""
    n = cell.devices

    def named(count):
      return dataclasses.replace(cell, batch=count * n)

    def fits(count):
      why = self._try(named(count))
      verdict = f'refused: {why}' if why else 'fits'
      self._say(f'    batch {count * n} {verdict}')
      return not why

    self._points = []

    def expect():
      device = jax.local_devices()[0]
      room = largest.memory_limit(device)
      if device.platform == 'cpu':
        room /= n
      likely = largest.by_line(self._points, room)
      return likely and max(1, likely // n)

    low, high = largest.search(fits, 0, high and high // n, expect)
    why = self._journal.trials.get(f'try {named(high)}', '')
    return low * n, high * n, why

  def _try(self, cell: plan.Cell) -> str:
    """Why a cell does not fit; '' if it does."""
    journal, name = self._journal, f'try {cell}'
    if name not in journal.trials:
      journal.at = name
      journal.save()
      _, why = self._attempt(cell, trial=True)
      journal.trials[name], journal.at = why, None
      journal.save()
    return journal.trials[name]

  def _row(self, cell: plan.Cell) -> dict[str, Any]:
    journal, name = self._journal, str(cell)
    why = journal.trials.get(name, '')
    if not why:
      journal.at = name
      journal.save()
      row, why = self._attempt(cell, trial=False)
      journal.at = None
      if row is not None:
        return row
    fitting = 0
    if cell.batch > cell.devices:
      self._say(f'    {why}; looking for the largest batch that fits')
      fitting, _, _ = self._search(cell, cell.batch)
    return _failed(cell, why, fitting)

  def _attempt(
    self, cell: plan.Cell, *, trial: bool
  ) -> tuple[dict[str, Any] | None, str]:
    """What a cell gives, or why it ran out of memory."""
    try:
      return self._measure(cell, trial)
    except jax.errors.JaxRuntimeError as e:
      why = largest.exhausted(e)
      # Of several processes, the others wait for this one's part.
      if not why or jax.process_count() > 1:
        raise errors.RunError(f'{cell} failed: {str(e).strip()}') from e
    self._last = _NOTHING
    return None, why

  def _measure(self, cell, trial: bool) -> tuple[dict[str, Any] | None, str]:
    work = self._bench.build(cell)
    before = hardware.peak_bytes(work.devices)
    compiled, compilation = self._compile(work, trial)
    predicted = compilation['predicted_bytes']
    if trial and predicted:
      self._points.append((cell.batch, predicted))
    why = largest.shortage(predicted, len(work.devices), work.devices[0])
    if why:
      return None, why
    call = work.start(compiled)
    if trial:
      jax.block_until_ready(call())
      return None, ''
    for _ in range(self._section.warmup):
      jax.block_until_ready(call())
    with power.Meter(work.devices) as meter:
      timing = measure.time_calls(
        call, warmup=0, repetitions=self._section.repetitions
      )
    peak = hardware.peak_bytes(work.devices)
    return {
      'cell': dataclasses.asdict(cell),
      'error': None,
      'warmup': self._section.warmup,
      'seconds': [s / work.steps for s in timing.seconds],
      'compile': compilation,
      'runs': work.runs,
      'flops': work.flops,
      'moved': work.moved,
      # The devices only tell the most so far: another row's if it did not rise.
      'peak_bytes': peak if (peak or 0) > (before or 0) else None,
      'watts': meter.watts,
    }, ''

  def _compile(self, work: workload.Work, trial: bool) -> tuple[Any, Any]:
    """What was compiled, and how that went as JSON values."""
    if trial:
      compiled, found = measure.compile_phases(work.jitted, *work.arguments)
      return compiled, found.to_dict()
    program, compiled, described = self._last
    if program != work.program:
      # Of the program before, nothing is kept while this one is compiled.
      self._last, compiled = _NOTHING, None
      folder = None
      if self._journal.cache:
        name = ' '.join(map(str, work.program))
        folder = str(pathlib.Path(self._journal.cache, name))
      if folder is None or self._journal.first:
        compiled, found = measure.compile_cold_and_warm(
          work.jitted, *work.arguments, folder=folder
        )
      else:
        compiled, found = measure.compile_cached(
          work.jitted, *work.arguments, folder=folder
        )
      described = found.to_dict()
      self._last = (work.program, compiled, described)
    return compiled, described


def _failed(cell: plan.Cell, why: str, fitting: int) -> dict[str, Any]:
  fits = f'the largest that fits is {fitting}' if fitting else 'no smaller fits'
  return {
    'cell': dataclasses.asdict(cell),
    'error': f'Batch {cell.batch} does not fit: {why}; {fits}.',
  }


def _line(row: dict[str, Any]) -> str:
  if row['error'] is not None:
    return row['error']
  p50 = np.median(row['seconds'])
  rate = row['cell']['batch'] / np.mean(row['seconds'])
  spent = row['compile']['compile_s']
  return (
    f'{p50 * 1e3:.4g} ms (median of {len(row["seconds"])}), {rate:.4g} images/s'
    f', compiled in {spent:.3g} s'
  )
