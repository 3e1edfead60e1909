"""Loads and checks a user's own network, named `my_package.nets:MyNet`.

Whatever makes it unusable is reported in one sentence.
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
# Libraries whose classes are often given instead of a Network.
_KINDS = {
  'flax.nnx': 'a Flax NNX module',
  'equinox': 'an Equinox module',
  'haiku': 'a Haiku module',
  'torch': 'a PyTorch module',
  'flax.linen': 'a plain Linen module',
}
# The collections of variables that a training step supports.
_COLLECTIONS = {'params', 'batch_stats', 'gates'}


def load(name: str) -> type[network.Network]:
  """Imports the network `module:Class` from the current folder or sys.path.

  Raises:
    InputError: the network does not exist or cannot be used.
  """
  path, _, attribute = name.partition(':')
  if not all(part.isidentifier() for part in [*path.split('.'), attribute]):
    raise errors.InputError(
      f'model.name is {name!r}; a network of your own must be named by module '
      'and class, such as my_package.nets:MyNet.'
    )
  # Python adds the directory for `python -m`, but not for other commands.
  if not {'', os.getcwd()} & set(sys.path):
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(path)
  except Exception as e:
    problem = f'its module cannot be imported: {_in_one_line(e, path)}.'
    if isinstance(e, ModuleNotFoundError) and f'{path}.'.startswith(
      f'{e.name}.'
    ):
      problem = (
        f'there is no module {e.name} in {os.getcwd()} or on sys.path: run the '
        'command in the folder that contains it, or add that folder to '
        'PYTHONPATH.'
      )
    raise errors.InputError(f'model.name is {name!r}, but {problem}') from e
  if not hasattr(module, attribute):
    classes = [n for n, x in vars(module).items() if isinstance(x, type)]
    raise errors.InputError(
      f'model.name is {name!r}, but {module.__file__} has no {attribute}: '
      f'{config_lib.nearest(attribute, classes)}'
    )
  kind = getattr(module, attribute)
  if not (isinstance(kind, type) and issubclass(kind, network.Network)):
    raise errors.InputError(
      f'model.name is {name!r}, which is {_describe(kind)}: write it as a '
      f'Linen subclass of {_BASE}.'
    )
  _check_class(name, kind)
  return kind


def _describe(found: Any) -> str:
  if not isinstance(found, type):
    return f'an object of type {type(found).__name__}, not a class'
  homes = [base.__module__ for base in found.__mro__]
  for library, kind in _KINDS.items():
    if any(f'{home}.'.startswith(f'{library}.') for home in homes):
      return kind
  return 'a class, but not a network'


def _check_class(name: str, kind: type[network.Network]) -> None:
  for field in network.fields(kind):
    default = field.default
    values = default if isinstance(default, tuple) else (default,)
    if not all(isinstance(x, bool | int | float | str) for x in values):
      problem = f'the default {default!r}'
      if default is dataclasses.MISSING:
        problem = 'no plain default'
      raise errors.InputError(
        f'model.name is {name!r}, and its field {field.name} has {problem}; '
        'config.json can only hold a bool, a number, a string or a tuple of '
        'these.'
      )
  multiple = kind.size_multiple
  if not isinstance(multiple, int) or multiple < 1:
    raise errors.InputError(
      f'model.name is {name!r}, and its size_multiple is {multiple!r}; it must '
      'be a whole number of at least 1.'
    )


def _in_one_line(e: Exception, home: str) -> str:
  """An exception in one line, with its last position in the module `home`."""
  file = home.replace('.', os.sep) + '.py'
  where = ''
  for frame in traceback.extract_tb(e.__traceback__):
    if frame.filename.endswith(file):
      where = f' at {os.path.basename(frame.filename)}:{frame.lineno}'
  lines = str(e).strip().splitlines() or ['']
  return f'{type(e).__name__}{where}, {lines[0][:200].rstrip(".:")}'


@functools.lru_cache(8)
def check(model: network.Network) -> None:
  """Checks a network's fields and calls it with shapes; compiles nothing.

  Raises:
    InputError: the call fails, or breaks the contract of `Network`.
  """
  kind = type(model)
  name = f'{kind.__module__}:{kind.__qualname__}'
  try:
    model.check()
    problem = _contract_violation(model)
  except errors.InputError:
    raise
  except Exception as e:
    text = _in_one_line(e, kind.__module__)
    raise errors.InputError(
      f'model.name is {name!r}, and its call fails ({text}): it must accept '
      f'(image, train, sample=False), see {_BASE}.'
    ) from e
  if problem:
    raise errors.InputError(
      f'model.name is {name!r}, and {problem}, see {_BASE}.'
    )


def _contract_violation(model: network.Network) -> str:
  """The part of the contract that the call breaks; '' if it breaks none."""

  def image(*sides: int, batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(model.input_shape(sides, batch), jnp.float32)

  y, x = model.init_size()
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    image(y, x, batch=1),
  )
  if 'params' not in variables or variables.keys() - _COLLECTIONS:
    return (
      f'its variables are {", ".join(sorted(variables)) or "none"}; they must '
      'be params, and batch_stats if it has BatchNorm'
    )
  for path, leaf in jax.tree.leaves_with_path(variables):
    if leaf.dtype != jnp.float32:
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      return f'its variable {name} is {leaf.dtype}; it must be float32'
  images = image(y, 2 * x, batch=2)
  labels = jax.ShapeDtypeStruct((*images.shape[:3], 1), jnp.float32)
  for train, sample in ((True, False), (False, False), (False, True)):

    def call(v, image, label):
      return model.apply(
        v,
        image,
        train=train,
        sample=sample,
        **({'label': label} if model.adversarial and train else {}),
        rngs={'dropout': jax.random.key(0)},
        mutable=['batch_stats', 'gates'],
      )[0]

    outputs = jax.eval_shape(call, variables, images, labels)
    problem = _wrong_outputs(model, outputs, labels.shape, train)
    if problem:
      return problem
  return ''


def _wrong_outputs(
  model: network.Network, outputs: Any, shape: tuple[int, ...], train: bool
) -> str:
  wanted = ['logits', *(['normalised'] if model.normalises else [])]
  wanted += ['judged'] if model.adversarial and train else []
  if not isinstance(outputs, dict) or set(wanted) - outputs.keys():
    given = f'an object of type {type(outputs).__name__}'
    if isinstance(outputs, dict):
      given = f'a dict of {", ".join(map(str, outputs)) or "nothing"}'
    elif hasattr(outputs, 'shape'):
      given = 'an array'
    return (
      f'its call returns {given}; it must return a dict of '
      f'{" and ".join(wanted)}'
    )
  auxiliary = outputs.get('auxiliary', {})
  if not isinstance(auxiliary, dict):
    return f'its output auxiliary is a {type(auxiliary).__name__}, not a dict'
  judged = {'real', 'fake', 'fooled'}
  if 'judged' in wanted and set(outputs['judged']) != judged:
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
