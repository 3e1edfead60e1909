"""How throughput grows with the number of devices."""

from collections.abc import Sequence
from typing import Any

import ml_collections

from skipnet_jax.benchmarking.reporting import schema


def table(
  section: ml_collections.ConfigDict, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """The report's `scaling`: rates and efficiencies of the rows without error.

  The efficiency is images/s per device, divided by that on the smallest number
  of devices. It means nothing for devices that share the cores of a CPU.

  Args:
    section: `config.benchmark`.
    rows: of the report.

  Returns:
    Entries of rows that differ in the number of devices only; no entry of a
    row that was measured on one number of devices.
  """
  entries = []
  for kind in section.scaling:
    families: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
      if row['error'] is None and row['mode'] != 'jit':
        n = row['devices']
        size = row['batch'] // n if kind == 'weak' else row['batch']
        key = tuple(row[k] for k in schema.KEY if k not in ('devices', 'batch'))
        families.setdefault((*key, size), []).append(row)
    measured = [r['devices'] for rows in families.values() for r in rows]
    smallest = min(measured, default=0)
    for family in families.values():
      family = sorted(family, key=lambda row: row['devices'])
      base = family[0]
      if len(family) < 2 or base['devices'] != smallest:
        continue
      for row in family:
        rate = row['images_per_second']
        ideal = base['images_per_second'] * row['devices'] / base['devices']
        entries.append(
          {'kind': kind, **{k: row[k] for k in schema.KEY}}
          | {'images_per_second': rate, 'efficiency': rate / ideal}
        )
  return entries
