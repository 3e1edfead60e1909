"""Configs: the checks of their values, and their identity."""

import sys

import numpy as np
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import models


def make():
  config = config_lib.get_default()
  config.model = models.model_config('fc_resnet')
  return config


def test_the_defaults_are_valid_and_the_papers():
  config = make()
  config_checks.validate(config)
  optim = config.optim
  assert (
    optim.name,
    optim.learning_rate,
    optim.decay,
    optim.eps,
    optim.l2,
  ) == (
    'rmsprop',
    1e-3,
    0.9,
    1e-8,
    1e-4,
  )
  augment = config.data.augment
  assert (augment.rotation, augment.shear, augment.warp) == (25, 0.41, 10)
  assert (config.train.epochs, config.train.batch_size) == (500, 5)
  assert config.model.dropout == 0.1


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('optim.name', 'rmsprob', 'one of rmsprop, sgd, adam, adamw'),
    ('optim.schedule', 'linear', 'one of constant'),
    ('optim.learning_rate', 0.0, 'above 0'),
    ('optim.eps', 0.0, r'must be above 0\.$'),
    ('optim.eps', float('nan'), r'must be above 0\.$'),
    ('optim.ema', 1.0, 'below 1'),
    ('optim.accumulate', 0, 'at least 1'),
    ('train.loss', 'mse', 'one of bce, dice'),
    ('train.batch_size', 0, r'must be at least 1\.$'),
    ('train.batch_size', 10**40, r'must be below 2147483648\.$'),
    ('train.epochs', -3, 'at least 1'),
    ('parallel.mode', 'pjit', 'one of jit, pmap, sharded'),
    ('parallel.num_processes', 2, 'sharded if there are several'),
    ('parallel.process_id', 1, '0 to 0'),
    ('data.source', 'isbi', 'one of auto'),
    ('data.source', 'stack', 'data.image is'),
    ('data.image', 'mine.tif', "'' unless data.source is stack: it is 'auto'"),
    ('data.channel', 2, '0 unless data.source is stack'),
    ('data.label_kind', 'instances', "'binary' unless data.source is stack"),
    ('data.channel', -1, 'at least 0'),
    ('data.augment.warp', -1.0, r'must be at least 0\.$'),
    ('data.augment.warp', float('inf'), r'must be below 1e\+30\.$'),
    ('data.augment.noise', 1e39, r'below 1e\+30'),
    ('data.augment.elastic_sigma', 1e7, 'at most 1000 pixels'),
    ('optim.eps', 1e-50, r'more than 1e-30 and below 1e\+30'),
    ('optim.learning_rate', 1e-60, r'more than 1e-30'),
    ('optim.l2', 1e39, r'below 1e\+30'),
    ('optim.cooldown_epochs', 10**6, 'at most train.epochs'),
    ('optim.warmup_epochs', 10**6, 'at most train.epochs'),
    ('data.device_share', 0.0, 'above 0'),
    ('seed', -1, 'at least 0'),
    ('train.init_skip_mismatch', True, 'train.init_from must name a run'),
  ],
)
def test_bad_values_are_refused_by_name(field, value, words):
  config = make()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(errors.InputError, match=words) as error:
    config_checks.validate(config)
  assert str(error.value).startswith(field.split('.')[0])


def test_several_processes_need_an_address():
  config = make()
  config.parallel.update(mode='sharded', num_processes=2)
  with pytest.raises(errors.InputError, match='HOST:PORT'):
    config_checks.validate(config)
  for address in (
    'auto',
    '127.0.0.1:1',
    'my-job-0.train:9876',
    '[fe80::1]:65535',
  ):
    config.parallel.coordinator = address
    config_checks.validate(config)


@pytest.mark.parametrize(
  'address',
  [
    *(
      'here',
      'here:',
      ':1',
      'here:0',
      'here:65536',
      'here:x',
      'here:-1',
      '::1:9',
    ),
    *('http://here:1', 'he re:1', 'me@here:1', '[here:1', 'here:1\n'),
  ],
)
def test_what_cannot_be_an_address_is_refused(address):
  config = make()
  config.parallel.update(mode='sharded', coordinator=address)
  with pytest.raises(errors.InputError, match='with a port of 1 to 65535'):
    config_checks.validate(config)


@pytest.mark.parametrize(
  ('name', 'words'),
  [('optim.learning_rat', 'learning_rate'), ('train.epoch', 'epochs')],
)
def test_unknown_fields_are_refused_with_the_nearest(name, words):
  config = make()
  section, field = name.split('.')
  with config[section].unlocked():
    config[section][field] = 1
  with pytest.raises(errors.InputError, match=f"{name}.*{words}'"):
    config_checks.validate(config)


def test_unknown_sections_are_refused():
  config = make()
  with config.unlocked():
    config.optm = 1
  with pytest.raises(errors.InputError, match=r"optm.*'optim'"):
    config_checks.validate(config)


def test_identity_leaves_out_what_a_run_may_continue_with():
  a, b = make(), make()
  b.parallel.mode = 'pmap'
  b.train.epochs = 900
  b.log.progress = False
  b.data.dir = b.data.image = b.data.label = '/elsewhere'
  assert config_identity.hash_of(a) == config_identity.hash_of(b)
  b.optim.learning_rate = 0.5
  b.model.base_width = 16
  assert config_identity.hash_of(a) != config_identity.hash_of(b)
  changed = config_identity.differences(
    config_identity.identity(a), config_identity.identity(b)
  )
  assert changed == [
    'model.base_width (32, now 16)',
    'optim.learning_rate (0.001, now 0.5)',
  ]


@pytest.mark.parametrize(
  ('field', 'value'), [('schedule', 'cosine'), ('cooldown_epochs', 2)]
)
def test_the_number_of_epochs_matters_to_a_rate_that_falls_at_the_end(
  field, value
):
  a, b = make(), make()
  a.optim[field] = b.optim[field] = value
  b.train.epochs = 900
  assert config_identity.hash_of(a) != config_identity.hash_of(b)


def test_presets_are_applied_and_unknown_ones_named():
  config = make()
  presets = {'paper': {}, 'quick': {'train.epochs': 3}}
  config_lib.pick_preset(config, 'quick', presets)
  assert config.train.epochs == 3
  with pytest.raises(
    errors.InputError, match=r"'quik' is unknown.*paper, quick"
  ):
    config_lib.pick_preset(config, 'quik', presets)


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('optim', None, 'optim is None; it must be a section with the fields name'),
    ('train', 7, 'train is 7; it must be a section with the fields loss'),
    ('model', [], r'model is \[\]; it must be a section'),
    ('data.augment', None, r'data\.augment is None; it must be a section'),
    ('train.epochs', True, 'True; it must be a whole number'),
    ('train.epochs', {'a': {}}, r"\{'a': \{\}\}; it must be a whole number"),
    ('train.epochs', '3', "'3'; it must be a whole number"),
    ('seed', 1.5, '1.5; it must be a whole number'),
    ('seed', None, 'None; it must be a whole number'),
    ('optim.eps', True, 'True; it must be a number'),
    ('data.augment.flip', 1, '1; it must be True or False'),
    ('data.image', None, 'None; it must be text'),
    ('train.auxiliary', {'a': 1}, "'a': 1}; it must be a list"),
    ('optim.step_at', list(range(1, 5000)), r'\.\.\.; it must be at most 1000'),
    ('train.epochs', 10**18, '0; it must be below 2147483648'),
    ('train.steps_per_call', 10**12, '0; it must be below 2147483648'),
    ('data.crop', 10**9, '0; it must be at most 1048576 pixels'),
  ],
)
def test_other_types_and_absurd_sizes(field, value, words):
  config = make()
  *sections, last = field.split('.')
  place = config
  for section in sections:
    place = place[section]
  with config.unlocked():
    del place[last]
    place[last] = value
  with pytest.raises(errors.InputError, match=words) as error:
    config_checks.validate(config)
  assert str(error.value).startswith(f'{field} is ')
  assert len(str(error.value)) < 300


def test_sections_in_sections():
  config, value = make(), {}
  for _ in range(900):
    value = {'a': value}
  with config.unlocked():
    config.extra = value
  # From Python 3.13 on, its JSON goes deeper, and such a config is no error.
  if sys.version_info >= (3, 13):
    config_checks.check_whole(config)
    return
  with pytest.raises(errors.InputError, match='hundreds of levels deep'):
    config_checks.check_whole(config)


def test_a_config_that_is_not_whole():
  config = make()
  with config.unlocked():
    del config.optim.momentum
  with pytest.raises(errors.InputError, match=r'lacks optim\.momentum: let'):
    config_checks.validate(config)
  with config.unlocked():
    del config.optim
  with pytest.raises(errors.InputError, match=r'lacks optim\.name, optim'):
    config_checks.validate(config)
  config = make()
  with config.unlocked():
    config.model.extra = np.zeros(3)
  with pytest.raises(errors.InputError, match='cannot be saved as JSON'):
    config_checks.validate(config)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'name': 'unett'}, "did you mean 'unet'"),
    ({'blocks': 'bottlenek'}, "did you mean 'bottleneck'"),
    ({'blocks': 'simple,basic'}, 'names 2 kinds'),
    ({'repetitions': (1, 2)}, 'give 7 numbers'),
    ({'repetitions': (1, 1, 1, 0, 1, 1, 1)}, 'at least 1'),
    ({'long_skip_projection': 'encoder'}, 'must be decoder or both'),
    ({'base_width': 0}, 'at least 1'),
    ({'dtype': 'float16'}, 'float32 or bfloat16'),
    ({'dropout': 1.0}, 'below 1'),
    ({'short_skip': False}, "did you mean 'short_skips'"),
    ({'base_width': 10**8}, 'at most 65535'),
    ({'repetitions': (10**6,) * 7}, 'at most 1000'),
    ({'repetitions': (1,) * 10**6}, r'\.\.\.; give 7 numbers'),
    ({'repetitions': 3}, 'a list of values'),
    ({'base_width': True}, 'a whole number'),
    ({'base_width': '32'}, 'a whole number'),
    ({'dropout': None}, 'a number'),
    ({'scan': 1}, 'True or False'),
    ({'name': 3}, r'model\.name is 3; it must be text'),
  ],
)
def test_models_that_cannot_be_built_are_refused(fields, words):
  config = models.model_config('fc_resnet')
  with config.unlocked():
    for name, value in fields.items():
      if name in config:
        del config[name]
      config[name] = value
  with pytest.raises(errors.InputError, match=words):
    models.build_model(config)
