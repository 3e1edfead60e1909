"""Checks the fields of a report; docs/benchmark_report.md explains them."""

import sys
from typing import Any, NoReturn

from skipnet_jax import config as config_lib
from skipnet_jax import errors

# The version of docs/benchmark_report.md.
VERSION = 2
CALLS = ('train', 'eval', 'inference')
FEEDS = ('compute', 'augment', 'end_to_end')

_TYPE_NAMES = {
  int: 'a whole number',
  float: 'a finite number',
  str: 'text',
  bool: 'true or false',
  dict: 'an object',
  list: 'a list',
}


# A form describes what a value must be: a type; _POSITIVE; a set of choices;
# [form] for a list of any length, [form, form] for one of two; a dict for an
# object with these fields; None for null; the result of `_or_null`; or a
# function that maps a value to its form.
_POSITIVE = 'a number above 0'


def _or_null(form: Any) -> tuple[Any]:
  return (form,)


_FIGURES = {
  'timing': {
    **dict.fromkeys(('warmup', 'n'), int),
    **dict.fromkeys(('mean', 'min', 'p50', 'p90', 'p95', 'p99'), _POSITIVE),
    'mad': float,
    'std': _or_null(float),
  },
  'process_p50': [_POSITIVE],
  'blocked': {'batches': int, 'seconds': float, 'host_share': float},
  'compile': _or_null(
    {
      **dict.fromkeys(('trace_s', 'warm_compile_s'), _or_null(float)),
      **dict.fromkeys(('lower_s', 'compile_s'), float),
      'hlo_instructions': int,
    }
  ),
  'programs': [str],
  'loss': _or_null({'steps': int, 'value': float}),
  'images_per_second': _POSITIVE,
  'images_per_second_p50': _POSITIVE,
  'images_per_second_per_device': float,
  'model_flops': _or_null(float),
  'model_bytes': _or_null(float),
  'hlo_flops': _or_null(float),
  'hlo_bytes': _or_null(float),
  'tflops': _or_null(float),
  'mfu': _or_null(float),
  'mfu_peak': _or_null({'tflops': float, 'arithmetic': str, 'source': str}),
  'mfu_reason': _or_null(str),
  'roofline': _or_null(
    {
      **dict.fromkeys(('flops_s', 'bytes_s', 'floor_s', 'fraction'), float),
      **dict.fromkeys(('copy_gb_s', 'matrix_tflops'), float),
      'bound': str,
    }
  ),
  'memory': dict.fromkeys(('predicted_bytes', 'peak_bytes'), _or_null(int)),
  'energy': _or_null(
    dict.fromkeys(('watts', 'joules_per_image', 'seconds'), float)
  ),
  'device_state': _or_null(
    {
      **dict.fromkeys(('sm_mhz', 'sm_mhz_highest'), _or_null(float)),
      **dict.fromkeys(('memory_mhz', 'temperature_c'), _or_null(float)),
      'power_limit_w': _or_null(float),
      'throttle_reasons': [str],
      **dict.fromkeys(('ecc', 'mig'), _or_null(bool)),
      'slow': bool,
    }
  ),
}

_SYSTEM = {
  'call': set(CALLS),
  'feed': set(FEEDS),
  'mode': set(config_lib.MODES),
  'devices': int,
  'hosts': int,
  'dtype': str,
  'batch': int,
  'matmul_precision': {'default', 'high', 'highest'},
}
# The fields that identify a row; its figures, which are null if it failed.
KEY, FIGURES = tuple(_SYSTEM), tuple(_FIGURES)
# Headings of a table for `key_cells`.
KEY_HEADS = ('call', 'feed', 'mode', 'dev', 'dtype', 'batch')
_DTYPES = {'float32': 'f32', 'bfloat16': 'bf16', 'float16': 'f16'}


def key_cells(row: dict[str, Any]) -> list[str]:
  """Cells under KEY_HEADS; 8 devices in 2 processes are `8/2`."""
  hosts = f'/{row["hosts"]}' if row['hosts'] > 1 else ''
  exact = row['matmul_precision']
  return [
    *(row[name] for name in KEY_HEADS[:3]),
    f'{row["devices"]}{hosts}',
    _DTYPES.get(row['dtype'], row['dtype'])
    + ('' if exact == 'default' else f' {exact}'),
    str(row['batch']),
  ]


def _row(value: Any) -> dict[str, Any]:
  """The form of a row of the results."""
  failed = isinstance(value, dict) and value.get('error') is not None
  figures = dict.fromkeys(_FIGURES) if failed else _FIGURES
  return _SYSTEM | {'processes': int, 'error': _or_null(str)} | figures


def _texts(value: Any) -> Any:
  """The form of an object with texts of any names."""
  return dict.fromkeys(value, str) if isinstance(value, dict) else dict


SCHEMA = {
  'schema': {VERSION},
  'identity': {
    **dict.fromkeys(('experiment', 'config_hash', 'git'), str),
    **dict.fromkeys(('command', 'date'), str),
    'config': dict,
    'seconds': float,
    'processes_compile': {'reuse', 'anew'},
  },
  'software': {
    **dict.fromkeys(('python', 'jax', 'jaxlib', 'flax', 'optax', 'numpy'), str),
    **dict.fromkeys(('plugin', 'driver', 'cuda', 'cudnn'), _or_null(str)),
    'packages': str,
    'container': _or_null(str),
    'environment': _texts,
  },
  'hardware': {
    **dict.fromkeys(('platform', 'device_kind', 'cpu'), str),
    **dict.fromkeys(('device_count', 'local_device_count', 'cores'), int),
    'device_memory_bytes': _or_null(int),
    'memory_bytes': int,
    'load_average': [float, float, float],
  },
  'workload': {
    **dict.fromkeys(('model', 'dataset', 'loss', 'optimizer', 'kernels'), str),
    **dict.fromkeys(('parameters', 'convolutions'), int),
    'image_size': [int, int],
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
  'quality': _or_null(
    {
      'until_bce': float,
      'seconds': _or_null(float),
      'runs': [
        {
          **dict.fromkeys(('seed', 'epochs', 'steps'), int),
          'seconds': _or_null(float),
          'valid_bce': float,
        }
      ],
    }
  ),
}


def check(report: Any) -> None:
  """Checks that a report has every field of the schema and no other.

  Raises:
    InputError: names the path of the first field that is wrong, such as
      `results[2].timing.p50`.
  """
  if isinstance(report, dict) and not {'schema', 'results'} & set(report):
    what = report.get('what')
    raise errors.InputError(
      "it has no field 'schema'"
      + (f' ({what})' if isinstance(what, str) else '')
      + ': take a report of measured rows, which python -m '
      'skipnet_jax.benchmark writes without --aot.'
    )
  _check(report, SCHEMA, '')


def _check(value: Any, form: Any, path: str) -> None:
  if callable(form) and not isinstance(form, type):
    form = form(value)
  if isinstance(form, tuple):
    if value is None:
      return
    (form,) = form
  if form is None:
    if value is not None:
      _refuse(path, value, 'null in a row that failed')
  elif isinstance(form, set):
    if not isinstance(value, str | int) or value not in form:
      choices = ', '.join(map(str, sorted(form)))
      _refuse(path, value, f'one of {choices}' if len(form) > 1 else choices)
  elif isinstance(form, dict):
    _check_type(value, dict, path)
    prefix = f'{path}.' if path else ''
    for name in value:
      if name not in form:
        raise errors.InputError(
          f'{prefix}{name} is unknown: {config_lib.nearest(name, list(form))}'
        )
    for name, one in form.items():
      if name not in value:
        raise errors.InputError(f'{prefix}{name} is missing.')
      _check(value[name], one, prefix + name)
  elif isinstance(form, list):
    _check_type(value, list, path)
    if len(form) > 1 and len(value) != len(form):
      _refuse(path, value, f'a list of {len(form)}')
    for i, item in enumerate(value):
      _check(item, form[0], f'{path}[{i}]')
  elif form == _POSITIVE:
    _check_type(value, float, path)
    if value <= 0:
      _refuse(path, value, _POSITIVE)
  else:
    _check_type(value, form, path)


def _check_type(value: Any, kind: type, path: str) -> None:
  if kind is float:
    # A whole number may be too large for `math.isfinite`.
    ok = type(value) in (int, float) and abs(value) <= sys.float_info.max
  else:
    ok = type(value) is kind
  if not ok:
    _refuse(path or 'The report', value, _TYPE_NAMES[kind])


def _refuse(path: str, value: Any, expected: str) -> NoReturn:
  text = 'null' if value is None else repr(value)
  text = text if len(text) <= 60 else text[:57] + '...'
  raise errors.InputError(f'{path} is {text}; it must be {expected}.')
