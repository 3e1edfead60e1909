"""Runs that begin with the weights of another one, and what is refused.

That they resume bit for bit, without the other run: test_resume.
"""

import contextlib
import json
import shutil

import jax
import made_runs
import numpy as np
import pytest
import small_networks

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.runs import lock
from skipnet_jax.runs import pretrained
from skipnet_jax.runs import trained
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import loop
from skipnet_jax.training import warm_start


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A run that keeps averages, which differ from its last parameters."""
  folder = tmp_path_factory.mktemp('warm') / 'source'
  return made_runs.make_run(folder, **{'optim.ema': 0.9})


def config_of(source, **changes):
  changes = {'train.init_from': str(source), **changes}
  config = made_runs.small_config(**changes)
  config.train.batch_size = 2
  config.log.update(progress=False, tensorboard=False)
  config_checks.validate(config)
  return config


def assert_same(a, b):
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    np.testing.assert_array_equal(x, y, jax.tree_util.keystr(path))


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'sharded'])
def test_a_run_begins_with_what_predict_takes(source, tmp_path, mode, capsys):
  config = config_of(source, **{'optim.ema': 0.5, 'parallel.mode': mode})
  config.parallel.devices = 1 if mode == 'jit' else 2
  with loop.open_run(config, tmp_path / 'new') as run:
    state = run.prepared.parallel.unreplicate(run.state)
  taken = trained.open_run(source)
  assert_same(state.variables(), taken.variables)
  # The new averages begin there too.
  assert_same(state.averaged().variables(), taken.variables)
  assert state.step == 0
  kept = json.loads((tmp_path / 'new/config.json').read_text())['init_from']
  assert kept == {
    'path': str(source),
    'best_epoch': 1,
    'sha256': warm_start.fingerprint(taken.variables),
    'dataset': 'synthetic 6x64x64',
    'pixel_size': 0.0,
    'left_random': [],
    'unused': [],
  }
  printed = capsys.readouterr().out
  assert f'weights: from {source}, its best, after epoch 1' in printed
  assert 'random values' not in printed


def test_layers_that_do_not_fit_are_named_or_left_out(
  source, tmp_path, monkeypatch
):
  """A network with one block more in `across`, and no long skips."""
  changes = {
    'model.repetitions': (1, 1, 1, 3, 1, 1, 1),
    'model.long_skips': False,
  }
  config = config_of(source, **changes)
  training = build_lib.build(config, (64, 64), 2)
  load = (config, training, tmp_path / 'new')
  with pytest.raises(errors.InputError) as refused:
    warm_start.load(*load)
  message = str(refused.value)
  assert 'across/block_3/conv_1 (missing there)' in message
  assert 'model.long_skips (True, now False)' in message
  assert 'init_skip_mismatch=True' in message
  assert not (tmp_path / 'new').exists()
  config.train.init_skip_mismatch = True
  start = warm_start.load(*load)
  assert 'across/block_3/conv_1' in start.record['left_random']
  assert all(name.startswith('long_skip') for name in start.record['unused'])
  assert start.record['unused']
  shapes = training.abstract_state.variables()
  drawn = small_networks.fill(shapes, 5)
  monkeypatch.setattr(state_lib, 'draw', lambda model, seed: drawn)
  state = start.state(training, 0)
  taken = trained.open_run(source).variables['params']
  params = state.params.tree()
  assert_same(params['down_1'], taken['down_1'])
  assert_same(params['across']['block_2'], taken['across']['block_2'])
  new = drawn['params']['across']['block_3']
  assert_same(params['across']['block_3'], new)
  lines = warm_start.describe(start.record, 4.0).splitlines()
  assert lines[0].endswith('(pixel size unknown; now 4 nm a pixel)')
  assert 'across/block_3/norm_1, across/block_3/conv_1' in lines[1]
  assert 'long_skip_up_1' in lines[2]


def test_a_layer_of_another_shape_is_named_with_both(source, tmp_path):
  config = config_of(source, **{'model.base_width': 8})
  training = build_lib.build(config, (64, 64), 2)
  with pytest.raises(
    errors.InputError,
    match=r'down_1 \(bias \(4,\), here \(8,\)\).*, and \d+ more; the configs '
    r'differ in model.base_width \(4, now 8\)',
  ):
    warm_start.load(config, training, tmp_path / 'new')


def test_another_network_is_refused_even_if_layers_may_be_left_out(
  source, tmp_path
):
  config = config_of(source)
  other = small_networks.Normalised()
  training = build_lib.build(config, (64, 64), 2)
  training = build_lib.dataclasses.replace(training, model=other)
  config.train.init_skip_mismatch = True
  with pytest.raises(errors.InputError, match='no layer fits this one'):
    warm_start.load(config, training, tmp_path / 'new')


def test_the_input_must_be_normalised_as_before(source, tmp_path):
  config = config_of(source, **{'data.normalise': 'range'})
  with (
    pytest.raises(errors.InputError, match=r'config\.data\.normalise=slice'),
    loop.open_run(config, tmp_path / 'new'),
  ):
    pass
  assert not (tmp_path / 'new').exists()


def damage(folder):
  for file in (folder / 'checkpoints').rglob('*/state/**/*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
  ('spoil', 'said'),
  [
    (shutil.rmtree, r'source/config.json does not exist.* --workdir of a run'),
    (lambda x: shutil.rmtree(x / 'checkpoints'), 'no best checkpoint'),
    (damage, 'is damaged'),
  ],
)
def test_a_source_that_cannot_be_used_is_named(source, tmp_path, spoil, said):
  copied = shutil.copytree(source, tmp_path / 'source')
  spoil(copied)
  with pytest.raises(errors.InputError, match=f'train.init_from: .*{said}'):
    warm_start.load(config_of(copied), None, tmp_path / 'new')


def test_a_source_in_training_is_refused(source, tmp_path):
  copied = shutil.copytree(source, tmp_path / 'source')
  with (
    contextlib.closing(lock.claim(copied)),
    pytest.raises(
      errors.InputError, match=r'in use by process \d+ on .*: wait'
    ),
  ):
    warm_start.open_source(str(copied))
  # Reading keeps training out, and other readers in.
  with (
    lock.reading(copied),
    lock.reading(copied),
    pytest.raises(errors.InputError, match='is in use'),
  ):
    lock.claim(copied)
  lock.claim(copied).close()


def test_a_run_cannot_begin_with_itself(source):
  config = config_of(source)
  with pytest.raises(errors.InputError, match='--workdir of this run itself'):
    warm_start.load(config, None, source)


def test_what_begins_with_random_values_refuses_a_warm_start(source):
  config = config_of(source)
  with pytest.raises(errors.InputError, match='a benchmark begins with random'):
    config_checks.require_random_start(config, 'a benchmark')
  config.train.init_from = ''
  config_checks.require_random_start(config, 'a benchmark')


def test_a_pretrained_network_is_named_by_its_name(
  source, tmp_path, monkeypatch
):
  run = trained.open_run(source)
  pretrained.export(run, tmp_path / 'shipped/mine', 'my tissue', {})
  real = pretrained.open_pretrained
  monkeypatch.setattr(
    pretrained, 'open_pretrained', lambda name: real(name, tmp_path / 'shipped')
  )
  config = config_of('pretrained:mine')
  with loop.open_run(config, tmp_path / 'new') as begun:
    assert_same(begun.state.variables(), run.variables)
  kept = json.loads((tmp_path / 'new/config.json').read_text())['init_from']
  assert (kept['path'], kept['dataset']) == ('pretrained:mine', 'my tissue')
  config = config_of('pretrained:other')
  with (
    pytest.raises(errors.InputError, match=r"train\.init_from: .*'other'"),
    loop.open_run(config, tmp_path / 'refused'),
  ):
    pass
  assert not (tmp_path / 'refused').exists()
