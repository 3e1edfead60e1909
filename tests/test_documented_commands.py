"""Every command of the docs starts, as it is written there.

Bash reads the commands out of the pages, with stubs in place of the programs.
Each command then runs in this process until it would train or measure: flags,
config, data set, folders and devices (there are eight) are checked as usual.
"""

import ast
import functools
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from absl import app
from conftest import PAGES
from conftest import ROOT
import made_benchmarks
import made_runs
from made_volumes import write_ome
import numpy as np
import pytest
import small_networks

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax.analysis import depth
from skipnet_jax.analysis.page import comparison
from skipnet_jax.benchmarking import children
from skipnet_jax.benchmarking import journal
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import rows
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.aot import aot
from skipnet_jax.benchmarking.peer import race
from skipnet_jax.benchmarking.suite import suite
from skipnet_jax.data import border_weight
from skipnet_jax.data import isbi2012
from skipnet_jax.data import pipeline
from skipnet_jax.data import volume
from skipnet_jax.exporting import artefact
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import inference
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.studies import speed
from skipnet_jax.training import loop
from skipnet_jax.training import prepare

# Commands that no test can run.
NOT_RUN = {
  'bash tools/quickstart.sh': 'network; its commands are run',
  'bash tools/test.sh': 'network; it runs the tests themselves',
  'bash tools/test.sh tests/test_unet.py': 'the same',
  'bash tools/docs.sh': 'network; what it builds is read by no test',
}
# Pages whose code and commands another test runs.
OTHER_TESTS = {
  'docs/own_model.md': 'test_own_model',
  'docs/own_loop.md': 'test_own_loop',
  'docs/export.md': 'test_export',
}
# Pages whose Python prints what they say; then the page whose two blocks
# have a test each.
PRINTING = ('docs/explain_scores.md', 'docs/tutorial_segment.md')
IN_PYTHON = 'docs/python.md'
# Where a command stops, and the test that runs what it would do there.
STOPS = (
  (loop, 'train_and_evaluate', 'test_loop; first the run is prepared'),
  (prepare, 'describe', 'test_cli; first the config is checked'),
  (inference.Predictor, '__call__', 'test_predict; it gives a constant'),
  (inference.Predictor, 'predict_slices', 'test_predict; the same'),
  (inference.Predictor, 'predict_windows', 'test_volumes; the same'),
  (inference.Predictor, 'compile', 'test_predict'),
  (artefact, 'write', 'test_export'),
  (edge_fit, 'of_run', 'test_edge_fit; as if edges were fitted'),
  (border_weight, 'border_weight', 'test_border_weight; it gives ones'),
  (isbi2012, 'download', 'test_isbi2012'),
  (comparison, 'at_init', 'test_gradflow'),
  (comparison, 'of_runs', 'test_gradflow'),
  (depth, '_train', 'test_depth'),
  (children, 'measure', 'test_children; rows are planned in this process'),
  (rows._Rows, 'measure_all', 'test_rows'),
  (workload.Bench, 'build', 'test_workload'),
  (pipeline.Pipeline, 'plan', 'test_pipeline'),
  (aot, 'predict', 'test_aot'),
  (race, 'race', 'test_torch_peer; first the config is checked'),
  (suite, 'run', 'test_accelerator_suite'),
  (speed, 'measure', 'test_speed'),
)
# Commands of which only the flags are read, and why that is enough.
FLAGS_ONLY = {
  'tools/chaos.py': 'test_chaos runs it',
  'tools/em_membranes.py': 'hours; test_em_membranes runs its parts',
  'tools/hostile.py': 'minutes; test_bad_input and test_hostile_tiff',
  'tools/large_volume.py': 'minutes; test_volumes',
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
# Words that stand for a value.
PLACEHOLDERS = {'--config=...': '--config=experiments/long_short.py'}
PLACEHOLDERS |= {'SECONDS': '5'}
PLACEHOLDERS |= {'--pixel_size=NANOMETRES': '--pixel_size=4.6'}

MODULES = sorted((ROOT / 'experiments').glob('*.py'))
MODULES += sorted((ROOT / 'tools').glob('*.py'))
MODULES += sorted((ROOT / 'skipnet_jax').glob('*.py'))
LANGUAGES = {'bash', 'yaml', 'python', 'text', ''}
STUBS = {
  **dict.fromkeys(
    ('python', 'pip', 'bash', 'skipnet'),
    'IFS=$\'\\x1f\'; echo "$PLACE$IFS${0##*/}$IFS$*" >> "$FOUND"',
  ),
  'srun': 'exec "$@"',
  'ssh': 'shift; exec $BASH -c "$*"',
}


def name_of(path):
  return str(path.relative_to(ROOT))


def blocks(page, language):
  """The code blocks of a page."""
  found = re.findall(r'^```(\w*)\n(.*?)^```', page.read_text(), re.M | re.S)
  assert {name for name, _ in found} <= LANGUAGES, page
  return [text for name, text in found if name == language]


def inline(text):
  """The commands in a text, between backticks."""
  spans = re.findall(r'(?<!`)`(python [^`]+)`', text)
  return [' '.join(span.split()) for span in spans]


def of_page(page):
  """The scripts and commands of a page, as bash reads them."""
  prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  jobs = [
    command
    for block in blocks(page, 'yaml')
    # Lines that go on, of a scalar without quotes.
    for command in re.findall(r'- (exec .+)', re.sub(r'\n +(?=--)', ' ', block))
  ]
  return [*blocks(page, 'bash'), *jobs, *inline(prose)]


def of_module(path):
  """The commands in a module's docstring."""
  doc = ast.get_docstring(ast.parse(path.read_text())) or ''
  lines = re.sub(r'\\\n *', ' ', doc)
  found = re.findall(
    r'^(?:Command:|Usage:)? *((?:PYTHONPATH=\. )?python .*)$', lines, re.M
  )
  # A main also names other flags that go with it.
  main = f'python -m skipnet_jax.{path.stem} '
  others = [main + f for f in re.findall(r'`(--[^`]+=[^`]+)`', doc)]
  found += inline(doc) + (others if inline(doc) else [])
  # What is in brackets may be left out, but is right.
  return [re.sub(r'\[(--[^]]+)\]', r'\1', ' '.join(c.split())) for c in found]


def of_script(path):
  """The commands that a script of tools/ shows or runs."""
  text = re.sub(r'\\+\n *', ' ', path.read_text())
  shown = re.findall(r'^# .*(bash tools/\w+\.sh)', text, re.M)
  run = re.findall(r'\.venv/bin/(python -m skipnet_jax.*)', text)
  return [*shown, *(command.replace(' "$@"', '') for command in run)]


@functools.cache
def read():
  """Commands with the first file that has each; and what bash complained of."""
  texts = {page: of_page(page) for page in PAGES}
  texts |= {path: of_module(path) for path in MODULES}
  texts |= {p: of_script(p) for p in sorted((ROOT / 'tools').glob('*.sh'))}
  bash = shutil.which('bash')
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'bin').mkdir()
    (folder / 'skipnet_jax').mkdir()  # Where the docs go by `cd`.
    for program, body in STUBS.items():
      (folder / 'bin' / program).write_text(f'#!{bash}\n{body}\n')
      (folder / 'bin' / program).chmod(0o755)
    found = folder / 'found'
    found.touch()
    script = [
      f'(\nPLACE={name_of(path)}\n{text}\nwait\n)'
      for path, several in texts.items()
      if name_of(path) not in OTHER_TESTS
      for text in several
    ]
    ended = subprocess.run(
      [bash, '-c', '\n'.join(script)],
      cwd=folder,
      env={
        'PATH': str(folder / 'bin'),
        'FOUND': str(found),
        'PLACE': '',
        # Of the places that the docs leave to the user or a cluster.
        'workdir': 'runs/quick',
        'JOB_NAME': 'train',
        'JOB_COMPLETION_INDEX': '1',
        'SLURM_ARRAY_TASK_ID': '1',
      },
      capture_output=True,
      text=True,
      timeout=60,
    )
    # Sorted, as some run in the background.
    lines = sorted(found.read_text().splitlines())
  commands = {}
  for line in lines:
    place, *words = line.split('\x1f')
    words = [PLACEHOLDERS.get(word, word) for word in words]
    commands.setdefault(tuple(words), place)
  return commands, ended.stderr


def to_run():
  """The commands as parameters of a test."""
  parameters = []
  for words, place in read()[0].items():
    text, marks = ' '.join(words), []
    if text in NOT_RUN:
      continue
    if 'torch' in text:
      marks.append(pytest.mark.peer)
    param = pytest.param(words, marks=marks, id=f'{place}: {text}')
    parameters.append(param)
  return parameters


def test_bash_understands_every_block():
  commands, complaints = read()
  # For example a program that is not in STUBS.
  assert complaints == ''
  places = set(commands.values())
  assert {'README.md', 'docs/clusters.md', 'docs/results.md'} <= places
  files = {f'experiments/{path.name}' for path in MODULES}
  assert files | {'experiments/README.md'} >= {
    place for place in places if place.startswith('experiments/')
  }


def test_every_program_and_experiment_names_its_command():
  texts = {' '.join(words) for words in read()[0]}
  for path in (*MODULES, *(ROOT / 'tools').glob('*.sh')):
    name, text = name_of(path), path.read_text()
    shown = '# bash tools/' if path.suffix == '.sh' else "== '__main__'"
    if name.startswith('skipnet_jax/'):
      name = f'skipnet_jax.{path.stem}'.removesuffix('.__main__')
    if name.startswith('experiments/') or shown in text:
      assert any(name in text for text in texts), name


def test_the_tables_name_only_what_there_is():
  texts = {' '.join(words) for words in read()[0]}
  assert texts >= NOT_RUN.keys()
  for program in (*ADDED, *FLAGS_ONLY):
    assert any(program in text for text in texts), program
  reasons = [reason for *_, reason in STOPS]
  tables = (NOT_RUN, OTHER_TESTS, reasons, FLAGS_ONLY, ADDED)
  for test in set(re.findall(r'test_\w+', str(tables))):
    assert (ROOT / 'tests' / f'{test}.py').exists(), test
  for page, test in OTHER_TESTS.items():
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
  for path in (*PAGES, *MODULES):
    if name_of(path) not in OTHER_TESTS:
      found = re.findall(r'--config\.(\w+\.[\w.]*\w)', path.read_text())
      assert set(found) <= known, path


@pytest.fixture(scope='module')
def stack():
  """What stands in for the ISBI 2012 stacks: [30, 512, 512] uint8."""
  cells = np.random.default_rng(0).random((30, 8, 8)) > 0.4
  return np.kron(cells, np.ones((1, 64, 64))).astype(np.uint8) * 255


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two runs that differ in their skips."""
  return made_runs.make_pair(tmp_path_factory.mktemp('made'))


def check(config, workdir, *_):
  """All that a training does before it compiles."""
  config_checks.validate(config)
  prepared = prepare.prepare(config)
  workdir_lib.check(workdir, config, prepared.data.identity())


def check_described(config):
  """What is described may be a benchmark's."""
  if 'benchmark' in config:
    config, _ = plan.split(config)
  config_checks.validate(config)


def stop(name, first=lambda *_, **__: None):
  """A function that ends its command, after a check."""

  def call(*arguments, **keywords):
    first(*arguments, **keywords)
    raise errors.Stopped(f'Stopped before {name}.')

  return call


@pytest.fixture
def stopping(monkeypatch, stack):
  """Stops commands as STOPS says; the ISBI 2012 stacks are `stack`."""

  def plan_rows(config, processes, say, *_):
    del processes
    rows.measure_all(journal.Journal(None, config=config), say)

  def constant(self, image, tiling, advance=lambda: None):
    del self, tiling, advance
    return np.full(image.shape[-2:], 0.75, np.float32), None

  def slices(self, images, size, tiling, advance):
    del self, tiling, advance
    return (np.full((2, *size), 0.75, np.float32) for _ in images)

  def windows(self, images, tiling, size, window, advance):
    return slices(self, images, [*map(len, window)], tiling, advance)

  instead = {
    'train_and_evaluate': stop('training', check),
    'describe': stop('the table', check_described),
    '__call__': constant,
    'predict_slices': slices,
    'predict_windows': windows,
    'compile': lambda *_: None,
    'of_run': lambda *_: (None, {'slices': [], 'training_scores': {}}),
    'border_weight': lambda label, *_: np.ones(label.shape, np.float32),
    'download': lambda folder, *_, **__: folder,
    'race': stop('race', lambda config, **_: race.check_config(config)),
  }
  for owner, name, _ in STOPS:
    if owner is children:
      monkeypatch.setattr(owner, name, plan_rows)
    else:
      monkeypatch.setattr(owner, name, instead.get(name, stop(name)))
  monkeypatch.setattr(isbi2012, 'find', lambda *_: pathlib.Path())
  monkeypatch.setattr(isbi2012, 'load', lambda *_: (stack, stack))
  # tools/accelerator_suite.py sets them.
  for name in ('JAX_PLATFORMS', 'PYTHONPATH'):
    monkeypatch.setenv(name, os.environ.get(name, ''))
  before = signal.getsignal(signal.SIGTERM)  # tools/mutate.py sets it.
  yield
  signal.signal(signal.SIGTERM, before)


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


def python_blocks(page):
  return blocks(ROOT / page, 'python')


def test_python_is_run_somewhere():
  run = (*OTHER_TESTS, *PRINTING, IN_PYTHON)
  for page in PAGES:
    assert (name_of(page) in run) >= bool(blocks(page, 'python')), page
  assert len(python_blocks(IN_PYTHON)) == 2


@pytest.mark.parametrize('page', PRINTING)
def test_python_prints_what_the_page_says(
  page, stopping, monkeypatch, capsys, tmp_path
):
  monkeypatch.chdir(tmp_path)
  names = {}
  text = (ROOT / page).read_text()
  found = re.findall(r'^```(\w+)\n(.*?)^```', text, re.M | re.S)
  said = 0
  for (kind, code), after in itertools.pairwise([*found, ('', '')]):
    if kind == 'python':
      exec(code, names)
      printed = capsys.readouterr().out
      assert printed == (after[1] if after[0] == 'text' else '')
      said += bool(printed)
  assert said


def test_the_page_s_names_for_notebooks(monkeypatch, tmp_path, made, smoke):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(loop, 'train_and_evaluate', check)
  image, label, _ = np.random.default_rng(0).random((3, 2, 64, 64))
  names = {'config': smoke(), 'label': label > 0.5}
  names['image'] = image.astype(np.float32)
  start, rest = python_blocks(IN_PYTHON)[0].split('run = ')
  exec(start, names)
  shutil.copytree(made[0], tmp_path / 'runs/mine', dirs_exist_ok=True)
  exec(f'run = {rest}', names)
  assert names['probability'].shape == image.shape


def test_the_page_s_analysis_of_a_point():
  model = small_networks.LinearChain(depth=2)
  names = {
    'model': model,
    'variables': small_networks.draw(model, (2, 8, 8, 1)),
    'batch': small_networks.make_batch(8),
    'loss': small_networks.bce,
  }
  exec(python_blocks(IN_PYTHON)[1], names)
  assert names['found'].by_skip()
