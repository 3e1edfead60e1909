"""A user's own networks: which are refused, and with which message."""

import itertools
import json
import sys

from conftest import ROOT
import jax
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import network
from skipnet_jax.runs import workdir

HEAD = """
import flax.linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
from skipnet_jax.models import layers
from skipnet_jax.models import network

class Good(network.Network):
  width: int = 2
  shape: tuple[int, ...] = (1, 2)
  size_multiple = 2
  minimum = {'width': 1}

  @nn.compact
  def __call__(self, image, train, sample=False):
    return self.outputs(layers.Conv(1, 1, name='classifier')(image))

  def outputs(self, x):
    return {'logits': x}
"""
SMOKE = f'--config={ROOT}/experiments/long_short.py:smoke'
NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes a module into the current directory, and gives its name."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])

  def write(text=''):
    name = f'nets_{next(NUMBERS)}'
    (tmp_path / f'{name}.py').write_text(HEAD + text)
    return name

  return write


def build(name, **fields):
  return models.build_model(models.model_config(name, **fields))


def test_its_fields_are_the_config_s(module):
  name = f'{module()}:Good'
  assert models.model_config(name, width=3).to_dict() == {
    'name': name,
    'dtype': 'float32',
    'width': 3,
    'shape': (1, 2),
  }
  model = build(name, width=3)
  assert isinstance(model, network.Network)
  assert (model.width, model.slices, model.dropout) == (3, 1, 0)
  assert build(name, shape=[1, 2]) == build(name)
  for changes, words in (
    ({'widht': 3}, "model.widht: did you mean 'width'"),
    ({'width': 0}, 'model.width is 0; it must be at least 1'),
    ({'dtype': 'float16'}, 'it must be float32 or bfloat16'),
  ):
    with pytest.raises(errors.InputError, match=words):
      build(name, **changes)
  with pytest.raises(errors.InputError, match='multiples of 2, the nearest'):
    model.check_size((63, 64))


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('nowhere.nets:Good', 'there is no module nowhere in'),
    ('skipnet_jax.nets:Good', 'there is no module skipnet_jax.nets in'),
    ('skipnet_jax:', 'named by module and class'),
    ('a b:Good', 'named by module and class'),
    ('good', 'Unknown model'),
    ('skipnet_jax.models.network:Network', 'Network is abstract'),
  ],
)
def test_names_without_a_network_are_refused(module, name, words):
  module()
  with pytest.raises(errors.InputError, match=words):
    build(name)


def test_it_is_initialised_with_sides_that_it_takes(module):
  name = module('class Large(Good):\n  size_multiple = 48')
  assert build(f'{name}:Large').init_size() == (96, 96)
  assert build(f'{name}:Good').init_size() == (64, 64)


# A class, and the message about it.
REFUSED = {
  'no such name': ('class Bat: pass', "has no Bad: did you mean 'Bat'"),
  'not imported': ('1 / 0', r'cannot be imported: ZeroDivisionError at nets_'),
  'not found within': ('import nothing_such', 'cannot be imported: ModuleNot'),
  'nnx': ('class Bad(nnx.Module): pass', 'which is a Flax NNX module'),
  'linen': ('class Bad(nn.Module): pass', 'which is a plain Linen module'),
  'equinox': (
    'class Module: __module__ = "equinox._module"\nclass Bad(Module): pass',
    'which is an Equinox module',
  ),
  'class': ('class Bad: pass', 'which is a class, but not a network'),
  'function': (
    'def Bad(): pass',
    'which is an object of type function, not a class',
  ),
  'instance': ('Bad = Good()', 'which is an object of type Good, not a class'),
  'no default': (
    'class Bad(Good):\n  depth: int',
    r'TypeError at nets_\d+.py:\d+, non-default',
  ),
  'default': (
    'class Bad(Good):\n  act: object = nn.relu',
    'its field act has the default',
  ),
  'multiple': (
    'class Bad(Good):\n  size_multiple = 0',
    'size_multiple is 0; it must be a whole number',
  ),
  'even slices': (
    'class Bad(Good):\n  slices = 2',
    'model.slices is 2; it must be odd',
  ),
}
# What `outputs` returns, given the logits x.
OUTPUTS = {
  'array': ('x', 'returns an array; it must return a dict of logits'),
  'list': ('[x]', 'of type list; it must return a dict of logits'),
  'no logits': ('{"map": x}', 'a dict of map; it must return a dict of logits'),
  'two channels': (
    '{"logits": jnp.concatenate([x, x], -1)}',
    r'logits is \[2, 64, 128, 2\] float32; for an image \[2, 64, 128, 1\] it '
    r'must be \[2, 64, 128, 1\] float32',
  ),
  'half a side': ('{"logits": x[:, ::2]}', r'logits is \[2, 32, 128, 1\]'),
  'bfloat16': (
    '{"logits": x.astype(jnp.bfloat16)}',
    r'logits is \[2, 64, 128, 1\] bfloat16',
  ),
  'auxiliary list': (
    '{"logits": x, "auxiliary": [x]}',
    'output auxiliary is a list, not a dict',
  ),
  'auxiliary': (
    '{"logits": x, "auxiliary": {"side": x[:, 1:]}}',
    r'its output side is \[2, 63, 128, 1\]',
  ),
  'raises': ('x @ jnp.ones((2, 2))', r'its call fails \(TypeError at nets_'),
  'size': (
    '{"logits": x * self.param("p", nn.initializers.ones, (1, *x.shape[1:]))}',
    r'its call fails \(ScopeParamShapeError',
  ),
  'cache': (
    '{"logits": x * self.variable("cache", "c", jnp.ones, ()).value}',
    'its variables are cache, params',
  ),
  'half': (
    '{"logits": x * self.param("p", nn.initializers.ones, (), jnp.bfloat16)}',
    r'its variable params\.p is bfloat16; it must be float32',
  ),
  'counter': (
    '{"logits": x * self.param("p", nn.initializers.ones, ()) + '
    'self.variable("batch_stats", "n", jnp.int32, 0).value.astype("float32")}',
    r'its variable batch_stats\.n is int32; it must be float32',
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_no_network(module, case):
  text, words = REFUSED[case]
  with pytest.raises(errors.InputError, match=words):
    build(f'{module(text)}:Bad')


@pytest.mark.parametrize('case', OUTPUTS)
def test_outputs_that_break_the_contract(module, case):
  value, words = OUTPUTS[case]
  if case == 'half':
    # Strict promotion, of the tests alone, would refuse the product.
    value = value.replace('x * self', 'x * 0 + self').replace(
      'bfloat16)}', 'bfloat16).astype(x.dtype)}'
    )
  name = module(
    f'class Bad(Good):\n  def outputs(self, x):\n    return {value}'
  )
  with pytest.raises(errors.InputError, match=words):
    build(f'{name}:Bad')


@pytest.mark.parametrize(
  ('field', 'words'),
  [
    ('normalises', 'must return a dict of logits and normalised'),
    ('adversarial', "unexpected keyword argument 'label'"),
  ],
)
def test_outputs_that_the_class_attributes_promise_are_required(
  module, field, words
):
  name = module(f'class Bad(Good):\n  {field} = True')
  with pytest.raises(errors.InputError, match=words):
    build(f'{name}:Bad')


def test_a_call_without_sample(module):
  name = module(
    'class Bad(Good):\n'
    '  @nn.compact\n'
    '  def __call__(self, image, train):\n'
    '    return {"logits": layers.Conv(1, 1)(image)}'
  )
  with pytest.raises(errors.InputError, match=r'TypeError, .*sample'):
    build(f'{name}:Bad')


def test_the_check_computes_nothing(module, capsys):
  name = module(
    'class Loud(Good):\n'
    '  def outputs(self, x):\n'
    '    jax.debug.callback(lambda: print("computed"))\n'
    '    return {"logits": x}'
  )
  build(f'{name}:Loud')
  jax.effects_barrier()
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['Goo'], "has no Goo: did you mean 'Good'"),
    (['Good', '--config.model.widht=3'], 'did you mean model.width?'),
    (['Good', '--config.model.width=0'], 'model.width is 0'),
    (['Good', '--config.data.size=63'], 'multiples of 2, the nearest is 64'),
  ],
)
def test_a_command_ends_in_one_sentence(command, module, arguments, words):
  kind, *others = arguments
  outcome = command(
    'train',
    SMOKE,
    f'--config.model.name={module()}:{kind}',
    '--workdir=run',
    *others,
  )
  assert outcome.code == 2
  assert outcome.err.startswith(('error: model.', 'error: Unk', 'error: The i'))
  assert words in outcome.err
  assert outcome.err.count('\n') == 1
  assert 'Traceback' not in outcome.err


def test_a_name_in_two_words_and_the_last_of_several(command, module):
  outcome = command(
    'train',
    SMOKE,
    '--config.model.name=unet',
    '--config.model.name',
    f'{module()}:Good',
    '--config.model.width=3',
    '--describe',
  )
  assert outcome.code == 0, outcome.err
  assert '1 convolutions, 2 parameters' in outcome.out


def test_an_experiment_may_name_one_and_leave_its_defaults(
  command, module, tmp_path
):
  name = module()
  (tmp_path / 'mine.py').write_text(
    'from skipnet_jax import config\n'
    'def get_config():\n'
    '  c = config.get_default()\n'
    f'  c.model.name = "{name}:Good"\n'
    '  c.data.update(source="synthetic", size=64, slices=10, valid="8-9")\n'
    '  return c\n'
  )
  outcome = command('train', '--config=mine.py', '--describe')
  assert outcome.code == 0, outcome.err
  outcome = command('train', '--config=mine.py', '--config.model.width=0')
  assert 'No --workdir given' in outcome.err


def test_a_network_that_no_other_process_finds(monkeypatch):
  class Mine(network.Network):
    pass

  monkeypatch.setitem(models.MODELS, 'mine', Mine)
  with pytest.raises(errors.InputError, match='other processes do not see'):
    models.model_config('mine')


def test_a_run_whose_module_is_gone_says_so(tmp_path):
  config = config_lib.get_default()
  config.model.name = 'long_gone.nets:Net'
  content = {
    'config': json.loads(config.to_json()),
    'dataset': {'name': 'x', 'fingerprint': 'y'},
  }
  (tmp_path / 'config.json').write_text(json.dumps(content))
  with pytest.raises(errors.InputError, match='no module long_gone in') as e:
    workdir.read_config(tmp_path)
  assert str(tmp_path / 'config.json') in str(e.value)
