"""The rooms and the arrows between them, read from the imports."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'skipnet_jax'
MAINS = {'train', 'predict', 'evaluate', 'gradflow', 'benchmark', 'cli'}
# A module may import its own room and the rooms of lower numbers.
ROOMS = {
  'config': 0,
  'data': 1,
  'models': 1,
  'training': 2,
  'evaluation': 3,
  'analysis': 3,
  'loop': 4,
  'benchmarking': 4,
  'studies': 5,
  'mains': 6,
}
# The score's arithmetic knows of no network.
PURE_SCORES = {'scores', 'thinning', 'pixels', 'counting'}
LOOP = {'loop', 'nonfinite', 'summary', 'study'}


def modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    yield name.removesuffix('.__init__'), path


def imports(path):
  """Full names of what a file imports, wherever in the file."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def room(name):
  parts = name.split('.')[1:]
  if len(parts) == 1 and parts[0] in MAINS:
    return 'mains'
  if parts[:1] == ['training'] and parts[-1] in LOOP:
    return 'loop'
  return parts[0] if parts and parts[0] in ROOMS else 'config'


MODULES = dict(modules())


def importers(library):
  return {
    name
    for name, path in MODULES.items()
    if any(i == library or i.startswith(f'{library}.') for i in imports(path))
  }


@pytest.mark.parametrize('name', sorted(MODULES))
def test_arrows_point_downwards(name):
  here = room(name)
  for imported in imports(MODULES[name]):
    if not imported.startswith('skipnet_jax'):
      continue
    while imported not in MODULES:
      imported = imported.rpartition('.')[0]
    there = room(imported)
    assert there == here or ROOMS[there] < ROOMS[here], (
      f'{name} ({here}) imports {imported} ({there})'
    )


def test_the_scores_know_neither_networks_nor_training():
  for name in PURE_SCORES:
    found = imports(MODULES[f'skipnet_jax.evaluation.{name}'])
    for imported in found:
      assert not imported.startswith(('jax', 'flax'))
      assert not imported.startswith(
        ('skipnet_jax.training', 'skipnet_jax.models')
      )


@pytest.mark.parametrize(
  ('library', 'home'),
  [
    ('orbax', {'skipnet_jax.training.checkpoint'}),
    ('tifffile', {'skipnet_jax.data.volume'}),
    ('tensorboardX', {'skipnet_jax.training.logging'}),
    (
      'torch',
      {
        f'skipnet_jax.benchmarking.torch_{name}'
        for name in (
          *('clmser', 'fusionnet', 'layers', 'network', 'networks', 'unet'),
          *('addn', 'fcn_lstm', 'polymtl', 'sfcnn', 'side_outputs'),
          *('agreement', 'losses', 'peer', 'training', 'weights'),
        )
      },
    ),
  ],
)
def test_a_library_has_one_home(library, home):
  assert importers(library) - {'skipnet_jax.data.tiff_checks'} == home


def test_tfds_stays_in_its_room_and_flags_in_the_mains():
  assert all(
    name.startswith('skipnet_jax.data.isbi2012_tfds')
    for name in importers('tensorflow_datasets')
  )
  for library in ('absl.flags', 'absl.app', 'ml_collections.config_flags'):
    assert all(room(name) == 'mains' for name in importers(library))


def test_tensorflow_and_what_needs_it_are_nowhere():
  for library in ('tensorflow', 'clu', 'flax.training', 'pickle'):
    assert not importers(library)


def test_no_module_is_a_drawer():
  for name in MODULES:
    assert name.rpartition('.')[2] not in ('utils', 'helpers', 'common')


def test_the_package_is_imported_in_under_a_second():
  code = (
    'import time; t = time.perf_counter(); import skipnet_jax; '
    'print(time.perf_counter() - t)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  assert float(done.stdout) < 1
