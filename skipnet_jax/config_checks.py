"""Checks a config before it is used; see `config` for its fields."""

from collections.abc import Callable, Mapping
import json
import operator
import re
from typing import Any

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import errors

ConfigDict = ml_collections.ConfigDict

# The lowest value of each of these fields.
_LOWEST = {
  0: (
    *('seed', 'data.size', 'data.crop', 'data.border_weight', 'data.widen'),
    *('data.series', 'data.channel'),
    *('data.augment.rotation', 'data.augment.shear', 'data.augment.warp'),
    *('data.augment.elastic', 'data.augment.contrast', 'data.augment.scale'),
    *('data.augment.brightness', 'data.augment.noise', 'data.augment.blur'),
    *('optim.l2', 'optim.warmup_epochs', 'optim.cooldown_epochs'),
    *('train.steps_per_epoch', 'train.steps_per_call'),
    *('train.adversarial', 'parallel.devices'),
    *('log.sample_every', 'log.samples'),
  ),
  1: (
    *('optim.step_epochs', 'optim.accumulate', 'train.batch_size'),
    *('train.epochs', 'train.checkpoint_every', 'parallel.num_processes'),
  ),
  2: ('data.slices',),
}
# Of a variant; its run's folder has this name too.
_VARIANT = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}')
# Devices count in int32, and the random keys take no larger seed.
_LIMIT = 2**31
# Beyond it or its inverse, float32 has hardly any numbers.
_HUGE = 1e30
# Pixels over which an image is blurred or a border weighs.
_WIDTHS = (
  *('data.augment.elastic_sigma', 'data.augment.blur', 'data.border_sigma'),
)
_WIDEST = 1000
# Pixels of a side, and numbers in a list.
_LONGEST, _MOST_NUMBERS = 2**20, 1000
_POSITIVE = (
  *('optim.learning_rate', 'optim.discriminator_learning_rate'),
  *('optim.step_factor', 'optim.eps'),
  *('data.augment.elastic_sigma', 'data.border_sigma'),
)
_CHOICES = {
  'data.normalise': config_lib.NORMALISATIONS,
  'optim.name': config_lib.OPTIMIZERS,
  'optim.schedule': config_lib.SCHEDULES,
  'train.loss': config_lib.LOSSES,
  'train.kernels': config_lib.KERNELS,
  'parallel.mode': config_lib.MODES,
}


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
  bool: ((bool,), 'True or False'),
  int: ((int,), 'a whole number'),
  float: ((int, float), 'a number'),
  str: ((str,), 'text'),
  tuple: ((list, tuple), 'a list of values'),
  list: ((list, tuple), 'a list of values'),
}


def check_type(name: str, value: Any, default: Any) -> None:
  """Checks that a field's value is of the type of its default.

  Raises:
    InputError: it is of another; True and False are no numbers.
  """
  if isinstance(default, dict):
    fits, need = isinstance(value, dict), 'a section'
    if default:
      need += f' with the fields {", ".join(default)}'
  elif type(default) in _KINDS:
    types, need = _KINDS[type(default)]
    fits = isinstance(value, types) and (
      isinstance(value, bool) == isinstance(default, bool)
    )
  else:
    return
  if not fits:
    raise errors.InputError(f'{name} is {short(value)}; it must be {need}.')


def short(value: Any) -> str:
  """A value for a message, cut at 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _check_types(
  found: dict[str, Any], known: dict[str, Any], prefix: str = ''
) -> None:
  for name, default in known.items():
    if name in found:
      check_type(prefix + name, found[name], default)
      if isinstance(default, dict):
        _check_types(found[name], default, f'{prefix}{name}.')


def check_whole(config: ConfigDict) -> None:
  """Checks that no field of `get_default` is missing or of another type.

  The fields of the network are checked when it is built.

  Raises:
    InputError: one is, or a value is of a type that JSON cannot hold.
  """
  default = config_lib.get_default()
  try:
    _check_types(json.loads(config.to_json()), json.loads(default.to_json()))
    found = config_identity.to_flat(config)
  except TypeError as e:
    raise errors.InputError(
      f'The config has a value that cannot be saved as JSON ({e}): use numbers '
      'and words of Python.'
    ) from e
  except RecursionError as e:
    raise errors.InputError(
      'The config has sections in sections hundreds of levels deep: remove '
      'those that skipnet_jax/config.py does not have.'
    ) from e
  missing = [
    name for name in config_identity.to_flat(default) if name not in found
  ]
  if missing or 'model' not in config:
    raise errors.InputError(
      f'The config lacks {", ".join(missing[:3]) or "model"}: let get_config '
      'start from config.get_default() of skipnet_jax.'
    )


def validate(config: ConfigDict) -> None:
  """Checks every field as far as possible without data and devices.

  Raises:
    InputError: names the field, its value and the values that it can have.
  """
  if 'variants' in config:
    raise errors.InputError(
      f'This experiment compares {len(config.variants)} networks: run it with '
      'python -m skipnet_jax.gradflow.'
    )
  if 'benchmark' in config:
    raise errors.InputError(
      'This experiment is a benchmark: run it with '
      'python -m skipnet_jax.benchmark.'
    )
  check_whole(config)
  known = config_lib.get_default()
  names = [*known, *config_identity.to_flat(known)]
  for name in [*config, *config_identity.to_flat(config)]:
    if name not in names and not name.startswith('model.'):
      raise errors.InputError(
        f'Unknown config field {name!r}: {config_lib.nearest(name, names)}'
      )

  def require(field: str, fits: Callable[[Any], bool], need: str) -> None:
    value = operator.attrgetter(field)(config)
    try:
      fitting = fits(value)
    except (TypeError, AttributeError, OverflowError):  # Of another type.
      fitting = False
    if not fitting:
      raise errors.InputError(f'{field} is {short(value)}; it must be {need}.')

  t, d, p = config.train, config.data, config.parallel
  for field, choices in _CHOICES.items():
    require(field, choices.__contains__, f'one of {", ".join(choices)}')
  sources = ('auto', 'isbi2012', 'synthetic', 'stack')
  require(
    'data.source',
    lambda x: x in sources or x.startswith('tfds:'),
    f'one of {", ".join(sources)} or tfds:<name>',
  )
  if d.source == 'stack':
    require('data.image', bool, "the image stack's path")
    require(
      'data.label',
      lambda x: x and x != d.image,
      "the label stack's path, another one than data.image",
    )
  for low, fields in _LOWEST.items():
    for field in fields:
      require(field, lambda x: x >= low, f'at least {low}')
      if isinstance(operator.attrgetter(field)(known), float):
        require(field, lambda x: x < _HUGE, f'below {_HUGE:g}')
  for field, default in config_identity.to_flat(known).items():
    if type(default) is int:
      require(field, lambda x: x < _LIMIT, f'below {_LIMIT}')
  if d.source != 'stack':
    of_stack = ['image', 'label', 'series', 'channel']
    if not d.source.startswith('tfds:'):
      of_stack += ['label_kind', 'label_inverted']
    for field in of_stack:
      value = known.data[field]
      require(
        f'data.{field}',
        lambda x: x == value,
        f'{value!r} unless data.source is stack: it is {d.source!r} now',
      )
  for field in ('data.size', 'data.crop', 'data.widen'):
    require(field, lambda x: x <= _LONGEST, f'at most {_LONGEST} pixels')
  for field in _POSITIVE:
    require(field, lambda x: x > 0, 'above 0')
    require(
      field,
      lambda x: 1 / _HUGE < x < _HUGE,
      f'more than {1 / _HUGE:g} and below {_HUGE:g}',
    )
  for field in _WIDTHS:
    require(field, lambda x: x <= _WIDEST, f'at most {_WIDEST} pixels')
  steps = t.epochs * max(1, t.steps_per_epoch)
  require(
    'train.epochs',
    lambda x: steps < _LIMIT,
    f'less: {steps} steps are more than {_LIMIT - 1}',
  )
  for field in ('optim.warmup_epochs', 'optim.cooldown_epochs'):
    require(
      field, lambda x: x <= t.epochs, f'at most train.epochs, {t.epochs} now'
    )
  if config.optim.schedule == 'step' and not config.optim.step_at:
    require(
      'optim.step_epochs',
      lambda x: t.epochs // x <= _MOST_NUMBERS,
      f'larger: in {t.epochs} epochs, the rate falls at most {_MOST_NUMBERS} '
      'times',
    )
  require(
    'train.init_skip_mismatch',
    lambda skips: not skips or t.init_from,
    'False, or train.init_from must name a run',
  )
  least, most = config_lib.SMALLEST_PIXEL, config_lib.LARGEST_PIXEL
  require(
    'data.pixel_size',
    lambda x: x == 0 or least <= x <= most,
    f'in nanometres, from {least} to {most:.0f}, or 0 (unknown)',
  )
  for field in ('elastic_share', 'low_contrast'):
    require(f'data.augment.{field}', lambda x: 0 <= x <= 1, 'in 0..1')
  require('data.device_share', lambda x: 0 < x <= 1, 'above 0 and at most 1')
  for field in ('optim.decay', 'optim.momentum', 'optim.ema'):
    require(field, lambda x: 0 <= x < 1, 'at least 0 and below 1')
  for field in ('optim.step_at', 'train.auxiliary_at'):
    require(
      field,
      lambda x: (
        len(x) <= _MOST_NUMBERS
        and list(x) == sorted(set(x))
        and all(isinstance(n, int) and 1 <= n < 2**31 for n in x)
      ),
      f'at most {_MOST_NUMBERS} increasing whole numbers of epochs, the first '
      'at least 1',
    )
  count = len(t.auxiliary_at) + 1
  require(
    'train.auxiliary',
    # Below the largest number in float32.
    lambda x: len(x) == count and all(0 <= w < 1e38 for w in x),
    f'{count} weights, one more than train.auxiliary_at has epochs, each at '
    'least 0 and below 1e38',
  )
  require(
    'parallel.process_id',
    range(p.num_processes).__contains__,
    f'0 to {p.num_processes - 1} (parallel.num_processes - 1)',
  )
  if p.num_processes > 1 or p.coordinator:
    require(
      'parallel.mode',
      lambda x: x == 'sharded',
      'sharded if there are several processes',
    )
  if p.num_processes > 1:
    require(
      'parallel.coordinator',
      bool,
      'HOST:PORT of process 0, the same in every process',
    )
  if p.coordinator:
    require(
      'parallel.coordinator',
      _is_address,
      'auto, or HOST:PORT of process 0 with a port of 1 to 65535',
    )


def require_random_start(config: ConfigDict, what: str) -> None:
  """Refuses a warm start where `what`, in words, does not read it.

  Raises:
    InputError: `train.init_from` is set.
  """
  if config.train.init_from:
    raise errors.InputError(
      f'train.init_from is {config.train.init_from!r}, but {what} begins with '
      'random values: leave it out.'
    )


def require_same_data(
  config: ConfigDict, name: str, variant: ConfigDict, what: str
) -> None:
  """Refuses a variant with other data than the experiment's.

  Args:
    config: of the experiment.
    name: of the variant.
    variant: its whole config.
    what: what compares networks on one data set, in words.

  Raises:
    InputError: the variant changes a field of `data`, or the seed.
  """
  changed = config_identity.varied([config, variant])
  if any(field.split('.')[0] in ('data', 'seed') for field in changed):
    raise errors.InputError(
      f'The variant {name!r} changes data or seed, but {what} compares '
      'networks on one data set: change them in the experiment, for all '
      'variants.'
    )


def _is_address(text: str) -> bool:
  host, _, port = text.rpartition(':')
  # An IPv6 address stands in brackets.
  plain = r'\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]@]+'
  return text == 'auto' or bool(
    re.fullmatch(plain, host)
    and re.fullmatch('[0-9]{1,5}', port)
    and 1 <= int(port) <= 65535
  )


def variants(config: ConfigDict) -> dict[str, ConfigDict]:
  """The whole configs that an experiment compares, by name.

  `config.variants` maps a name to sections, fields and values. An experiment
  without it has itself as its only variant.

  Raises:
    InputError: a variant has an unknown field, or cannot be used.
  """
  if 'variants' not in config:
    validate(config)
    return {config.experiment or config.model.name: config}
  configs = {}
  if (
    not isinstance(config.variants, Mapping | ConfigDict) or not config.variants
  ):
    raise errors.InputError(
      f'config.variants is {" ".join(str(config.variants).split())[:80]}; it '
      'must be a name to '
      'changed sections, for at least one network.'
    )
  for name, changes in config.variants.items():
    if not _VARIANT.fullmatch(str(name)) or name == 'report':
      raise errors.InputError(
        f'The variant {short(name)} cannot name a folder: use letters, digits, '
        "'_', '-', '+' and '.', first a letter or a digit, and not 'report'."
      )
    if not isinstance(changes, Mapping | ConfigDict):
      raise errors.InputError(
        f'The variant {name!r} is {short(changes)}; it must be sections with '
        "fields, such as {'model': {'long_skips': False}}."
      )
    whole = config.copy_and_resolve_references()
    whole.unlock()
    del whole.variants
    whole.lock()  # Unknown fields raise an error.
    whole.experiment = name
    try:
      whole.update(changes)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
      problem = ' '.join(str(e.args[0]).split())
      raise errors.InputError(
        f'The variant {name!r} cannot be used ({problem[:200]}).'
      ) from e
    validate(whole)
    configs[name] = whole
  return configs
