"""Counts a program's kernels and their bytes, by kind and by what they do.

Nothing is measured: the instructions, their shapes and the names that JAX gave
them say it all. XLA names a fusion after one of the operations in it, so that
what a kernel does is right for its main part only.
"""

from collections.abc import Sequence
import re
from typing import Any

from skipnet_jax import tables
from skipnet_jax.benchmarking.hlo import program as program_lib

# A kernel that reads and writes less is small: an H100 moves it in 0.3 us.
SMALL = 10**6
# A network's name follows, but not that of a function such as jit(softplus).
_NETWORK = re.compile(r'jvp\((?!jit\()\w')
_NORM = re.compile(r'(?:^|[/_])norm(?:_\w+)?(?:/|$)')
# Kinds of work that are a task of their own.
_TASKS = {
  'collective': 'collectives',
  'convolution': 'convolutions',
  'dot': 'matrix products',
}


def task(kind: str, op_name: str) -> str:
  """What a kernel does in a training step.

  Args:
    kind: of its work, from `Program.decisive`.
    op_name: its place in the traced step.
  """
  *path, operation = op_name.split('/')
  place = '/'.join(path).lower()
  sums = kind == 'reduce'
  if kind in _TASKS:
    return _TASKS[kind]
  if not path:
    return 'copies and layouts'  # An argument's name, or none: XLA added it.
  if 'dropout' in place:
    return 'dropout'
  if 'jvp(' not in place:
    if operation in ('stack', 'concatenate'):
      return 'stacking the record'
    return 'sums over parameters' if sums else 'optimizer, finite check'
  if not _NETWORK.search(op_name):
    return 'loss'
  if _NORM.search(place):
    return 'BatchNorm, sums' if sums else 'BatchNorm, elementwise'
  if sums and operation in ('transpose', 'dot_general'):
    return 'products, sums of parts'
  if 'skip' in place:
    return 'skips'
  if sums:
    return 'biases and other sums'
  if operation == 'convert_element_type':
    return 'casts'
  return 'transposes' if kind == 'transpose' else 'other elementwise'


def table(program: program_lib.Program) -> list[dict[str, Any]]:
  """A program's kernels in the order in which they run.

  Returns:
    For each kernel: name, opcode, kind, task, layer, bytes (of one run), runs;
    hbm_bytes, those of them that do not lie on the chip.
  """
  rows = []
  for one, runs in program.kernels():
    kind, decisive = program.decisive(one.name)
    op_name = one.op_name or decisive.op_name
    rows.append(
      {
        'name': one.name,
        'opcode': one.opcode,
        'kind': kind,
        'task': task(kind, op_name),
        'layer': program_lib.layer(op_name) or one.name,
        'bytes': program.bytes_of(one.name),
        'hbm_bytes': program.bytes_of(one.name, hbm=True),
        'runs': runs,
      }
    )
  return rows


def count(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Counts the kernels of `table`, as JSON values.

  Returns:
    kernels; small (those that read and write less than SMALL); bytes;
    hbm_bytes; kinds and tasks: for each the same four, the most bytes first.
  """

  def group(column: str) -> dict[str, dict[str, int]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
      groups.setdefault(row[column], []).append(row)
    totals = {name: _total(group) for name, group in groups.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1]['bytes']))

  return {**_total(rows), 'kinds': group('kind'), 'tasks': group('task')}


def _total(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
  return {
    'kernels': sum(row['runs'] for row in rows),
    'small': sum(row['runs'] for row in rows if row['bytes'] < SMALL),
    'bytes': sum(row['runs'] * row['bytes'] for row in rows),
    'hbm_bytes': sum(row['runs'] * row['hbm_bytes'] for row in rows),
  }


def format_count(found: dict[str, Any]) -> list[str]:
  """Lines of a table of `count`: by task, and by kind."""
  lines = []
  for column, title in (('tasks', 'what it does'), ('kinds', 'kind')):
    lines += [
      *tables.layout(
        ('kernels', f'below {SMALL // 10**6} MB', 'GB', 'share', title),
        [
          [
            f'{one["kernels"]:,}',
            f'{one["small"]:,}',
            f'{one["bytes"] / 1e9:.3f}',
            f'{one["bytes"] / max(1, found["bytes"]):.1%}',
            name,
          ]
          for name, one in {**found[column], 'sum': found}.items()
        ],
      ),
      '',
    ]
  return lines[:-1]
