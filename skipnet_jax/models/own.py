"""A network of one's own, named by module and class: `my_package.nets:MyNet`.

Nothing of it is trusted: each way in which it cannot be used is one sentence.
"""

import dataclasses
import functools
import importlib
import os
import sys
import traceback
from typing import Any

import jax
import jax.numpy as jnp

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax.models import network

_BASE = 'skipnet_jax.models.network.Network'
# Where a class that is no Network comes from.
_KINDS = {
  'flax.nnx': 'a Flax NNX module',
  'equinox': 'an Equinox module',
  'haiku': 'a Haiku module',
  'torch': 'a PyTorch module',
  'flax.linen': 'a plain Linen module',
}
# Variables that a step hands on, and what may be sown.
_COLLECTIONS = {'params', 'batch_stats', 'gates'}


def load(name: str) -> type[network.Network]:
  """Imports a network from the current directory or from sys.path.

  Args:
    name: module and class, with a colon between them.

  Raises:
    InputError: it is not there, or cannot be used.
  """
  path, _, attribute = name.partition(':')
  if not all(part.isidentifier() for part in [*path.split('.'), attribute]):
    raise errors.InputError(
      f'model.name is {name!r}; a network of your own is named by module and '
      'class, as my_package.nets:MyNet.'
    )
  # Python has it there for `python -m`, but not for other commands.
  if not {'', os.getcwd()} & set(sys.path):
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(path)
  except Exception as e:
    if isinstance(e, ModuleNotFoundError) and f'{path}.'.startswith(
      f'{e.name}.'
    ):
      raise errors.InputError(
        f'model.name is {name!r}, but there is no module {e.name} in '
        f'{os.getcwd()} or on sys.path: give the command in the folder that '
        'holds it, or name that folder in PYTHONPATH.'
      ) from e
    raise errors.InputError(
      f'model.name is {name!r}, but its module cannot be imported: '
      f'{_told(e, path)}.'
    ) from e
  if not hasattr(module, attribute):
    classes = [n for n, x in vars(module).items() if isinstance(x, type)]
    raise errors.InputError(
      f'model.name is {name!r}, but {module.__file__} has no {attribute}: '
      f'{config_lib.nearest(attribute, classes)}'
    )
  found = getattr(module, attribute)
  if not (isinstance(found, type) and issubclass(found, network.Network)):
    raise errors.InputError(
      f'model.name is {name!r}, which is {_kind(found)}: write it as a Linen '
      f'subclass of {_BASE}.'
    )
  _check_class(name, found)
  return found


def _kind(found: Any) -> str:
  if not isinstance(found, type):
    return f'no class, but of type {type(found).__name__}'
  homes = [base.__module__ for base in found.__mro__]
  for library, kind in _KINDS.items():
    if any(f'{home}.'.startswith(f'{library}.') for home in homes):
      return kind
  return 'a class, but no network'


def _check_class(name: str, found: type[network.Network]) -> None:
  for field in network.fields(found):
    values = field.default
    if not isinstance(values, tuple):
      values = (values,)
    if not all(isinstance(x, bool | int | float | str) for x in values):
      given = 'no plain default'
      if field.default is not dataclasses.MISSING:
        given = f'the default {field.default!r}'
      raise errors.InputError(
        f'model.name is {name!r}, and its field {field.name} has {given}; '
        'config.json keeps a bool, a number, a string or a tuple of these.'
      )
  multiple = found.size_multiple
  if not isinstance(multiple, int) or multiple < 1:
    raise errors.InputError(
      f'model.name is {name!r}, and its size_multiple is {multiple!r}; it must '
      'be a whole number of at least 1.'
    )


def _told(e: Exception, home: str) -> str:
  """An exception in one line, with its last place in the module `home`."""
  file = home.replace('.', os.sep) + '.py'
  frames = traceback.extract_tb(e.__traceback__)
  places = [frame for frame in frames if frame.filename.endswith(file)]
  where = ''
  if places:
    where = f' at {os.path.basename(places[-1].filename)}:{places[-1].lineno}'
  lines = str(e).strip().splitlines() or ['']
  return f'{type(e).__name__}{where}, {lines[0][:200].rstrip(".:")}'


@functools.lru_cache(8)
def check(model: network.Network) -> None:
  """Checks a network's settings and its call, by shapes: compiles nothing.

  Raises:
    InputError: the call fails, or breaks the contract of `Network`.
  """
  kind = type(model)
  name = f'{kind.__module__}:{kind.__qualname__}'
  try:
    model.check()
    wrong = _broken(model)
  except errors.InputError:
    raise
  except Exception as e:
    told = _told(e, kind.__module__)
    raise errors.InputError(
      f'model.name is {name!r}, and its call fails ({told}): it must serve '
      f'(image, train, sample=False) as {_BASE} says.'
    ) from e
  if wrong:
    raise errors.InputError(
      f'model.name is {name!r}, and {wrong}, as {_BASE} says.'
    )


def _broken(model: network.Network) -> str:
  """Which part of the contract the call breaks; '' if none."""

  def image(*sides: int, batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(model.input_shape(sides, batch), jnp.float32)

  def init(x):
    return model.init(jax.random.key(0), x, train=False)

  y, x = model.least_sides()
  variables = jax.eval_shape(init, image(y, x, batch=1))
  if 'params' not in variables or variables.keys() - _COLLECTIONS:
    return (
      f'its variables are {", ".join(sorted(variables)) or "none"}; they must '
      'be params, and batch_stats where it has BatchNorm'
    )
  for path, leaf in jax.tree.leaves_with_path(variables['params']):
    if leaf.dtype != jnp.float32:
      return (
        f'its parameter {jax.tree_util.keystr(path, simple=True)} is '
        f'{leaf.dtype}; it must be float32'
      )
  given = image(y, 2 * x, batch=2)
  shape = (*given.shape[:3], 1)
  for train, sample in ((True, False), (False, False), (False, True)):
    more = {'train': train} if train else {'train': False, 'sample': sample}

    def call(v, image, label, more=more):
      if model.adversarial and more['train']:
        more = more | {'label': label}
      rngs = {'dropout': jax.random.key(0)}
      return model.apply(
        v, image, **more, rngs=rngs, mutable=['batch_stats', 'gates']
      )[0]

    outputs = jax.eval_shape(
      call, variables, given, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    wrong = _wrong_outputs(model, outputs, shape, train)
    if wrong:
      return wrong
  return ''


def _wrong_outputs(
  model: network.Network, outputs: Any, shape: tuple[int, ...], train: bool
) -> str:
  wanted = ['logits', *(['normalised'] if model.normalises else [])]
  wanted += ['judged'] if model.adversarial and train else []
  if not isinstance(outputs, dict) or set(wanted) - outputs.keys():
    given = f'of type {type(outputs).__name__}'
    if isinstance(outputs, dict):
      given = f'a dict of {", ".join(map(str, outputs)) or "nothing"}'
    elif hasattr(outputs, 'shape'):
      given = 'an array'
    return (
      f'its call returns what is {given}; it must be a dict of '
      f'{" and ".join(wanted)}'
    )
  auxiliary = outputs.get('auxiliary', {})
  if not isinstance(auxiliary, dict):
    return f'its output auxiliary is a {type(auxiliary).__name__}, not a dict'
  if 'judged' in wanted and set(outputs['judged']) != {
    'real',
    'fake',
    'fooled',
  }:
    return 'its output judged must be a dict of real, fake and fooled'
  maps = {name: outputs[name] for name in wanted if name != 'judged'}
  for name, x in (maps | auxiliary).items():
    if getattr(x, 'shape', None) != shape or x.dtype != jnp.float32:
      given = f'{list(x.shape)} {x.dtype}' if hasattr(x, 'shape') else repr(x)
      return (
        f'its output {name} is {given}; for an image '
        f'{[*shape[:3], model.slices]} it must be {list(shape)} float32'
      )
  return ''
