"""Writes, reads and prints the report of a benchmark."""

from collections.abc import Callable, Iterable
import json
import os
import pathlib
from typing import Any

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import tables
from skipnet_jax.benchmarking.reporting import schema

Report = dict[str, Any]
number = tables.number


def check_output(
  path: str | os.PathLike,
  *,
  overwrite: bool,
  raw: bool = True,
  remedy: str = files.REMEDY,
) -> pathlib.Path:
  """Checks, before any work, that a report can be written to a file.

  Args:
    path: the file.
    overwrite: whether files that exist may be replaced.
    raw: whether the raw times will be written beside it, or, of a benchmark
      that ends early, what it had measured.
    remedy: against a file that exists.

  Raises:
    InputError: the name does not end in .json, the folder is missing or cannot
      be written, or a file exists and `overwrite` is False.
  """
  path = pathlib.Path(path)
  if path.suffix != '.json':
    raise errors.InputError(
      f'The report {path} cannot be written: its name must end in .json (the '
      'raw times are written beside it, as .csv).'
    )
  if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
    raise errors.InputError(
      f'The folder {path.parent} of the report is missing or cannot be '
      'written: create it, or choose another.'
    )
  outputs = [path]
  if raw:
    partial = partial_path(path)
    outputs += [path.with_suffix('.csv'), partial, partial.with_suffix('.csv')]
  files.check_outputs(outputs, overwrite=overwrite, remedy=remedy)
  return path


def partial_path(path: pathlib.Path) -> pathlib.Path:
  """Where a benchmark that ends early keeps what it had measured."""
  return path.with_suffix('.partial.json')


def remove_partial(path: pathlib.Path) -> None:
  """Removes what an earlier benchmark of this name kept when it ended early."""
  for name in (partial_path(path), partial_path(path).with_suffix('.csv')):
    name.unlink(missing_ok=True)


def write(
  path: pathlib.Path,
  report: Report,
  raw: Iterable[tuple[int, int, int, float]],
) -> None:
  """Writes a report as JSON, and the raw times beside it as CSV.

  Args:
    path: the JSON file, from `check_output`.
    report: as in docs/benchmark_report.md.
    raw: for each timed call: index in the results, process, repetition (all
      from 0), seconds.

  Raises:
    InputError: as `schema.check`.
    AppearedError: one of the names is taken by now; both are written all the
      same.
  """
  schema.check(report)
  heads = ('row', 'process', 'repetition', 'seconds')
  appeared = []
  for write_one in (
    lambda: files.write_json(path, report),
    lambda: files.write_csv(path.with_suffix('.csv'), heads, raw),
  ):
    try:
      write_one()
    except files.AppearedError as e:
      appeared.append(str(e))
  if appeared:
    raise files.AppearedError(' '.join(appeared))


def read(path: str | os.PathLike) -> Report:
  """Reads what `write` wrote.

  Raises:
    InputError: the file cannot be read, or is no report of this version.
  """
  try:
    report = json.loads(pathlib.Path(path).read_text())
    version = report.get('schema') if isinstance(report, dict) else None
    if type(version) is int and version > schema.VERSION:
      raise errors.InputError(
        f'its schema is {version}, of a later version than {schema.VERSION}, '
        'which this skipnet_jax reads: update skipnet_jax.'
      )
    if version in range(1, schema.VERSION):
      raise errors.InputError(
        f'its schema is {version}, of an earlier version, which does not tell '
        'the precision of matrix products: measure again.'
      )
    schema.check(report)
  except errors.InputError as e:
    raise errors.InputError(f'{path} cannot be used: {e}') from e
  except (OSError, ValueError, RecursionError) as e:
    raise errors.InputError(
      f'{path} {files.why_unreadable(e)}: give a report that python -m '
      'skipnet_jax.benchmark wrote.'
    ) from e
  return report


def format_table(report: Report) -> str:
  """The report for the terminal, in at most 100 columns."""
  rows = sorted(report['results'], key=lambda r: schema.CALLS.index(r['call']))
  good = [row for row in rows if row['error'] is None]
  lines = [
    *_header(report),
    '',
    *_table_by_call(rows, _speed(good)),
    *(
      line
      for row in rows
      if row['error'] is not None
      for line in tables.paragraph(
        f'failed: {" ".join(schema.key_cells(row))}: {row["error"]}', 2
      )
    ),
    *_speed_notes(good, report['identity']['processes_compile']),
  ]
  compiled = [row for row in good if row['compile']]
  if compiled:
    lines += ['', *_table_by_call(compiled, _compile(good)), *_COMPILE_NOTES]
  if report['scaling']:
    lines += [
      '',
      *tables.layout(
        ('scaling', *schema.KEY_HEADS, 'img/s', 'efficiency%'),
        [
          (
            entry['kind'],
            *schema.key_cells(entry),
            number(entry['images_per_second']),
            _percent(entry['efficiency']),
          )
          for entry in report['scaling']
        ],
      ),
    ]
  return '\n'.join(lines)


def _header(report: Report) -> list[str]:
  identity, workload = report['identity'], report['workload']
  software, hardware = report['software'], report['hardware']
  hosts = max((row['hosts'] for row in report['results']), default=1)
  memory = hardware['device_memory_bytes']
  parts = {
    'benchmark': (
      f'{identity["experiment"]}, config {identity["config_hash"]}, git '
      f'{identity["git"]}'
    ),
    'workload': (
      f'{workload["model"]}, {workload["parameters"]:,} parameters, '
      f'{workload["convolutions"]} convolutions, '
      f'{"x".join(map(str, workload["image_size"]))} pixels, '
      f'{workload["loss"]}, {workload["optimizer"]}; {workload["dataset"]}'
    ),
    'devices': (
      f'{hardware["device_count"]} x {hardware["device_kind"]} '
      f'({hardware["platform"]}'
      + (f', {number(memory, 1e9)} GB each for JAX' if memory else '')
      + (f', {hosts} processes)' if hosts > 1 else ')')
    ),
    'host': (
      f'{hardware["cpu"]}, {hardware["cores"]} cores, '
      f'{number(hardware["memory_bytes"], 1e9)} GB, load '
      + ' '.join(f'{load:.2f}' for load in hardware['load_average'])
    ),
    'software': ', '.join(
      f'{label} {software[name]}'.strip()
      for name, label in _SOFTWARE.items()
      if software[name]
    ),
    **software['environment'],
    'packages': software['packages']
    + (f', container {software["container"]}' if software['container'] else ''),
    'command': identity['command'],
    'date': f'{identity["date"]}, {number(identity["seconds"])} s',
  }
  return [
    line
    for name, text in parts.items()
    if text
    for line in tables.paragraph(f'{name:<15} {text}', 16)
  ]


# Labels of versions; that of the plugin includes its name.
_SOFTWARE = {
  **{k: k for k in ('python', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')},
  **{'plugin': '', 'driver': 'driver', 'cuda': 'CUDA', 'cudnn': 'cuDNN'},
}


def _short(value: float | None) -> str:
  return '' if value is None else f'{value:.3g}'


def _percent(value: float | None) -> str:
  return '' if value is None else number(100 * value)


_PROGRAMS = {
  'reuse': 'load the programs of the first one',
  'anew': 'compile their programs anew',
}
# Relative difference of mean and median that is said.
_UNSTEADY = 0.1
Columns = dict[str, Callable[[dict[str, Any]], str]]


def _speed(rows: list[dict[str, Any]]) -> Columns:
  """Heading of each column to its cell, for rows that did not fail."""
  prefix, factor = tables.scale(1e12 * (r['tflops'] or 0) for r in rows)
  return {
    'ms p50': lambda r: number(r['timing']['p50'], 1e-3),
    '+-MAD': lambda r: number(r['timing']['mad'], 1e-3),
    'block': lambda r: number(r['blocked']['seconds'], 1e-3),
    'img/s': lambda r: number(r['images_per_second']),
    '/dev': lambda r: (
      number(r['images_per_second_per_device']) if r['devices'] > 1 else ''
    ),
    f'{prefix}FLOP/s': lambda r: number(r['tflops'], factor / 1e12),
    'MFU%': lambda r: _percent(r['mfu']),
    'roof%': lambda r: _percent(r['roofline'] and r['roofline']['fraction']),
    'GB': lambda r: number(r['memory']['peak_bytes'], 1e9),
    'J/img': lambda r: number(r['energy'] and r['energy']['joules_per_image']),
  }


def _compile(rows: list[dict[str, Any]]) -> Columns:
  prefix, factor = tables.scale(r['model_flops'] for r in rows)
  return {
    'trace': lambda r: _short(r['compile']['trace_s']),
    'lower': lambda r: _short(r['compile']['lower_s']),
    'XLA': lambda r: _short(r['compile']['compile_s']),
    'warm': lambda r: _short(r['compile']['warm_compile_s']),
    'HLO': lambda r: number(r['compile']['hlo_instructions']),
    f'HLO {prefix}F': lambda r: number(r['hlo_flops'], factor),
    f'model {prefix}F': lambda r: number(r['model_flops'], factor),
    'plan GB': lambda r: number(r['memory']['predicted_bytes'], 1e9),
    'host': lambda r: _short(100 * r['blocked']['host_share']),
    'loss': lambda r: _short(r['loss'] and r['loss']['value']),
  }


_COMPILE_NOTES = tables.paragraph(
  'trace, lower, XLA: seconds to compile, without a cache. warm: XLA with the '
  "persistent cache. Of one device's program: HLO, its instructions; "
  'HLO TF (GF, MF), its FLOPs in 1e12 (1e9, 1e6) as XLA counts them; plan GB, '
  'its memory as XLA plans it. model TF (GF, MF): FLOPs of the whole call, by '
  'formula. host: percent of the blocked calls until the last one returned. '
  'loss: of the training batch, after all of these steps.'
)


def _table_by_call(
  rows: list[dict[str, Any]], columns: dict[str, Callable]
) -> list[str]:
  """A table with a line for each row, under a heading for each call."""
  if not rows:
    return []
  cells = []
  for row in rows:
    if row['error'] is None:
      figures = [cell(row) for cell in columns.values()]
    else:
      figures = ['failed', *[''] * (len(columns) - 1)]
    cells.append(schema.key_cells(row)[1:] + figures)
  heads = [*schema.KEY_HEADS[1:], *columns]
  head, rule, *body = tables.layout(heads, cells)
  lines, call = [head, rule], None
  for row, line in zip(rows, body, strict=True):
    if row['call'] != call:
      call = row['call']
      lines.append(f'{call}:')
    lines.append(line)
  return lines


def _speed_notes(
  rows: list[dict[str, Any]], processes_compile: str
) -> list[str]:
  if not rows:
    return []
  counts = sorted({(row['processes'], row['timing']['n']) for row in rows})
  each = '; '.join(f'{n} calls in {p} process(es)' for p, n in counts)
  if max(processes for processes, _ in counts) > 1:
    each += ', which ' + _PROGRAMS[processes_compile]
  notes = [
    f'Each row: {each}. Each call is timed until its result is ready; img/s = '
    'batch / mean seconds. block: ms of a batch where calls are waited for '
    'together.'
  ]
  for row in rows:
    name = ' '.join(schema.key_cells(row))
    mean, p50 = row['images_per_second'], row['images_per_second_p50']
    if abs(p50 / mean - 1) > _UNSTEADY:
      notes.append(
        f'{name}: {number(mean)} img/s by the mean, {number(p50)} by the '
        'median: the calls were unsteady.'
      )
    different = len(set(row['programs']))
    if different > 1:
      notes.append(
        f'{name}: {different} different programs in {row["processes"]} '
        'processes.'
      )
    state = row['device_state']
    if state and state['slow']:
      reasons = ', '.join(state['throttle_reasons'])
      notes.append(
        f'{name}: SLOW CLOCK, {number(state["sm_mhz"])} of '
        f'{number(state["sm_mhz_highest"])} MHz ({reasons or "no reason given"}'
        ').'
      )
  peaks = [row['mfu_peak'] for row in rows if row['mfu_peak']]
  notes += [
    f'MFU: of {number(p["tflops"])} TFLOP/s in {p["arithmetic"]}, '
    f'{p["source"]}.'
    for p in peaks
  ]
  if any(row['mode'] == 'pmap' for row in rows):
    notes.append(
      'pmap: since JAX 0.10 it is jit(shard_map) inside, no other way to run.'
    )
  notes += [f'No MFU: {row["mfu_reason"]}' for row in rows if row['mfu_reason']]
  if any(row['roofline'] for row in rows):
    notes.append(
      'roof: the least time that the FLOPs and bytes need on this device, over '
      'the mean time.'
    )
  return [
    line for note in dict.fromkeys(notes) for line in tables.paragraph(note)
  ]
