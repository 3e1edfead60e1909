"""The rooms and the arrows between them, read from the imports."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'skipnet_jax'
MAINS = {'train', 'predict', 'evaluate', 'gradflow', 'benchmark', 'cli'}
MAINS |= {'__main__', 'export', 'command_line'}
# A room is a folder. It imports itself and the rooms of lower numbers; '' is
# what lies in none.
ROOMS = {
  '': 0,
  'data': 1,
  'models': 1,
  'scores': 1,
  'step': 2,
  'runs': 3,
  'prediction': 4,
  'analysis': 4,
  'training': 5,
  'evaluation': 5,
  'exporting': 5,
  'benchmarking': 6,
  'studies': 7,
}
# The names for notebooks, in the package's __init__.
API = 8
COMMANDS = 9


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


def folder(name):
  """The folder that a module lies in, within the package; '' for its own."""
  path = MODULES[name].relative_to(PACKAGE).parent
  return '.'.join(path.parts)


def rank(name):
  if not folder(name) and name.rpartition('.')[2] in MAINS:
    return COMMANDS
  return API if name == 'skipnet_jax' else ROOMS[folder(name).split('.')[0]]


MODULES = dict(modules())


def importers(library):
  return {
    name
    for name, path in MODULES.items()
    if any(i == library or i.startswith(f'{library}.') for i in imports(path))
  }


def imported_modules(name):
  """Modules of the package that one of them imports."""
  for imported in imports(MODULES[name]):
    if not imported.startswith('skipnet_jax'):
      continue
    while imported not in MODULES:
      imported = imported.rpartition('.')[0]
    yield imported


def test_every_folder_is_a_room_with_a_number():
  found = {
    path.name
    for path in PACKAGE.iterdir()
    if path.is_dir() and list(path.rglob('*.py'))
  }
  assert found == ROOMS.keys() - {''}


@pytest.mark.parametrize('name', sorted(MODULES))
def test_arrows_point_downwards(name):
  room = folder(name).split('.')[0]
  for imported in imported_modules(name):
    there = folder(imported).split('.')[0]
    same = there == room and rank(imported) == rank(name)
    assert same or rank(imported) < rank(name), f'{name} imports {imported}'


def test_no_folders_import_each_other_in_a_circle():
  arrows = {}
  for name in MODULES:
    if rank(name) >= API:
      continue
    here = arrows.setdefault(folder(name), set())
    here |= {folder(i) for i in imported_modules(name)} - {folder(name)}
  # Raises CycleError, which names the folders.
  graphlib.TopologicalSorter(arrows).prepare()


def test_the_scores_know_neither_networks_nor_training():
  for name in MODULES:
    if folder(name) == 'scores':
      assert not any(
        i.startswith(('jax', 'flax')) for i in imports(MODULES[name])
      )


@pytest.mark.parametrize(
  ('library', 'home'),
  [
    ('orbax', {'skipnet_jax.runs.checkpoint'}),
    (
      'tifffile',
      {
        'skipnet_jax.data.volume',
        'skipnet_jax.data.tiff_images',
        'skipnet_jax.data.tiff_stack',
      },
    ),
    ('tensorboardX', {'skipnet_jax.runs.run_log'}),
    ('jax2onnx', {'skipnet_jax.exporting.onnx_file'}),
    ('bioimageio', {'skipnet_jax.exporting.bioimage'}),
    (
      'tensorstore',
      {
        'skipnet_jax.data.chunk_store',
        'skipnet_jax.data.chunked_image',
        'skipnet_jax.data.ome_zarr',
        'skipnet_jax.data.ome_zarr_writer',
      },
    ),
  ],
)
def test_a_library_has_one_home(library, home):
  assert importers(library) == home


def test_torch_has_a_room_of_its_own():
  room = 'skipnet_jax.benchmarking.peer'
  assert all(name.startswith(room) for name in importers('torch'))


def test_tfds_stays_in_its_room_and_flags_in_the_mains():
  assert all(
    name.startswith('skipnet_jax.data.isbi2012_')
    for name in importers('tensorflow_datasets')
  )
  for library in ('absl.flags', 'absl.app', 'ml_collections.config_flags'):
    assert all(rank(name) == COMMANDS for name in importers(library))


def test_tensorflow_and_what_needs_it_are_nowhere():
  for library in ('tensorflow', 'clu', 'flax.training', 'pickle'):
    assert not importers(library)


def test_no_module_is_a_drawer():
  for name in MODULES:
    assert name.rpartition('.')[2] not in ('utils', 'helpers', 'common')


def test_the_package_is_imported_in_a_tenth_of_a_second():
  code = (
    'import sys, time; t = time.perf_counter(); import skipnet_jax; '
    'print(time.perf_counter() - t); '
    "assert not {'jax', 'numpy', 'absl', 'ml_collections'} & set(sys.modules)"
  )
  seconds = []
  for _ in range(3):
    done = subprocess.run(
      [sys.executable, '-c', code],
      capture_output=True,
      text=True,
      check=True,
      cwd=ROOT,
    )
    seconds.append(float(done.stdout))
  assert min(seconds) < 0.1
