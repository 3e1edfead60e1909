"""Every command of the docs starts, as it is written there.

Bash reads the commands out of the pages, with stubs in place of the programs.
Each command then runs in this process until it would train or measure: flags,
config, data set, folders and devices (there are eight) are checked as usual.
"""

import re
import shutil
import sys

from absl import app
from conftest import PAGES
from conftest import ROOT
import documented
import made_benchmarks
import made_runs
from made_volumes import write_ome
import numpy as np
import pytest
import stops

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax.data import volume

# Commands that no test can run.
NOT_RUN = {
  'bash tools/quickstart.sh': 'network; its commands are run',
  'bash tools/test.sh': 'network; it runs the tests themselves',
  'bash tools/test.sh tests/test_unet.py': 'the same',
  'bash tools/docs.sh': 'network; what it builds is read by no test',
}
# Commands of which only the flags are read, and why that is enough.
FLAGS_ONLY = {
  'tools/chaos.py': 'test_chaos runs it',
  'tools/em_membranes.py': 'hours; test_em_membranes runs its parts',
  'tools/hostile.py': 'minutes; test_bad_input and test_hostile_tiff',
  'tools/large_volume.py': 'minutes; test_volumes',
  'tools/paired_steps.py': 'another checkout; test_paired_steps',
  'tools/soak.py': 'hours; test_long_runs',
  'tools/notebooks.py': 'it writes the notebooks; test_notebooks',
  'tools/pictures.py': 'it runs predict; test_pretrained',
}
# Flags added to a command, as it cannot be stopped inside.
ADDED = {
  'tools/reference.py': ('--check', 'it writes the pages'),
  'tools/mutate.py': ('--list', 'test_mutate runs its parts'),
  'tests/plain_fc_resnet.py': ('--help', 'minutes; test_fc_resnet'),
}


def to_run():
  """The commands as parameters of a test."""
  parameters = []
  for words, place in documented.read()[0].items():
    text, marks = ' '.join(words), []
    if text in NOT_RUN:
      continue
    if 'torch' in text:
      marks.append(pytest.mark.peer)
    param = pytest.param(words, marks=marks, id=f'{place}: {text}')
    parameters.append(param)
  return parameters


def test_bash_understands_every_block():
  commands, complaints = documented.read()
  # For example a program that is not in STUBS.
  assert complaints == ''
  places = set(commands.values())
  assert {'README.md', 'docs/clusters.md', 'docs/results.md'} <= places
  files = {f'experiments/{path.name}' for path in documented.MODULES}
  assert files | {'experiments/README.md'} >= {
    place for place in places if place.startswith('experiments/')
  }


def test_every_program_and_experiment_names_its_command():
  texts = {' '.join(words) for words in documented.read()[0]}
  for path in (*documented.MODULES, *(ROOT / 'tools').glob('*.sh')):
    name, text = documented.name_of(path), path.read_text()
    shown = '# bash tools/' if path.suffix == '.sh' else "== '__main__'"
    if name.startswith('skipnet_jax/'):
      name = f'skipnet_jax.{path.stem}'.removesuffix('.__main__')
    if name.startswith('experiments/') or shown in text:
      assert any(name in text for text in texts), name


def test_the_tables_name_only_what_there_is():
  texts = {' '.join(words) for words in documented.read()[0]}
  assert texts >= NOT_RUN.keys()
  for program in (*ADDED, *FLAGS_ONLY):
    assert any(program in text for text in texts), program
  reasons = [reason for *_, reason in stops.STOPS]
  tables = (NOT_RUN, documented.OTHER_TESTS, reasons, FLAGS_ONLY, ADDED)
  for test in set(re.findall(r'test_\w+', str(tables))):
    assert (ROOT / 'tests' / f'{test}.py').exists(), test
  for page, test in documented.OTHER_TESTS.items():
    assert page in (ROOT / 'tests' / f'{test}.py').read_text()


def test_every_field_in_the_docs_is_one():
  benchmark = config_lib.load_experiment(ROOT / 'experiments/benchmark.py')
  known = {
    name
    for config in (config_lib.get_default(), benchmark)
    for name in config_identity.to_flat(config)
  }
  for name in models.MODELS:
    fields = models.model_config(name)
    known |= {f'model.{field}' for field in fields}
  for path in (*PAGES, *documented.MODULES):
    if documented.name_of(path) not in documented.OTHER_TESTS:
      found = re.findall(r'--config\.(\w+\.[\w.]*\w)', path.read_text())
      assert set(found) <= known, path


@pytest.fixture(scope='module')
def stack():
  return stops.stack()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two runs that differ in their skips."""
  return made_runs.make_pair(tmp_path_factory.mktemp('made'))


@pytest.fixture
def stopping(monkeypatch, stack):
  stops.put(monkeypatch, stack)


def make_inputs(folder, program, words, stack, made):
  """Writes the files and runs that a command reads."""
  shutil.copytree(
    ROOT / 'experiments',
    folder / 'experiments',
    ignore=shutil.ignore_patterns('results'),
  )
  one = any(word.startswith('--overlay=') and '.png' in word for word in words)
  small = stack[: 1 if one else 2, ::8, ::8]
  for word in words:
    flag, _, value = word.partition('=')
    if program == 'tools/reproduce.py' and flag in ('--image', '--labels'):
      (folder / value).parent.mkdir(parents=True, exist_ok=True)
      many = np.resize(stack[:, ::2, ::2], (231, 256, 256))
      volume.write_stack(folder / value, many)
    elif flag in ('--config.data.image', '--config.data.label'):
      volume.write_stack(folder / value, stack)
    elif flag == '--input' and value.endswith('.zarr'):
      write_ome(folder / value, np.tile(small, (4, 1, 1)))
    elif flag in ('--input', '--labels'):
      (folder / value).parent.mkdir(parents=True, exist_ok=True)
      volume.write_stack(folder / value, small)
    elif flag == '--prediction':
      volume.write_stack(folder / value, small.astype(np.float32) / 255)
    elif flag == '--runs':
      for source, name in zip(made, value.split(','), strict=True):
        shutil.copytree(source, folder / name)
    elif (
      flag == '--workdir' and program in ('predict', 'export', 'evaluate')
    ) or flag == '--init_from':
      shutil.copytree(made[0], folder / value)
  if '--compare' in words:
    at = words.index('--compare')
    for name in words[at + 1 : at + 3]:
      report = made_benchmarks.report(made_benchmarks.row())
      files.write_json(folder / name, report)


def read_flags(main, flags_parser):
  """Stands for absl's `app.run`."""
  assert callable(main)
  assert len(flags_parser(sys.argv)) == 1  # Nothing is left over.
  sys.exit(0)


@pytest.mark.parametrize('words', to_run())
def test_a_command_starts(
  words, command, stopping, stack, made, monkeypatch, tmp_path
):
  python, *words = words
  assert python in ('python', 'skipnet'), 'say in NOT_RUN why it is not run'
  if python == 'skipnet' or words[:2] == ['-m', 'skipnet_jax']:
    main, words = '__main__', words[2 if python == 'python' else 0 :]
    program = words[0] if words else main
  else:
    if words[0] == '-m':
      program = words[1].removeprefix('skipnet_jax.')
      words = words[2:]
    else:
      program, *words = words
    main = program
  if program in ADDED:
    words = [*words, ADDED[program][0]]
  words = [word.replace('=/shared/', f'={tmp_path}/shared/') for word in words]
  # The docs also name programs alone.
  bare = not words and program != 'tools/fetch_isbi.py'
  if bare or program in FLAGS_ONLY:
    monkeypatch.setattr(app, 'run', read_flags)
  make_inputs(tmp_path, program, words, stack, made)
  monkeypatch.chdir(tmp_path)
  ended = command(main, *words)
  assert ended.code == 0, ended
