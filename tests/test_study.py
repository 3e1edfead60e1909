"""Several runs, one after the other."""

import ml_collections
import pytest

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.training import loop
from skipnet_jax.training import study
from skipnet_jax.training import summary


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


def test_every_seed_is_checked_before_the_first_run(variants):
  for config in variants.values():
    config.seed = 2**31 - 1
  with pytest.raises(errors.InputError, match='seed is 2147483648'):
    study.with_seeds(variants, 2)


@pytest.mark.parametrize('order', [1, -1])
def test_two_runs_of_one_name_are_refused(variants, order):
  both = {'a': variants['with'], 'a_seed_1': variants['without']}
  both = dict([*both.items()][::order])
  with pytest.raises(errors.InputError, match="name 'a_seed_1'"):
    study.with_seeds(both, 2)
  assert len(study.with_seeds(both, 1)) == 2


@pytest.mark.parametrize(
  'name', ['', '.', '..', '/tmp/a', 'a/b', 'report', '-a']
)
def test_a_name_that_is_no_folder_is_refused(smoke, name):
  config = smoke({'train.epochs': 1})
  config.variants = ml_collections.ConfigDict({'a': {}}, allow_dotted_keys=True)
  config.variants[name] = {}
  with pytest.raises(errors.InputError, match='cannot name a folder'):
    config_checks.variants(config)


def test_a_summary_of_another_kind_is_no_finished_run(tmp_path):
  for text, finished in (
    ('{"epochs": null}', False),
    ('{"epochs": "3"}', False),
    ('[]', False),
    ('{"epochs": 2}', False),
    ('{"epochs": 3}', True),
  ):
    (tmp_path / 'summary.json').write_text(text)
    assert summary.is_finished(tmp_path, 3) == finished
