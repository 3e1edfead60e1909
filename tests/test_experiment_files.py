"""Experiment files, and the variants of a config."""

import sys

import ml_collections
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import models


def test_an_experiment_can_build_on_another(tmp_path):
  base = tmp_path / 'base.py'
  base.write_text(
    'import ml_collections\n'
    'def get_config(preset):\n'
    '  return ml_collections.ConfigDict({"preset": preset})\n'
  )
  assert config_lib.load_experiment(base, 'x').preset == 'x'


HEAD = """from skipnet_jax import config as config_lib
def get_config(preset='x'):
  c = config_lib.get_default()
"""


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('x = 1', ' cannot be used (it has no function get_config)'),
    ('\ndef get_config(:', ', line 2 cannot be used (SyntaxError: '),
    (HEAD + '\n  c.lr.x', ', line 5 cannot be used (AttributeError: '),
    (HEAD + '  c.train.epochs = "many"', ', line 4 cannot be used (TypeError'),
    (HEAD + '  open("/no/file")', ', line 4 cannot be used (FileNotFound'),
    (HEAD + '  import no_such_module', ', line 4 cannot be used (ModuleNot'),
    (HEAD, ', line 2 cannot be used (get_config returned NoneType'),
    (
      'def get_config(p):\n  return {}',
      ', line 1 cannot be used (get_config r',
    ),
    (
      'def get_config(): pass',
      ' cannot be used (TypeError: get_config() takes',
    ),
    (b'x = "Gr\xf6\xdfe"', ', line 1 cannot be used (SyntaxError: '),
    (b'x = 1\0', ' cannot be used ('),
    ('import sys\nsys.exit(3)', ', line 2 cannot be used (SystemExit: 3'),
    (None, ' cannot be used (Is a directory)'),
  ],
)
def test_an_experiment_file_that_fails(tmp_path, text, words):
  path = tmp_path / 'own.py'
  if text is None:
    path.mkdir()
  else:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
  with pytest.raises(errors.InputError) as refusal:
    config_lib.load_experiment(path, 'x')
  sentence = str(refusal.value)
  assert sentence.startswith(f'The experiment file {path}{words}')
  assert sentence.endswith('such as long_short.')
  assert '\n' not in sentence


def with_variants(**variants):
  config = config_lib.get_default()
  config.experiment = 'study'
  config.model = models.model_config('fc_resnet')
  config.variants = ml_collections.ConfigDict(variants)
  return config


def test_variants_are_whole_configs():
  config = with_variants(
    deep={'model': {'repetitions': (9,) * 7}},
    slow={'optim': {'learning_rate': 1e-4}, 'model': {'long_skips': False}},
  )
  found = config_checks.variants(config)
  assert list(found) == ['deep', 'slow']
  assert [c.experiment for c in found.values()] == ['deep', 'slow']
  assert found['deep'].model.repetitions == (9,) * 7
  assert found['slow'].optim.learning_rate == 1e-4
  # Neither the other nor the experiment is changed.
  assert found['deep'].optim.learning_rate == config.optim.learning_rate == 1e-3
  assert 'variants' in config
  assert config_identity.varied(list(found.values())) == {
    'model.long_skips': [True, False],
    'model.repetitions': [[9] * 7, [3, 8, 10, 3, 10, 8, 3]],
    'optim.learning_rate': [1e-3, 1e-4],
  }


def test_an_experiment_without_variants_is_its_own():
  config = with_variants()
  del config.variants
  assert config_checks.variants(config) == {'study': config}


@pytest.mark.parametrize(
  'changes',
  [
    {'optim': {'learning_rat': 1}},
    {'optimizer': {'name': 'sgd'}},
    {'optim': {'learning_rate': 'fast'}},
  ],
)
def test_a_variant_of_unknown_or_wrong_fields_is_refused(changes):
  with pytest.raises(errors.InputError, match="variant 'bad'"):
    config_checks.variants(with_variants(good={}, bad=changes))


@pytest.mark.parametrize(
  ('variants', 'words'),
  [
    ({}, 'for at least one network'),
    ({'a': 1}, "variant 'a' is 1; it must be sections"),
    ({'a': {'train': 5}}, "variant 'a' cannot be used"),
    ({'a': {'nope': 1}}, "variant 'a' cannot be used"),
  ],
)
def test_variants_that_are_none(variants, words):
  config = with_variants(**variants)
  with pytest.raises(errors.InputError, match=words) as caught:
    config_checks.variants(config)
  assert len(str(caught.value)) < 400
  assert '\n' not in str(caught.value)


def test_variants_that_are_a_list():
  config = with_variants()
  del config.variants
  config.variants = [1]
  with pytest.raises(errors.InputError, match=r'config\.variants is'):
    config_checks.variants(config)


def test_an_experiment_may_have_a_dataclass(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(
    'from __future__ import annotations\n'
    'import dataclasses\n'
    'from skipnet_jax import config\n'
    '@dataclasses.dataclass\n'
    'class Size:\n'
    '  width: int = 3\n'
    'def get_config():\n'
    "  found = config.load_experiment('long_short', 'smoke')\n"
    '  found.model.base_width = Size().width\n'
    '  return found\n'
  )
  assert config_lib.load_experiment(path).model.base_width == 3
  assert 'experiments.own' not in sys.modules
