"""Building blocks of an experiment's config: defaults, presets, checks.

An experiment file has `get_config(preset)`, which calls `get_default`, sets
what differs, and picks one of its presets. Every field is documented here.
"""

import dataclasses
import difflib
import math
import pathlib
import runpy
from typing import Any

import ml_collections

from skipnet_jax import errors

ConfigDict = ml_collections.ConfigDict

LOSSES = ('bce', 'dice', 'bce_dice', 'smooth_l1')
MODES = ('jit', 'pmap', 'sharded')
OPTIMIZERS = ('rmsprop', 'sgd', 'adam', 'adamw')
SCHEDULES = ('constant', 'step', 'cosine')

# Presets that all systems share: seconds of training, and the budget under
# which they are compared on two CPU cores.
SMOKE = {
  'data.source': 'synthetic',
  'data.slices': 10,
  'data.size': 64,
  'data.crop': 0,
  'data.valid': '8-9',
  'train.batch_size': 4,
  'train.epochs': 2,
  'log.sample_every': 0,
}
BUDGET = {
  'data.crop': 256,
  'train.batch_size': 1,
  'train.epochs': 20,
  'log.sample_every': 0,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """The fields of `data.augment`: strength of each random transform."""

  flip: bool = True  # Horizontal and vertical, each with probability one half.
  rotation: float = 25.0  # Degrees, uniform in +-.
  shear: float = 0.41  # Radians, uniform in +-.
  # Pixels, standard deviation of the displacements of a 3x3 grid, interpolated
  # bicubically to every pixel.
  warp: float = 10.0
  # Quarter turns, each with probability one quarter; square examples only.
  rot90: bool = False
  # Pixels by which each pixel is displaced, uniform in +-, before a Gaussian
  # smooths that (and makes it small); 0: none.
  elastic: float = 0.0
  elastic_sigma: float = 15.0  # Pixels, of that Gaussian.
  elastic_share: float = 0.5  # Of the examples that are displaced.
  # Of the normalised image: its contrast times uniform 1 +- contrast, plus
  # uniform +- brightness for all of it, plus noise of this standard deviation
  # at each pixel.
  contrast: float = 0.0
  brightness: float = 0.0
  noise: float = 0.0

  def active(self) -> bool:
    """Whether anything moves at all."""
    exact = self.flip or self.rot90
    return bool(
      exact or self.rotation or self.shear or self.warp or self.elastic
    )


def get_default() -> ConfigDict:
  """The paper's training of any network: every field but `model`, documented.

  Returns:
    A ConfigDict; `model` is to be set by the experiment, from
    `models.model_config(name)`.
  """
  c = ConfigDict()
  c.experiment = ''  # The name that reports show.
  c.seed = 0  # The one seed: init, order, augmentation and dropout.
  c.model = ConfigDict()

  c.data = d = ConfigDict()
  # auto, isbi2012, synthetic, stack or tfds:<name>.
  d.source = 'auto'
  d.dir = ''  # Where the ISBI stacks lie; else $SKIPNET_DATA_DIR, the cache.
  d.image = ''  # source=stack: TIFF or folder of PNG slices.
  d.label = ''  # source=stack: the same with two values, the larger inside.
  d.slices = 30  # source=synthetic: number of slices.
  # Centre crop of every slice, in pixels; 0: whole slices.
  d.size = 0
  d.crop = 0  # Random crop of each training example, in pixels; 0: none.
  # Slices for training: 'rest' or a list such as '0-11,14'.
  d.train = 'rest'
  # Slices for validation: a list, 'random:5' (drawn by seed), or 'fold:2/6'
  # (the third of six contiguous folds).
  d.valid = '25-29'
  # Share of the device's memory that the data set may take; a larger one
  # stays on the host, memory-mapped.
  d.device_share = 0.25
  d.augment = ConfigDict(dataclasses.asdict(Augmentation()))
  # w0 of U-Net's pixel weights, which also balance the classes; 0: all alike.
  d.border_weight = 0.0
  d.border_sigma = 5.0  # Pixels, sigma of the same.
  # Pixels by which the membranes of training labels grow on either side.
  d.widen = 0

  c.optim = o = ConfigDict()
  o.name = 'rmsprop'
  o.learning_rate = 1e-3
  o.decay = 0.9  # rmsprop: of the squared gradients. adam: b2.
  o.momentum = 0.0  # sgd, rmsprop: momentum. adam: b1.
  o.eps = 1e-8
  # L2 on convolution kernels, coefficient of sum(w^2) in the loss (adamw:
  # decoupled weight decay).
  o.l2 = 1e-4
  o.schedule = 'constant'
  o.step_epochs = 200  # schedule=step: lr times step_factor every so often.
  o.step_at = ()  # schedule=step: at these epochs instead.
  o.step_factor = 0.1
  o.warmup_epochs = 0  # Linear, from zero.
  o.accumulate = 1  # Batches whose gradients are averaged for an update.
  o.ema = 0.0  # Decay of averaged parameters used for evaluation; 0: none.
  # Of a discriminator, where the network has one; it follows the schedule too.
  o.discriminator_learning_rate = 2e-4

  c.train = t = ConfigDict()
  t.loss = 'bce'
  # Weights of the loss of each auxiliary output, where the network has some:
  # from the first epoch on, and after each number of epochs in auxiliary_at.
  t.auxiliary = (1.0,)
  t.auxiliary_at = ()
  t.adversarial = 0.1  # Weight of what the discriminator says, if there is one.
  t.batch_size = 5  # Over all devices.
  t.epochs = 500
  # Steps in one compiled call; 0: one on a CPU, an epoch elsewhere.
  t.steps_per_call = 0
  t.checkpoint_every = 1  # Epochs.
  # GPU: the same command gives the same bits, at the price of speed. (A CPU
  # always does.)
  t.deterministic = False

  c.parallel = p = ConfigDict()
  p.mode = 'jit'
  p.devices = 0  # How many; 0: one for jit, all for pmap and sharded.
  # Several processes: host:port of process 0, or 'auto' where SLURM or a TPU
  # pod tells.
  p.coordinator = ''
  p.num_processes = 1
  p.process_id = 0

  c.log = g = ConfigDict()
  g.progress = True  # Progress bar, where the terminal shows one.
  g.tensorboard = True
  g.sample_every = 10  # Epochs between sample pictures; 0: at the end only.
  g.samples = 2  # Validation slices in them.
  return c


def load_experiment(path: pathlib.Path, preset: str) -> ConfigDict:
  """The config of an experiment file, which is Python and is executed.

  It lets an experiment change another one, one level deep:
  `load_experiment(pathlib.Path(__file__).with_name('long_short.py'), preset)`.
  """
  return runpy.run_path(str(path))['get_config'](preset)


def pick_preset(config: ConfigDict, preset: str, presets: dict) -> ConfigDict:
  """Applies one of an experiment's presets.

  Args:
    config: changed in place.
    preset: the name asked for, `--config=FILE:preset`.
    presets: name to a dict of dotted field and value.

  Raises:
    InputError: unknown preset.
  """
  if preset not in presets:
    raise errors.InputError(
      f'The preset {preset!r} is unknown; this experiment has '
      f'{", ".join(presets)}.'
    )
  config.update_from_flattened_dict(presets[preset])
  return config


def nearest(name: str, names: Any) -> str:
  """The sentence's end that names the closest of the known names."""
  close = difflib.get_close_matches(name, names, 1, 0.3)
  return f'did you mean {close[0]!r}?' if close else f'known: {list(names)}.'


def _require(ok: bool, field: str, value: Any, need: str) -> None:
  if not ok:
    raise errors.InputError(f'{field} is {value!r}; it must be {need}.')


def validate(config: ConfigDict) -> None:
  """Checks every field that can be judged without data and devices.

  Raises:
    InputError: naming the field, its value and what it may be.
  """
  known = get_default()
  if 'variants' in config:
    raise errors.InputError(
      f'This experiment compares {len(config.variants)} networks: give it to '
      'python -m skipnet_jax.gradflow.'
    )
  if 'benchmark' in config:
    raise errors.InputError(
      'This experiment says what to measure: give it to '
      'python -m skipnet_jax.benchmark.'
    )
  for section in config:
    if section not in known:
      raise errors.InputError(
        f'Unknown config field {section!r}: {nearest(section, list(known))}'
      )
    if section == 'model' or not isinstance(known[section], ConfigDict):
      continue
    for field in config[section]:
      if field not in known[section]:
        raise errors.InputError(
          f'Unknown config field {section}.{field}: '
          f'{nearest(field, list(known[section]))}'
        )
  o, t, d, p = config.optim, config.train, config.data, config.parallel
  for section, field, choices in (
    ('optim', 'name', OPTIMIZERS),
    ('optim', 'schedule', SCHEDULES),
    ('train', 'loss', LOSSES),
    ('parallel', 'mode', MODES),
  ):
    value = config[section][field]
    _require(
      value in choices,
      f'{section}.{field}',
      value,
      f'one of {", ".join(choices)}',
    )
  sources = ('auto', 'isbi2012', 'synthetic', 'stack')
  _require(
    d.source in sources or d.source.startswith('tfds:'),
    'data.source',
    d.source,
    f'one of {", ".join(sources)} or tfds:<name>',
  )
  if d.source == 'stack':
    _require(bool(d.image), 'data.image', d.image, "the image stack's path")
    _require(bool(d.label), 'data.label', d.label, "the label stack's path")
  for name, value, low in (
    ('seed', config.seed, 0),
    ('data.slices', d.slices, 2),
    ('data.size', d.size, 0),
    ('data.crop', d.crop, 0),
    ('optim.l2', o.l2, 0),
    ('optim.eps', o.eps, 0),
    ('optim.warmup_epochs', o.warmup_epochs, 0),
    ('optim.step_epochs', o.step_epochs, 1),
    ('optim.accumulate', o.accumulate, 1),
    ('train.batch_size', t.batch_size, 1),
    ('train.epochs', t.epochs, 1),
    ('train.steps_per_call', t.steps_per_call, 0),
    ('train.checkpoint_every', t.checkpoint_every, 1),
    ('parallel.devices', p.devices, 0),
    ('parallel.num_processes', p.num_processes, 1),
    ('log.sample_every', config.log.sample_every, 0),
    ('log.samples', config.log.samples, 0),
    ('data.augment.rotation', d.augment.rotation, 0),
    ('data.augment.shear', d.augment.shear, 0),
    ('data.augment.warp', d.augment.warp, 0),
    ('data.augment.elastic', d.augment.elastic, 0),
    ('data.augment.contrast', d.augment.contrast, 0),
    ('data.augment.brightness', d.augment.brightness, 0),
    ('data.augment.noise', d.augment.noise, 0),
    ('data.border_weight', d.border_weight, 0),
    ('data.widen', d.widen, 0),
    ('train.adversarial', t.adversarial, 0),
    *(('train.auxiliary', weight, 0) for weight in t.auxiliary),
  ):
    _require(
      low <= value < math.inf, name, value, f'at least {low}, and finite'
    )
  # Of what the random keys are made.
  _require(config.seed < 2**31, 'seed', config.seed, f'below {2**31}')
  for name, value in (
    ('optim.learning_rate', o.learning_rate),
    ('optim.step_factor', o.step_factor),
    ('optim.discriminator_learning_rate', o.discriminator_learning_rate),
    ('data.augment.elastic_sigma', d.augment.elastic_sigma),
    ('data.border_sigma', d.border_sigma),
  ):
    _require(0 < value < math.inf, name, value, 'above 0, and finite')
  share = d.augment.elastic_share
  _require(0 <= share <= 1, 'data.augment.elastic_share', share, 'in 0..1')
  for name, at in (
    ('optim.step_at', o.step_at),
    ('train.auxiliary_at', t.auxiliary_at),
  ):
    _require(
      list(at) == sorted(set(at)) and min(at, default=1) > 0,
      name,
      tuple(at),
      'growing numbers of epochs, the first at least 1',
    )
  _require(
    len(t.auxiliary) == len(t.auxiliary_at) + 1,
    'train.auxiliary',
    tuple(t.auxiliary),
    f'{len(t.auxiliary_at) + 1} weights, one more than train.auxiliary_at has '
    'epochs',
  )
  for name, value in (
    ('optim.decay', o.decay),
    ('optim.momentum', o.momentum),
    ('optim.ema', o.ema),
  ):
    _require(0 <= value < 1, name, value, 'at least 0 and below 1')
  _require(
    0 < d.device_share <= 1,
    'data.device_share',
    d.device_share,
    'above 0 and at most 1',
  )
  _require(
    p.process_id in range(p.num_processes),
    'parallel.process_id',
    p.process_id,
    f'0 to {p.num_processes - 1} (parallel.num_processes - 1)',
  )
  several = p.num_processes > 1 or bool(p.coordinator)
  _require(
    not several or p.mode == 'sharded',
    'parallel.mode',
    p.mode,
    'sharded where there are several processes',
  )
  if p.num_processes > 1:
    _require(
      bool(p.coordinator),
      'parallel.coordinator',
      p.coordinator,
      'host:port of process 0, the same in every process',
    )


def variants(config: ConfigDict) -> dict[str, ConfigDict]:
  """The whole configs that an experiment compares, by name.

  An experiment names what its runs differ in as `config.variants`: name to
  sections, fields and values. One without is its own only variant.

  Raises:
    InputError: a variant sets an unknown field, or cannot be used.
  """
  if 'variants' not in config:
    validate(config)
    return {config.experiment or config.model.name: config}
  found = {}
  for name, changes in config.variants.items():
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
      del whole.variants
    # Locked: a field that no default has is a mistake.
    whole.lock()
    whole.experiment = name
    try:
      whole.update(changes)
    except (KeyError, TypeError) as e:
      raise errors.InputError(f'The variant {name!r}: {e.args[0]}') from e
    validate(whole)
    found[name] = whole
  return found
