"""Builds networks, which are pure Linen modules, by name."""

from typing import Any

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.models import addn
from skipnet_jax.models import clmser
from skipnet_jax.models import cumedvision
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import fcn_lstm
from skipnet_jax.models import fusionnet
from skipnet_jax.models import m2fcn
from skipnet_jax.models import network
from skipnet_jax.models import own
from skipnet_jax.models import polymtl
from skipnet_jax.models import sfcnn
from skipnet_jax.models import unet

MODELS: dict[str, type[network.Network]] = {
  'fc_resnet': fc_resnet.FCResNet,
  'f_clmser_s': clmser.F_CLmser_S,
  'unet': unet.UNet,
  'fusionnet': fusionnet.FusionNet,
  'polymtl': polymtl.PolyMtl,
  'cumedvision': cumedvision.CUMedVision,
  'm2fcn': m2fcn.M2FCN,
  'fcn_lstm': fcn_lstm.FCNLSTM,
  'addn': addn.ADDN,
  'sfcnn': sfcnn.SFCNN,
}


def _lookup(name: str) -> type[network.Network]:
  config_checks.check_type('model.name', name, '')
  if ':' in name:
    return own.load(name)
  if name not in MODELS:
    raise errors.InputError(
      f'Unknown model {name!r}: {config_lib.nearest(name, list(MODELS))}'
    )
  if not MODELS[name].__module__.startswith(__name__):
    raise errors.InputError(
      f'The model {name!r} was added to models.MODELS, which other processes '
      'do not see: name it by module and class, such as my_package.nets:MyNet.'
    )
  return MODELS[name]


def model_config(name: str, **changes) -> ml_collections.ConfigDict:
  """The `model` section of a config: a network's fields with their defaults.

  The arguments are those of `make_model`.

  Raises:
    InputError: unknown name, or a network that cannot be used.
  """
  fields = {f.name: f.default for f in network.fields(_lookup(name))}
  return ml_collections.ConfigDict({'name': name, **fields, **changes})


def build_model(
  config: ml_collections.ConfigDict, axis_name: str | None = None
) -> network.Network:
  """Makes the network of a config's `model` section.

  Args:
    config: `name` and the network's fields.
    axis_name: mapped axis of a pmapped call, or None.

  Raises:
    InputError: unknown name or field, a value the network refuses, or a network
      of your own that breaks the contract of `network.Network`.
  """
  # JSON has lists, but a hashable module needs tuples.
  fields: dict[str, Any] = {
    k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
  }
  model = _lookup(fields.pop('name', ''))
  known = {f.name: f.default for f in network.fields(model)}
  for field, value in fields.items():
    if field in known:
      config_checks.check_type(f'model.{field}', value, known[field])
      continue
    if field in ('short_skips', 'long_skips'):
      raise errors.InputError(
        f'model.{field} is set, but {config.name} has no '
        f'{field.replace("_", " ")}: its fields are {", ".join(known)}.'
      )
    raise errors.InputError(
      f'Unknown config field model.{field}: {config_lib.nearest(field, known)}'
    )
  if ':' in config.name:
    own.check(model(**fields))
  module = model(**fields, axis_name=axis_name)
  module.check()
  return module


def make_model(name: str, **fields) -> network.Network:
  """Makes a network by name: `skipnet_jax.build_model`.

  Args:
    name: a key of `MODELS`, such as 'fc_resnet', or module and class of your
      own network, see `own.load`.
    **fields: the network's fields that differ from their defaults.

  Returns:
    A Linen module that maps `(image [b, y, x, slices] float32, train)` to a
    dict of outputs, see `network.Network`.

  Raises:
    InputError: unknown name or field, or a value the network refuses.

  Example:
    >>> import jax
    >>> import skipnet_jax
    >>> model = skipnet_jax.build_model('unet', base_width=4)
    >>> image = jax.ShapeDtypeStruct((1, 64, 64, 1), 'float32')
    >>> outputs, variables = jax.eval_shape(
    ...   lambda image: model.init_with_output(
    ...     jax.random.key(0), image, train=False
    ...   ),
    ...   image,
    ... )
    >>> outputs['logits'].shape
    (1, 64, 64, 1)
  """
  return build_model(model_config(name, **fields))
