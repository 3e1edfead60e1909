"""Makes the tables of docs/benchmarks.md from the committed reports.

python tools/benchmark_table.py

Run it after a report was added under experiments/results/benchmark/. It takes
reports of `benchmark` with the present schema, and those of the pieces of
`accelerator_suite`.
"""

from collections.abc import Iterator
import json
import pathlib
import sys
from typing import Any

from skipnet_jax import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'benchmarks.md'
REPORTS = ROOT / 'experiments' / 'results' / 'benchmark'
BEGIN, END = '<!-- made by tools/benchmark_table.py -->', '<!-- end -->'
HEADS = (
  *('device', 'network, pixels', 'row', 'arithmetic', 'batch'),
  *('images/s', 'by p50', 'ms in a row', 'MFU', 'roofline', 'J/image'),
  *('MHz', 'loss', 'processes, programs', 'load', 'report'),
)

MADE = ('report', 'command', 'code', 'software', 'date')


def reports(folder: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Name and content of each report in a folder and its folders.

  Raises:
    InputError: names a file that is not of `benchmark` or `accelerator_suite`,
      or whose report `schema.check` refuses.
  """
  from skipnet_jax import errors
  from skipnet_jax.benchmarking.reporting import schema

  for path in sorted(folder.rglob('*.json')):
    for report in _contents(path):
      if report.get('schema') == schema.VERSION:
        try:
          schema.check(report)
        except errors.InputError as e:
          raise errors.InputError(f'{path} cannot be used: {e}') from e
        yield str(path.relative_to(folder)), report


def _contents(path: pathlib.Path) -> list[dict[str, Any]]:
  """The object in a file, and those in its field result.reports."""
  from skipnet_jax import errors

  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as e:
    raise errors.InputError(
      f'{path} cannot be read ({type(e).__name__}): repair or remove it.'
    ) from e
  result = (content.get('result') or {}) if isinstance(content, dict) else None
  pieces = result.get('reports', []) if isinstance(result, dict) else None
  if isinstance(pieces, list) and all(isinstance(one, dict) for one in pieces):
    return [content, *pieces]
  raise errors.InputError(
    f'{path} is neither a report of benchmark nor a piece of '
    'accelerator_suite: remove it.'
  )


def rows(folder: pathlib.Path) -> list[list[str]]:
  """Cells under HEADS for each row of the reports that did not fail."""
  from skipnet_jax import tables
  from skipnet_jax.benchmarking.reporting import schema

  number = tables.number
  cells = []
  for name, report in reports(folder):
    machine, work = report['hardware'], report['workload']
    size = 'x'.join(map(str, work['image_size']))
    for row in report['results']:
      if row['error'] is not None:
        continue
      peak, state = row['mfu_peak'], row['device_state']
      energy, loss = row['energy'], row['loss']
      clock = state and state['sm_mhz']
      cells.append(
        [
          f'{row["devices"]} x {machine["device_kind"]}',
          f'{work["model"]}, {size}',
          f'{row["call"]} {row["feed"]} {row["mode"]}',
          peak['arithmetic'] if peak else schema.key_cells(row)[4],
          str(row['batch']),
          number(row['images_per_second']),
          number(row['images_per_second_p50']),
          number(row['blocked']['seconds'], 1e-3),
          f'{row["mfu"]:.1%}' if peak else '-',
          f'{row["roofline"]["fraction"]:.1%}' if row['roofline'] else '-',
          number(energy['joules_per_image']) if energy else '-',
          (number(clock) + (' SLOW' if state['slow'] else ''))
          if clock
          else '-',
          f'{loss["value"]:.4f} at {loss["steps"]}' if loss else '-',
          f'{row["processes"]}, {len(set(row["programs"]))}',
          f'{machine["load_average"][0]:.1f} of {machine["cores"]}',
          f'[{name}](../experiments/results/benchmark/{name})',
        ]
      )
  return cells


def commands(folder: pathlib.Path) -> list[list[str]]:
  """Report, command, code, software and date of each report."""
  cells = []
  for name, report in reports(folder):
    identity, software = report['identity'], report['software']
    versions = f'jax {software["jax"]}'
    versions += f', {software["plugin"]}' if software['plugin'] else ''
    cells.append(
      [
        name,
        f'`{identity["command"]}`'.replace('|', '\\|'),
        identity['git'],
        versions,
        identity['date'][:10],
      ]
    )
  return cells


def published() -> list[list[str]]:
  """NVIDIA's rates, as published."""
  from skipnet_jax.benchmarking.suite import published as lib

  return [
    [r.device, r.precision, str(r.batch), f'{r.images_per_second:.2f}']
    for r in lib.RATES
  ]


def table(heads: tuple[str, ...], cells: list[list[str]]) -> str:
  """A table in Markdown."""
  lines = [heads, ['---'] * len(heads), *cells]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def fill(page: str, folder: pathlib.Path) -> str:
  """The page with the tables of a folder's reports."""
  from skipnet_jax.benchmarking.suite import published as lib

  before, _, rest = page.partition(BEGIN)
  _, _, after = rest.partition(END)
  found = rows(folder)
  parts = [
    '## Rows',
    table(HEADS, found) if found else 'No report is committed yet.',
    *(('## How each was made', table(MADE, commands(folder))) if found else ()),
    "## NVIDIA's U-Net, as published",
    f'Training on one GPU, 572x572 pixels, [NVIDIA, 2020]({lib.URL}); nothing '
    'here was measured by us.',
    table(('GPU', 'precision', 'batch', 'images/s'), published()),
  ]
  return '\n\n'.join([before + BEGIN, *parts, END]) + after


def main() -> None:
  """Rewrites the page."""
  from skipnet_jax import files

  files.write_whole(PAGE, fill(PAGE.read_text(), REPORTS))
  print(f'{PAGE.relative_to(ROOT)}: {len(rows(REPORTS))} rows', file=sys.stdout)


if __name__ == '__main__':
  cli.run(main)
