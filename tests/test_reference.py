"""The reference pages are those of the code, and tell every field."""

import importlib.util

from absl import flags
import conftest
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import models


@pytest.fixture(scope='module')
def reference():
  path = conftest.ROOT / 'tools/reference.py'
  if 'check' in flags.FLAGS:  # Another test ran it as a command.
    delattr(flags.FLAGS, 'check')
  spec = importlib.util.spec_from_file_location('reference', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  # Another test may run it as a command.
  delattr(flags.FLAGS, 'check')
  return module


@pytest.mark.parametrize('name', ['config', 'commands'])
def test_the_pages_are_those_of_the_code(reference, name):
  text = getattr(reference, f'{name}_page')()
  page = conftest.ROOT / f'docs/reference_{name}.md'
  assert page.read_text() == text, 'run python tools/reference.py'


def test_every_field_is_told(reference):
  text = reference.config_page()
  names = list(config_identity.to_flat(config_lib.get_default()))
  for name, network in models.MODELS.items():
    names += [f'model.{field}' for field in models.model_config(name)]
    assert f'### `{name}`' in text, network
  for name in names:
    if name not in ('model.name', 'model.dtype'):
      assert f'| `{name}` |' in text


def test_every_flag_is_told(reference):
  text = reference.commands_page()
  for words in (
    '--pretrained',
    '--mc_samples',
    '--at_init',
    '--aot',
    '--kills',
  ):
    assert f'| `{words}` |' in text
