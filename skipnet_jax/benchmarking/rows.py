"""Measures the rows of a plan in this process."""

from collections.abc import Callable
import dataclasses
import functools
import math
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
from skipnet_jax.benchmarking.timing import nvml
from skipnet_jax.benchmarking.timing import roofline
from skipnet_jax.training import processes

Say = Callable[[str], None]
_NOTHING = (None, None, None)
# Energy counters are slow: they count for this many seconds.
_ENERGY_S = 2.0


def measure_all(journal: journal_lib.Journal, say: Say) -> None:
  """Measures every row that the journal lacks, and adds it to the journal.

  If the config names several processes, it waits for them first.

  Raises:
    InputError: a plan that cannot be carried out; before anything is compiled.
    RunError: a failure other than running out of memory.
  """
  config = ml_collections.ConfigDict(journal.config)
  config, section = plan.split(config)
  processes.start(config.parallel)
  with jax.default_matmul_precision(section.matmul_precision):
    _Rows(journal, config, section, say).measure_all()


class _Rows:
  def __init__(self, journal: journal_lib.Journal, config, section, say: Say):
    self._journal, self._section, self._say = journal, section, say
    devices = jax.devices()
    counts = plan.device_counts(
      section, len(devices), jax.process_count(), devices[0].platform
    )
    self._cells = functools.partial(plan.cells, section, counts=counts)
    # Checks the batches before anything is read or compiled.
    self._sizes = {
      cell.batch
      for call, dtype, batch in plan.groups(section)
      if batch
      for cell in self._cells(call, dtype, batch, searched=False)
    }
    self._bench = workload.Bench(config)
    # `Work.program` of the last program and what `_compile` returned for it:
    # the next cell may share it.
    self._last: tuple[Any, Any, Any] = _NOTHING
    # Batch and predicted bytes of each program compiled in the current search.
    self._points: list[tuple[int, float]] = []

  def measure_all(self) -> None:
    journal = self._journal
    self._bench.check_memory(sorted(self._sizes))
    if not journal.about:
      self._describe()
    cells: dict[plan.Cell, None] = {}
    for call, dtype, batch in plan.groups(self._section):
      size = batch or self._largest(call, dtype)
      if size:
        rows = self._cells(call, dtype, size, searched=not batch)
        cells |= dict.fromkeys(rows)
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
      rates[dtype] = best = roofline.measure_rates(device, dtype)
      self._say(
        f'{device.device_kind}, {dtype}: copies {best["copy_gb_s"]:.4g} GB/s, '
        f'multiplies {best["matrix_tflops"]:.3g} TFLOP/s'
      )
    self._journal.about = {
      'software': hardware.software(),
      'hardware': hardware.hardware(),
      'workload': self._bench.describe(),
      'hosts': jax.process_count(),
      'rates': rates,
    }
    self._journal.save()

  def _largest(self, call: str, dtype: str) -> int:
    """The largest batch of a group that fits on one device; 0 if none does."""
    group = f'{call} {dtype}'
    largest_batches = self._journal.largest
    if group not in largest_batches:
      first = plan.trial(self._section, call, dtype)
      self._say(f'Searching for the largest batch from {first}')
      batch, refused, why = self._search(first)
      largest_batches[group] = batch
      # The batch that did not fit becomes a row of the report too.
      failed = dataclasses.replace(first, batch=refused)
      self._journal.rows[str(failed)] = _failed(failed, why, batch)
      self._journal.save()
    return largest_batches[group]

  def _search(self, cell, high: int | None = None) -> tuple[int, int, str]:
    """The largest batch that fits, the smallest that does not, and why not.

    Tries multiples of the cell's devices, below `high` if it is given.
    """
    n = cell.devices
    self._points = []

    def with_batch(per_device):
      return dataclasses.replace(cell, batch=per_device * n)

    def fits(per_device):
      why = self._try(with_batch(per_device))
      verdict = f'does not fit: {why}' if why else 'fits'
      self._say(f'    batch {per_device * n} {verdict}')
      return not why

    def expect():
      device = jax.local_devices()[0]
      room = largest.memory_limit(device)
      if device.platform == 'cpu':
        room /= n
      batch = largest.extrapolate(self._points, room)
      return batch and max(1, batch // n)

    low, high = largest.search(fits, high and high // n, expect)
    why = self._journal.trials.get(f'try {with_batch(high)}', '')
    return low * n, high * n, why

  def _try(self, cell: plan.Cell) -> str:
    """Why a cell does not fit; '' if it does."""
    trials, name = self._journal.trials, f'try {cell}'
    if name not in trials:
      _, trials[name] = self._attempt(name, cell, trial=True)
      self._journal.save()
    return trials[name]

  def _row(self, cell: plan.Cell) -> dict[str, Any]:
    name = str(cell)
    why = self._journal.trials.get(name, '')
    if not why:
      row, why = self._attempt(name, cell, trial=False)
      if row is not None:
        return row
    batch = 0
    if cell.batch > cell.devices:
      self._say(f'    {why}; searching for the largest batch that fits')
      batch, _, _ = self._search(cell, cell.batch)
    return _failed(cell, why, batch)

  def _attempt(
    self, name: str, cell: plan.Cell, *, trial: bool
  ) -> tuple[dict[str, Any] | None, str]:
    """What `_measure` returns, also if memory runs out while it measures."""
    self._journal.current = name
    self._journal.save()
    try:
      return self._measure(cell, trial)
    except jax.errors.JaxRuntimeError as e:
      why = largest.out_of_memory(e)
      # If there are several processes, the others wait for this one's part.
      if not why or jax.process_count() > 1:
        raise errors.RunError(f'{cell} failed: {str(e).strip()}') from e
      self._last = _NOTHING
      return None, why
    finally:
      self._journal.current = None

  def _measure(self, cell, trial: bool) -> tuple[dict[str, Any] | None, str]:
    """The row of a cell (None if only tried); why it does not fit, or ''."""
    work = self._bench.build(cell)
    devices = jax.local_devices()[: cell.devices]
    before = hardware.peak_bytes(devices)
    compiled, compilation = self._compile(work, trial)
    predicted = compilation['predicted_bytes']
    if trial and predicted:
      self._points.append((cell.batch, predicted))
    why = largest.shortage(predicted, devices)
    if why:
      return None, why
    call = work.start(compiled)
    if trial:
      jax.block_until_ready(call())
      return None, ''
    for _ in range(self._section.warmup):
      jax.block_until_ready(call())
    timing = measure.time_calls(
      call, warmup=0, repetitions=self._section.repetitions
    )
    calls = self._section.repetitions
    meter = nvml.Meter(devices)
    # Several hosts must agree on the number of calls.
    if meter.readable and jax.process_count() == 1:
      calls = max(calls, math.ceil(_ENERGY_S / min(timing.seconds)))
    with meter:
      blocked = measure.time_blocked(call, calls=calls)
    batches = calls * work.steps
    loss = None
    if work.loss:
      value = work.loss(blocked.result)
      if not math.isfinite(value):
        workload.refuse_nonfinite(blocked.result)
      done = (self._section.warmup + self._section.repetitions) * work.steps
      loss = {'steps': done + batches, 'value': value}
    peak = hardware.peak_bytes(devices)
    return {
      'cell': dataclasses.asdict(cell),
      'error': None,
      'warmup': self._section.warmup,
      'seconds': [s / work.steps for s in timing.seconds],
      'compile': compilation,
      'executions_per_batch': work.executions_per_batch,
      'flops': work.flops,
      'min_bytes': work.min_bytes,
      # If the peak did not rise, it is that of an earlier row.
      'peak_bytes': peak if (peak or 0) > (before or 0) else None,
      'blocked': {
        'batches': batches,
        'seconds': blocked.seconds,
        'host_seconds': blocked.host_seconds,
      },
      'loss': loss,
      'joules': meter.joules,
      'state': meter.state,
    }, ''

  def _compile(self, work: workload.Work, trial: bool) -> tuple[Any, Any]:
    """The compiled call, and its compilation as JSON values."""
    program, compiled, compilation = self._last
    if trial or program != work.program:
      # Frees the last program before this one is compiled.
      self._last, compiled = _NOTHING, None
      cache = None
      if self._journal.cache and not trial:
        name = ' '.join(map(str, work.program))
        cache = str(pathlib.Path(self._journal.cache, name))
      compiled, compilation = measure.compile_phases(
        work.jitted,
        *work.arguments,
        cache=cache,
        measure_warm=cache is not None and self._journal.first,
      )
      if not trial:
        self._last = (work.program, compiled, compilation)
    return compiled, compilation


def _failed(cell: plan.Cell, why: str, most: int) -> dict[str, Any]:
  fits = f'the largest that fits is {most}' if most else 'no smaller batch fits'
  return {
    'cell': dataclasses.asdict(cell),
    'error': f'Batch {cell.batch} does not fit: {why}; {fits}.',
  }


def _line(row: dict[str, Any]) -> str:
  if row['error'] is not None:
    return row['error']
  p50 = np.median(row['seconds'])
  rate = row['cell']['batch'] / np.mean(row['seconds'])
  return (
    f'{p50 * 1e3:.4g} ms (median of {len(row["seconds"])}), {rate:.4g} '
    f'images/s, compiled in {row["compile"]["compile_s"]:.3g} s'
  )
