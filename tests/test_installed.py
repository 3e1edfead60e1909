"""The installed package: its experiments, and the command `skipnet`."""

import importlib
import importlib.metadata
import pathlib
import shutil
import sys

from conftest import ROOT
import pytest

from skipnet_jax import __main__ as main
from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors

EXPERIMENTS = ROOT / 'experiments'


def test_the_wheel_has_the_experiments_and_the_command(monkeypatch):
  pytest.importorskip('setuptools')  # Python 3.12 has it no more.
  core = importlib.import_module('distutils.core')  # That of setuptools.
  monkeypatch.chdir(ROOT)
  built = core.run_setup('setup.py', stop_after='init')
  build_py = built.get_command_obj('build_py')
  build_py.ensure_finalized()
  found = {
    module: pathlib.Path(path)
    for package, module, path in build_py.find_all_modules()
    if package == 'skipnet_jax.experiments'
  }
  assert found == {
    path.stem: path.relative_to(ROOT) for path in EXPERIMENTS.glob('*.py')
  }
  (script,) = built.entry_points['console_scripts']
  point = importlib.metadata.EntryPoint(*script.split(' = '), 'console_scripts')
  assert point.name == environment.PROGRAMS[0]
  assert point.load() is main.main


def test_experiments_are_found_by_name_in_any_folder(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  # A file of the same name does not stand for it.
  (tmp_path / 'best').write_text('x = 1')
  here = config_lib.load_experiment('best', 'quick')
  by_file = config_lib.load_experiment(EXPERIMENTS / 'best.py', 'quick')
  assert here.experiment == 'best'
  assert config_identity.hash_of(here) == config_identity.hash_of(by_file)
  # Once installed, they lie within the package; `best` starts from another.
  package = tmp_path / 'skipnet_jax'
  shutil.copytree(
    EXPERIMENTS,
    package / 'experiments',
    ignore=shutil.ignore_patterns('results'),
  )
  monkeypatch.setattr(config_lib, '__file__', str(package / 'config.py'))
  names = config_lib.experiment_names()
  assert names['best'] == package / 'experiments/best.py'
  assert names.keys() == {path.stem for path in EXPERIMENTS.glob('*.py')}
  installed = config_lib.load_experiment('best', 'quick')
  assert config_identity.hash_of(installed) == config_identity.hash_of(by_file)


def test_a_name_that_is_no_experiment_is_refused_with_the_nearest(
  monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.InputError, match="'shrt_only': did you mean 'sho"):
    config_lib.load_experiment('shrt_only')
  with pytest.raises(errors.InputError, match='another, such as unet'):
    config_lib.load_experiment('experiments/unet.py')
  # A file of one's own needs no suffix.
  shutil.copy(EXPERIMENTS / 'unet.py', 'mine')
  assert config_lib.load_experiment('mine').experiment == 'unet'


@pytest.mark.parametrize('word', [(), ('--help',), ('help',)])
def test_the_overview_names_every_command(command, word):
  ended = command('__main__', *word)
  assert ended.code == 0
  assert all(f'  skipnet {name} ' in ended.out for name in main.COMMANDS)
  assert 'skipnet train --config=long_short:quick' in ended.out
  commands = {path.stem for path in (ROOT / 'skipnet_jax').glob('*.py')}
  assert main.COMMANDS.keys() < commands


def test_an_unknown_command_is_refused_with_the_nearest(command):
  ended = command('__main__', 'predikt', '--workdir=a')
  assert ended.code == 2
  assert "Unknown command 'predikt': did you mean 'predict'?" in ended.err


def test_a_command_is_called_what_the_user_called_it(command, monkeypatch):
  ended = command('__main__', 'train', '--help')
  assert ended.code == 0
  assert 'skipnet train:\n  --config:' in ended.out
  ended = command('__main__', 'train', '--config=gradient_flow', '--workdir=a')
  assert ended.err.endswith('networks: run it with skipnet gradflow.\n')
  ended = command('train', '--config=gradient_flow', '--workdir=a')
  assert ended.err.endswith('run it with python -m skipnet_jax.gradflow.\n')
  for program in environment.PROGRAMS:
    monkeypatch.setattr(sys, 'argv', [f'{program} train', '--sizes=(1, 2)'])
    assert environment.command() == f"{program} train '--sizes=(1, 2)'"
