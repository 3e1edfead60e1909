"""The form of a report: what it must have, and how what is wrong is named."""

import copy
import re

import conftest
from made_benchmarks import report
from made_benchmarks import row
import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.reporting import schema

SCALING = {
  'kind': 'weak',
  'call': 'train',
  'feed': 'compute',
  'mode': 'sharded',
  'devices': 2,
  'hosts': 1,
  'dtype': 'float32',
  'batch': 2,
  'matmul_precision': 'default',
  'images_per_second': 19.0,
  'efficiency': 0.95,
}
QUALITY = {
  'until_bce': 0.4,
  'seconds': 2.5,
  'runs': [
    {'seed': 0, 'seconds': 2.5, 'epochs': 2, 'steps': 4, 'valid_bce': 0.35}
  ],
}


def made():
  found = report(row(), row(error='Out of memory at batch 512.'))
  found['scaling'] = [dict(SCALING)]
  found['quality'] = copy.deepcopy(QUALITY)
  return found


def place(container, path):
  """The container of the field at a path, and its key."""
  *parents, last = re.findall(r'\w+', path)
  for name in parents:
    container = container[int(name) if name.isdigit() else name]
  return container, int(last) if last.isdigit() else last


def refusal(found):
  with pytest.raises(errors.InputError) as error:
    schema.check(found)
  return str(error.value)


def test_a_whole_report_passes():
  schema.check(made())
  schema.check(made() | {'peer': {'anything': [1]}, 'quality': None})


NULLABLE = [
  'results[0].timing.std',
  'results[0].compile',
  'results[0].compile.trace_s',
  'results[0].compile.warm_compile_s',
  'results[0].model_flops',
  'results[0].hlo_flops',
  'results[0].mfu',
  'results[0].mfu_peak',
  'results[0].roofline',
  'results[0].memory.peak_bytes',
  'results[0].energy',
  'results[0].loss',
  'quality.seconds',
  'quality.runs[0].seconds',
  'results[0].device_state',
  'results[0].device_state.mig',
  'software.plugin',
  'software.cudnn',
  'hardware.device_memory_bytes',
]


@pytest.mark.parametrize('path', NULLABLE)
def test_what_does_not_apply_is_null(path):
  found = made()
  container, name = place(found, path)
  container[name] = None
  schema.check(found)


def test_a_prediction_is_no_report_of_measured_rows():
  with pytest.raises(
    errors.InputError, match=r'nothing executed.*without --aot'
  ):
    schema.check({'what': 'predictions: nothing executed', 'identity': {}})


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('schema', 3, 'schema is 3; it must be 2.'),
    ('identity.git', None, 'identity.git is null; it must be text.'),
    (
      'software.environment',
      {'A': 1},
      'software.environment.A is 1; it must be',
    ),
    ('identity', [], 'identity is []; it must be an object.'),
    ('identity.seconds', '3', "identity.seconds is '3'; it must be a finite"),
    (
      'workload.image_size[1]',
      1.5,
      'workload.image_size[1] is 1.5; it must be',
    ),
    (
      'hardware.load_average',
      1.0,
      'hardware.load_average is 1.0; it must be a',
    ),
    ('hardware.cores', True, 'hardware.cores is True; it must be a whole'),
    ('results', {}, 'results is {}; it must be a list.'),
    ('results[0]', 3, 'results[0] is 3; it must be an object.'),
    (
      'results[0].call',
      'fly',
      "results[0].call is 'fly'; it must be one of ev",
    ),
    ('results[0].call', ['x'], "results[0].call is ['x']; it must be one of"),
    ('results[0].batch', 8.0, 'results[0].batch is 8.0; it must be a whole'),
    ('results[0].timing.p50', None, 'results[0].timing.p50 is null; it must'),
    ('results[0].timing.p50', 0, 'p50 is 0; it must be a number above 0.'),
    ('results[0].process_p50[0]', -0.1, 'p50[0] is -0.1; it must be a number'),
    ('results[0].images_per_second', 0.0, 'second is 0.0; it must be a number'),
    ('results[0].timing.std', 10**400, 'timing.std is 1000'),
    ('hardware.load_average', [], 'load_average is []; it must be a list of 3'),
    ('workload.image_size', [9], 'image_size is [9]; it must be a list of 2'),
    ('results[0].timing.p99', float('nan'), 'results[0].timing.p99 is nan; it'),
    ('results[0].process_p50[2]', 'x', "results[0].process_p50[2] is 'x'; it"),
    ('results[0].compile.hlo_instructions', 1.5, 'hlo_instructions is 1.5; it'),
    ('results[0].device_state.slow', 1, 'slow is 1; it must be true or false'),
    ('results[0].memory', None, 'results[0].memory is null; it must be an'),
    ('results[1].mfu', 0.5, 'results[1].mfu is 0.5; it must be null in a row'),
    ('results[1].error', 3, 'results[1].error is 3; it must be text.'),
    ('scaling[0].efficiency', None, 'scaling[0].efficiency is null; it must'),
    ('scaling[0].kind', 'odd', "scaling[0].kind is 'odd'; it must be one of"),
    ('peer', 'x' * 99, "peer is 'xxx"),
  ],
)
def test_a_wrong_value_is_named_by_its_path(path, value, message):
  found = made()
  container, name = place(found, path)
  container[name] = value
  assert message in refusal(found)
  assert len(refusal(found)) < 150


def fields(form, prefix=''):
  """Dotted paths of every field, rows taken as rows that did not fail."""
  if isinstance(form, (tuple, list)):
    yield from fields(form[0], prefix)
  elif callable(form) and not isinstance(form, type):
    yield from fields(form({}), prefix)
  elif isinstance(form, dict):
    for name, one in form.items():
      yield f'{prefix}{name}'
      yield from fields(one, f'{prefix}{name}.')


FIELDS = list(fields(schema.SCHEMA))


@pytest.mark.parametrize('path', FIELDS)
def test_a_missing_field_is_named(path):
  path = re.sub(r'^(results|scaling|quality\.runs)\.', r'\1[0].', path)
  found = made()
  container, name = place(found, path)
  del container[name]
  assert refusal(found) == f'{path} is missing.'


def test_an_unknown_field_is_named_with_the_nearest():
  found = made()
  found['results'][0]['timing']['p_50'] = 1.0
  assert refusal(found) == (
    "results[0].timing.p_50 is unknown: did you mean 'p50'?"
  )
  assert refusal([]) == 'The report is []; it must be an object.'


def test_the_page_explains_every_field_and_no_other():
  assert conftest.explained_fields('benchmark_report.md') == sorted(FIELDS)
