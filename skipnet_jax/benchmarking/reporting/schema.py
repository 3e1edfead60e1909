"""The form of a benchmark's report; docs/benchmark_report.md explains it."""

import math
from typing import Any

from skipnet_jax import config as config_lib
from skipnet_jax import errors

VERSION = 1
CALLS = ('train', 'eval', 'inference')
FEEDS = ('compute', 'augment', 'end_to_end')

_KINDS = {
  int: 'a whole number',
  float: 'a finite number',
  str: 'text',
  dict: 'an object',
  list: 'a list',
}


def _or_null(form: Any) -> tuple[Any]:
  return (form,)


# A form is a type, a set of choices, a list of one form (any number of it), an
# object's fields, one form in a tuple (it or null), or what a value chooses.
_FIGURES = {
  'timing': {
    'warmup': int,
    'n': int,
    'mean': float,
    'std': _or_null(float),
    'min': float,
    'p50': float,
    'p90': float,
    'p95': float,
    'p99': float,
    'mad': float,
  },
  'process_p50': [float],
  'compile': _or_null(
    {
      'trace_s': _or_null(float),
      'lower_s': float,
      'compile_s': float,
      'warm_compile_s': _or_null(float),
      'hlo_instructions': int,
    }
  ),
  'images_per_second': float,
  'images_per_second_per_device': float,
  'model_flops': _or_null(float),
  'model_bytes': _or_null(float),
  'hlo_flops': _or_null(float),
  'hlo_bytes': _or_null(float),
  'tflops': _or_null(float),
  'mfu': _or_null(float),
  'mfu_peak': _or_null({'tflops': float, 'source': str}),
  'mfu_reason': _or_null(str),
  'roofline': _or_null(
    {
      'flops_s': float,
      'bytes_s': float,
      'bound': str,
      'floor_s': float,
      'fraction': float,
      'copy_gb_s': float,
      'matrix_tflops': float,
    }
  ),
  'memory': {
    'predicted_bytes': _or_null(int),
    'peak_bytes': _or_null(int),
  },
  'energy': _or_null({'watts': float, 'joules_per_image': float}),
}

_SYSTEM = {
  'call': set(CALLS),
  'feed': set(FEEDS),
  'mode': set(config_lib.MODES),
  'devices': int,
  'hosts': int,
  'dtype': str,
  'batch': int,
}


# The fields that name a row, and its figures, null in a row that failed.
KEY, FIGURES = tuple(_SYSTEM), tuple(_FIGURES)
# Headings of a table for `key_cells`.
KEY_HEADS = ('call', 'feed', 'mode', 'dev', 'dtype', 'batch')
_DTYPES = {'float32': 'f32', 'bfloat16': 'bf16', 'float16': 'f16'}


def key_cells(row: dict[str, Any]) -> list[str]:
  """What a row ran, under KEY_HEADS; several processes as `8/2`."""
  devices = str(row['devices'])
  if row['hosts'] > 1:
    devices += f'/{row["hosts"]}'
  return [
    row['call'],
    row['feed'],
    row['mode'],
    devices,
    _DTYPES.get(row['dtype'], row['dtype']),
    str(row['batch']),
  ]


def _row(value: Any) -> dict[str, Any]:
  failed = isinstance(value, dict) and value.get('error') is not None
  figures = dict.fromkeys(_FIGURES) if failed else _FIGURES
  error = {'processes': int, 'error': _or_null(str)}
  return _SYSTEM | error | figures


SCHEMA = {
  'schema': {VERSION},
  'identity': {
    'experiment': str,
    'config_hash': str,
    'config': dict,
    'git': str,
    'command': str,
    'date': str,
    'seconds': float,
  },
  'software': {
    **dict.fromkeys(('python', 'jax', 'jaxlib', 'flax', 'optax', 'numpy'), str),
    **dict.fromkeys(('plugin', 'driver', 'cuda', 'cudnn'), _or_null(str)),
    'xla_flags': str,
    'glibc_tunables': str,
  },
  'hardware': {
    'platform': str,
    'device_kind': str,
    'device_count': int,
    'local_device_count': int,
    'device_memory_bytes': _or_null(int),
    'cpu': str,
    'cores': int,
    'memory_bytes': int,
    'load_average': [float],
  },
  'workload': {
    'model': str,
    'parameters': int,
    'convolutions': int,
    'image_size': [int],
    'dataset': str,
    'loss': str,
    'optimizer': str,
  },
  'results': [_row],
  'scaling': [
    _SYSTEM
    | {
      'kind': {'weak', 'strong'},
      'images_per_second': float,
      'efficiency': float,
    }
  ],
  'peer': _or_null(dict),
}


def check(report: Any) -> None:
  """Checks that a report has every field of the schema, and no other.

  Raises:
    InputError: naming the path of the first offending field, such as
      `results[2].timing.p50`.
  """
  _check(report, SCHEMA, '')


def _check(value: Any, form: Any, path: str) -> None:
  if callable(form) and not isinstance(form, type):
    form = form(value)
  if isinstance(form, tuple):
    if value is None:
      return
    form = form[0]
  if form is None:
    if value is not None:
      raise errors.InputError(
        f'{path} is {_shown(value)}; it must be null in a row that failed.'
      )
  elif isinstance(form, set):
    if not isinstance(value, str | int) or value not in form:
      choices = ', '.join(map(str, sorted(form)))
      raise errors.InputError(
        f'{path} is {_shown(value)}; it must be one of {choices}.'
      )
  elif isinstance(form, dict):
    _check_type(value, dict, path)
    _check_fields(value, form, f'{path}.' if path else '')
  elif isinstance(form, list):
    _check_type(value, list, path)
    for i, item in enumerate(value):
      _check(item, form[0], f'{path}[{i}]')
  else:
    _check_type(value, form, path)


def _check_fields(value: dict, form: dict, prefix: str) -> None:
  for name in value:
    if name not in form:
      raise errors.InputError(
        f'{prefix}{name} is unknown: {config_lib.nearest(name, list(form))}'
      )
  for name, one in form.items():
    if name not in value:
      raise errors.InputError(f'{prefix}{name} is missing.')
    _check(value[name], one, prefix + name)


def _check_type(value: Any, kind: type, path: str) -> None:
  if kind is float:
    ok = type(value) in (int, float) and math.isfinite(value)
  else:
    ok = type(value) is kind
  if not ok:
    raise errors.InputError(
      f'{path or "The report"} is {_shown(value)}; it must be {_KINDS[kind]}.'
    )


def _shown(value: Any) -> str:
  text = 'null' if value is None else repr(value)
  return text if len(text) <= 60 else text[:57] + '...'
