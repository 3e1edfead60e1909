"""Several runs, one after the other."""

import ml_collections
import pytest

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.training import loop
from skipnet_jax.training import study


@pytest.fixture
def variants(smoke, drawn):
  config = smoke(
    {
      'train.epochs': 1,
      'model.base_width': 2,
      'model.repetitions': (1,) * 7,
      'model.dropout': 0.0,
      'data.augment.flip': False,
      'data.augment.rotation': 0.0,
      'data.augment.shear': 0.0,
      'data.augment.warp': 0.0,
    }
  )
  config.variants = ml_collections.ConfigDict(
    {'with': {}, 'without': {'model': {'short_skips': False}}}
  )
  return config_checks.variants(config)


def test_finished_runs_are_skipped(variants, tmp_path, monkeypatch):
  trained = []
  real = loop.train_and_evaluate

  def train(config, path):
    trained.append(path.name)
    return real(config, path)

  monkeypatch.setattr(loop, 'train_and_evaluate', train)
  folders = study.train(variants, tmp_path)
  assert folders == [tmp_path / 'with', tmp_path / 'without']
  assert trained == ['with', 'without']
  # One is cut off: it alone is trained again.
  (tmp_path / 'without/summary.json').unlink()
  study.train(variants, tmp_path)
  assert trained == ['with', 'without', 'without']
  # More epochs are asked for: both go on.
  for config in variants.values():
    config.train.epochs = 2
  study.train(variants, tmp_path)
  assert trained[3:] == ['with', 'without']


def test_a_run_of_another_config_is_refused_before_any_training(
  variants, tmp_path, monkeypatch
):
  loop.train_and_evaluate(variants['without'], tmp_path / 'without')
  monkeypatch.setattr(loop, 'train_and_evaluate', None)
  variants['without'].optim.learning_rate = 0.5
  with pytest.raises(errors.InputError, match='learning_rate'):
    study.train(variants, tmp_path)


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('data.crop', 1024, 'data.crop'),
    ('model.slices', 99, 'slices'),
    ('train.init_from', '/nowhere/run', '/nowhere/run'),
    ('parallel.devices', 999, 'devices'),
  ],
)
def test_a_run_that_cannot_start_is_refused_before_any_training(
  variants, tmp_path, monkeypatch, field, value, words
):
  monkeypatch.setattr(loop, 'train_and_evaluate', None)
  variants['without'].update_from_flattened_dict({field: value})
  with pytest.raises(errors.InputError, match=words):
    study.train(variants, tmp_path)


def test_one_network_is_no_comparison(smoke, tmp_path):
  with pytest.raises(errors.InputError, match='1 network'):
    study.train(config_checks.variants(smoke()), tmp_path)
  assert not list(tmp_path.iterdir())


def test_each_network_may_have_several_seeds(variants):
  several = study.with_seeds(variants, 2)
  assert {name: config.seed for name, config in several.items()} == {
    'with': 0,
    'with_seed_1': 1,
    'without': 0,
    'without_seed_1': 1,
  }
  assert study.with_seeds(variants, 1) == variants
