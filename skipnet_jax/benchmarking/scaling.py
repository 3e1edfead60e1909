"""How throughput grows with the number of devices."""

from collections.abc import Sequence
from typing import Any

import ml_collections

from skipnet_jax.benchmarking.reporting import schema


def table(
  section: ml_collections.ConfigDict, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """How throughput grows with the devices, of the rows that did not fail.

  Efficiency is images/s over that of as many times the smallest number of
  devices. On devices that share a CPU's cores it says nothing.

  Args:
    section: `config.benchmark`.
    rows: of the report.

  Returns:
    Entries of the report's `scaling`; none where one number of devices was
    measured.
  """
  entries = []
  for kind in section.scaling:
    families: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
      if row['error'] is None and row['mode'] != 'jit':
        n = row['devices']
        size = row['batch'] // n if kind == 'weak' else row['batch']
        key = tuple(row[k] for k in ('call', 'feed', 'mode', 'hosts', 'dtype'))
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
        entries.append(
          {'kind': kind, **{k: row[k] for k in schema.KEY}}
          | {
            'images_per_second': rate,
            'efficiency': rate
            / (base['images_per_second'] * row['devices'] / base['devices']),
          }
        )
  return entries
