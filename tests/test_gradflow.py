"""`python -m skipnet_jax.gradflow`: what it makes, and what it refuses."""

import csv

from conftest import ROOT
import made_runs
import numpy as np
import pytest

from skipnet_jax.analysis import measure
from skipnet_jax.runs import recorded

LONG_SHORT = f'--config={ROOT}/experiments/long_short.py:smoke'
# The same network, in a second or two.
TINY = (
  '--config.model.blocks=simple',
  '--config.model.base_width=2',
  '--config.model.repetitions=(1, 1, 1, 1, 1, 1, 1)',
)
EXPERIMENT = """
import pathlib
import ml_collections
from skipnet_jax import config as config_lib

def get_config(preset=''):
  config = config_lib.load_experiment(
    pathlib.Path({base!r}), 'smoke')
  config.model.blocks = 'simple'
  config.model.base_width = 2
  config.model.repetitions = (1,) * 7
  config.model.dropout = 0.0
  config.data.augment.update(rotation=0.0, shear=0.0, warp=0.0)
  config.experiment = 'two'
  config.log.tensorboard = config.log.progress = False
  config.log.critical_sharpness = True
  config.variants = ml_collections.ConfigDict({{
    'both': {{}},
    'long': {{'model': {{'short_skips': False}}, 'optim': {{'l2': 1e-5}}}},
  }})
  return config
"""


@pytest.fixture
def two(tmp_path):
  path = tmp_path / 'two.py'
  base = str(ROOT / 'experiments/long_short.py')
  path.write_text(EXPERIMENT.format(base=base))
  return f'--config={path}'


@pytest.fixture
def few_seeds(monkeypatch, drawn):
  monkeypatch.setattr(measure, 'SEEDS', (0, 1))
  # Shown and tested in test_report.
  monkeypatch.setattr(measure, 'lesions', lambda *_: None)
  monkeypatch.setattr(measure, 'sharpness', lambda *_: {})


def test_one_command_trains_compares_and_resumes(
  command, two, few_seeds, tmp_path
):
  workdir = tmp_path / 'study'
  arguments = (two, f'--workdir={workdir}')
  done = command('gradflow', *arguments)
  assert done.code == 0, done
  assert 'Training both (1 of 2' in done.out
  assert 'Training long (2 of 2' in done.out
  for words in ('least net change', 'model.short_skips', 'optim.l2', 'V_rand'):
    assert words in done.out
  page = workdir / 'report/report.html'
  assert f'report: {page}' in done.out
  text = page.read_text()
  # Nothing is left out of the page: both networks, and the warning.
  for words in ('both', 'long', 'SYNTHETIC DATA', 'Gradient flow: two'):
    assert words in text
  with (workdir / 'report/heat_map_net_change.csv').open() as file:
    rows = [r for r in csv.DictReader(file) if r['run'] == 'long']
  run = recorded.open_run(workdir / 'long')
  assert (run.curve('critical_sharpness_ratio') > 0).all()
  np.testing.assert_allclose(
    run.curve('critical_sharpness') * run.curve('learning_rate') / 2,
    run.curve('critical_sharpness_ratio'),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    [float(r['1']) for r in rows],
    run.flow['net_change'][0],
    rtol=1e-5,
  )
  # The same command again trains nothing, and makes the report anew.
  page.write_text(f'{text}old')
  again = command('gradflow', *arguments)
  assert again.code == 0, again
  assert 'Training' not in again.out
  assert page.read_text().endswith('</html>')

  # Other flags, same runs.
  folders = f'--runs={workdir / "both"},{workdir / "long"}'
  output = f'--output={tmp_path / "compared"}'
  refused = command('gradflow', folders, output)
  assert refused.code == 2
  assert 'optim.l2 (0.0001 and 1e-05)' in refused.err
  assert not (tmp_path / 'compared').exists()
  allowed = command('gradflow', folders, output, '--allow_differences')
  assert allowed.code == 0, allowed
  assert (tmp_path / 'compared/report.html').exists()
  third = command('gradflow', folders, output, '--allow_differences')
  assert third.code == 2
  assert '--overwrite' in third.err


def test_a_run_of_another_config_is_left_alone(command, two, tmp_path):
  (tmp_path / 'study').mkdir()
  folder = made_runs.make_run(tmp_path / 'study/long')
  text = (folder / 'config.json').read_text()
  done = command('gradflow', two, f'--workdir={tmp_path / "study"}')
  assert done.code == 2
  assert 'another config' in done.err
  assert (folder / 'config.json').read_text() == text
  assert not (tmp_path / 'study/both/config.json').exists()


def test_at_init_needs_no_training(command, few_seeds, tmp_path):
  output = tmp_path / 'init'
  done = command(
    'gradflow',
    LONG_SHORT,
    *TINY,
    '--at-init',
    f'--output={output}',
  )
  assert done.code == 0, done
  names = {path.name for path in output.iterdir()}
  for figure in ('gradient_norms', 'split', 'path_lengths', 'propagation'):
    assert {f'{figure}.png', f'{figure}.csv'} <= names
  assert 'heat_map_net_change.png' not in names
  assert 'Gradient at initialisation' in done.out
  with (output / 'propagation.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert {row['seed'] for row in rows} == {'0', '1'}
  assert all(float(row['gradient']) > 0 for row in rows)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ((), 'Give --config and --workdir'),
    (('--runs=a,b', LONG_SHORT), 'either --runs or --config'),
    (('--runs=a,b',), 'No --output given'),
    (('--runs=a,b', '--output=o', '--workdir=w'), '--workdir goes with'),
    (('--runs=a,b', '--output=o', '--at-init'), '--at_init goes with'),
    ((LONG_SHORT,), 'No --workdir given'),
    ((LONG_SHORT, '--at-init'), 'No --output given'),
    (
      (LONG_SHORT, '--workdir=w', '--allow_differences'),
      '--allow_differences goes with --runs',
    ),
    ((LONG_SHORT, '--workdir=w'), 'has 1 network'),
    (
      (
        *(LONG_SHORT, '--at-init', '--output=o'),
        '--config.parallel.coordinator=auto',
      ),
      'run in one: leave out parallel.coordinator',
    ),
    (('--config=nothing.py', '--workdir=w'), 'nothing.py cannot be used'),
    (('--runs=', '--output=o'), '--runs is given without a value'),
    (('--runs=,,', '--output=o'), '--runs is given without a value'),
    (('--runs=a', '--output=o'), 'names 1 run (a)'),
    (('--runs=a,b', '--output=o'), 'a/config.json does not exist'),
  ],
)
def test_refusals(command, tmp_path, monkeypatch, arguments, words):
  monkeypatch.chdir(tmp_path)
  done = command('gradflow', *arguments)
  assert done.code == 2, done
  assert words in done.err
  assert done.err.startswith('error: ')
  assert done.err.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_an_experiment_of_several_networks_is_for_this_command(
  command, two, tmp_path
):
  done = command('train', two, f'--workdir={tmp_path / "run"}')
  assert done.code == 2
  assert 'skipnet_jax.gradflow' in done.err


def test_a_sweep_over_depth_writes_its_page(command, two, tmp_path):
  path = tmp_path / 'two.py'
  depths = "ml_collections.ConfigDict({'repetitions': (1,), 'steps': 2})"
  text = path.read_text().replace(
    '  return config', f'  config.depths = {depths}\n  return config'
  )
  path.write_text(text)
  workdir = f'--workdir={tmp_path / "sweep"}'
  done = command('gradflow', two, workdir)
  assert done.code == 0, done
  assert 'Training by depth' in done.out
  report = tmp_path / 'sweep/report'
  with (report / 'depth.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['variant'] for row in rows] == ['both', 'long']
  assert all(float(row['loss_last']) > 0 for row in rows)
  assert 'SYNTHETIC DATA' in (report / 'report.html').read_text()
  # A sweep is no network to look at before training, nor one to train.
  refused = command('gradflow', two, '--at-init', f'--output={tmp_path}/o')
  assert refused.code == 2
  assert 'networks of one depth' in refused.err
  assert not (tmp_path / 'o').exists()
  trained = command('train', two, workdir)
  assert trained.code == 2
  assert 'skipnet_jax.gradflow' in trained.err


def test_a_variant_with_a_wrong_field_is_named(command, two, tmp_path):
  path = tmp_path / 'two.py'
  path.write_text(path.read_text().replace("'l2'", "'l_two'"))
  done = command('gradflow', two, f'--workdir={tmp_path / "study"}')
  assert done.code == 2
  assert "variant 'long'" in done.err
  assert 'l_two' in done.err
  assert not (tmp_path / 'study').exists()


def test_figures_have_colours_for_eight_networks(
  command, monkeypatch, tmp_path
):
  monkeypatch.setattr(recorded, 'open_runs', lambda *_, **__: [])
  networks = dict.fromkeys(range(9))
  monkeypatch.setattr(recorded, 'by_network', lambda runs: networks)
  done = command('gradflow', '--runs=a,b', f'--output={tmp_path}/o')
  assert done.code == 2
  assert '9 networks are too many' in done.err
  assert not list(tmp_path.iterdir())
