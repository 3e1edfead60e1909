"""Compares two reports of one workload: which rows became slower."""

import dataclasses
import math
from typing import Any

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import tables
from skipnet_jax.benchmarking.reporting import schema

Report = dict[str, Any]

# Fewer do not show how processes differ.
PROCESSES = 3
# Rows of each report that a message names.
_NAMED = 3
# Fields that do not explain a ratio.
_IGNORED = {'experiment', 'config', 'command', 'date', 'seconds'}
_IGNORED |= {'device_count', 'local_device_count', 'load_average'}


@dataclasses.dataclass(frozen=True)
class Row:
  """Compares a row of two reports.

  Attributes:
    row: that of the newer report.
    old, new: median seconds; None if the row failed.
    ratio: new / old; None if either failed.
    spread: relative uncertainty of the ratio, see `spread`; None likewise.
    slower: the ratio exceeds 1 by more than the spread, or only the newer row
      failed.
    faster: the inverse ratio does, or only the older row failed.
    undecided: too few processes or other work on the machine, so that neither
      can be said.
  """

  row: dict[str, Any]
  old: float | None
  new: float | None
  ratio: float | None
  spread: float | None
  slower: bool
  faster: bool
  undecided: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Compares all rows of two reports.

  Attributes:
    rows: those in both reports, in the order of the newer one.
    only_old, only_new: rows that only one report has.
    differences: fields of software, hardware and identity that differ, as
      'name (old, now new)'. They may explain a ratio.
  """

  rows: tuple[Row, ...]
  only_old: tuple[dict[str, Any], ...]
  only_new: tuple[dict[str, Any], ...]
  differences: tuple[str, ...]

  @property
  def slower(self) -> bool:
    """Whether any row is slower."""
    return any(row.slower for row in self.rows)


def compare(old: Report, new: Report) -> Comparison:
  """Compares two reports row by row.

  Args:
    old, new: from `report.read`.

  Raises:
    InputError: their workloads differ, one has the same row twice, or they
      have no row in common.
  """
  changed = config_identity.differences(old['workload'], new['workload'])
  if changed:
    raise errors.InputError(
      'The workloads of the two reports differ: '
      f'{", ".join(f"workload.{one}" for one in changed)}. Compare reports of '
      'one workload.'
    )
  before, after = _by_key(old, 'older'), _by_key(new, 'newer')
  if not before.keys() & after.keys():
    raise errors.InputError(
      'The two reports have no row in common: the older one has '
      f'{_names(before)}, the newer one {_names(after)}. Measure both with the '
      'same fields of config.benchmark.'
    )
  busy = any(map(_busy, (old, new)))
  return Comparison(
    rows=tuple(
      _compare_rows(before[key], row, busy)
      for key, row in after.items()
      if key in before
    ),
    only_old=tuple(row for key, row in before.items() if key not in after),
    only_new=tuple(row for key, row in after.items() if key not in before),
    differences=tuple(
      f'{section}.{one}'
      for section in ('identity', 'software', 'hardware')
      for one in config_identity.differences(
        *(
          {k: v for k, v in report[section].items() if k not in _IGNORED}
          for report in (old, new)
        )
      )
    ),
  )


def spread(row: dict[str, Any]) -> float:
  """The uncertainty of a row's median, relative to it.

  The root of the sum of squares of two parts: the range of the medians of its
  processes (0 for a single one), and the median absolute deviation of all
  calls. docs/benchmark_report.md says how often chance exceeds it.
  """
  timing, medians = row['timing'], row['process_p50']
  between = max(medians, default=0.0) - min(medians, default=0.0)
  return math.hypot(between, timing['mad']) / timing['p50']


def _busy(report: Report) -> bool:
  """Whether more processes ran than the machine has cores."""
  hardware = report['hardware']
  return hardware['load_average'][0] > hardware['cores']


def _by_key(report: Report, which: str) -> dict[tuple, dict[str, Any]]:
  rows: dict[tuple, dict[str, Any]] = {}
  for row in report['results']:
    key = tuple(row[name] for name in schema.KEY)
    if key in rows:
      raise errors.InputError(
        f'The {which} report has the row {" ".join(map(str, key))} twice: '
        'give a report that has it once.'
      )
    rows[key] = row
  return rows


def _names(rows: dict[tuple, dict[str, Any]]) -> str:
  """The first rows, for a message."""
  named = [' '.join(schema.key_cells(row)) for row in rows.values()]
  more = len(named) - _NAMED
  return f'{len(named)} row(s)' + (
    f' ({", ".join(named[:_NAMED])}{f", {more} more" if more > 0 else ""})'
    if named
    else ''
  )


def _compare_rows(old: dict[str, Any], new: dict[str, Any], busy: bool) -> Row:
  was, now = (
    None if row['error'] is not None else row['timing']['p50']
    for row in (old, new)
  )
  processes = min(old['processes'], new['processes'])
  if was is None or now is None:
    # One process may have run out of memory for want of luck.
    undecided = processes == 1 and was != now
    slower = was is not None and not undecided
    faster = now is not None and not undecided
    return Row(new, was, now, None, None, slower, faster, undecided)
  ratio = now / was
  both = math.hypot(spread(old), spread(new))
  undecided = processes < PROCESSES or busy
  slower, faster = ratio > 1 + both, 1 / ratio > 1 + both
  if undecided:
    slower = faster = False
  return Row(new, was, now, ratio, both, slower, faster, undecided)


def format(comparison: Comparison) -> str:
  """The comparison for the terminal, in at most 100 columns."""
  heads = (*schema.KEY_HEADS, 'old ms', 'new ms', 'new/old', '+-%', 'verdict')
  lines = []
  if comparison.differences:
    lines += tables.paragraph(
      f'What differs: {"; ".join(comparison.differences)}.', 2
    )
    lines.append('')
  lines += tables.layout(heads, [_cells(row) for row in comparison.rows])
  for name, rows in (
    ('older', comparison.only_old),
    ('newer', comparison.only_new),
  ):
    for row in rows:
      cells = ' '.join(schema.key_cells(row))
      lines.append(f'Only in the {name} report: {cells}')
  slower, faster, undecided = (
    sum(getattr(row, verdict) for row in comparison.rows)
    for verdict in ('slower', 'faster', 'undecided')
  )
  lines.append(
    f'{len(comparison.rows)} rows in both: {slower} slower, {faster} faster, '
    f'by more than the spread; {undecided} undecided.'
  )
  if undecided:
    lines += tables.paragraph(
      f'undecided: measured in fewer than {PROCESSES} processes, which do not '
      'show how processes differ, or while more processes ran than the machine '
      f'has cores. Measure again in {PROCESSES} processes, on an idle machine.'
    )
  return '\n'.join(lines)


def _cells(row: Row) -> list[str]:
  return [
    *schema.key_cells(row.row),
    *(
      'failed' if seconds is None else tables.number(seconds, 1e-3)
      for seconds in (row.old, row.new)
    ),
    '' if row.ratio is None else f'{row.ratio:.3f}',
    '' if row.spread is None else f'{100 * row.spread:.1f}',
    next((v for v in ('slower', 'faster', 'undecided') if getattr(row, v)), ''),
  ]
