"""The config of an experiment: every field with its default and its checks.

An experiment file has `get_config(preset)`, which calls `get_default`, changes
fields, and applies one of its presets.
"""

from collections.abc import Callable, Iterable
import dataclasses
import difflib
import math
import operator
import pathlib
import traceback
from typing import Any

import ml_collections

from skipnet_jax import config_identity
from skipnet_jax import errors

ConfigDict = ml_collections.ConfigDict

LOSSES = ('bce', 'dice', 'bce_dice', 'smooth_l1')
MODES = ('jit', 'pmap', 'sharded')
OPTIMIZERS = ('rmsprop', 'sgd', 'adam', 'adamw')
SCHEDULES = ('constant', 'step', 'cosine')

# Presets that all systems share: one trains for seconds, the other is for
# comparisons on two CPU cores.
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
  """The fields of `data.augment`: the strength of each random transform."""

  flip: bool = True  # Horizontal and vertical, each with probability 1/2.
  rotation: float = 25.0  # Degrees; uniform in +- rotation.
  shear: float = 0.41  # Radians; uniform in +- shear.
  # Pixels; standard deviation of the displacements of a 3x3 grid, which are
  # interpolated to every pixel with bicubic splines.
  warp: float = 10.0
  rot90: bool = False  # 0 to 3 quarter turns; square examples only.
  # Pixels; each pixel's displacement is uniform in +- elastic, then smoothed
  # by a Gaussian, which makes it small. 0: none.
  elastic: float = 0.0
  elastic_sigma: float = 15.0  # Pixels; of that Gaussian.
  elastic_share: float = 0.5  # Share of the examples that it is applied to.
  # The normalised image is multiplied by a factor in 1 +- contrast; then an
  # offset in +- brightness is added, both uniform; noise is the standard
  # deviation of what is added to each pixel.
  contrast: float = 0.0
  brightness: float = 0.0
  noise: float = 0.0

  def active(self) -> bool:
    """Whether any transform moves pixels."""
    return any(
      (
        self.flip,
        self.rot90,
        self.rotation,
        self.shear,
        self.warp,
        self.elastic,
      )
    )


def get_default() -> ConfigDict:
  """The paper's training, for any network.

  The experiment sets `model`, from `models.model_config(name)`.
  """
  c = ConfigDict()
  c.experiment = ''  # The name in reports.
  c.seed = 0  # The only seed: initialisation, order, augmentation and dropout.
  c.model = ConfigDict()

  c.data = d = ConfigDict()
  # auto, isbi2012, synthetic, stack or tfds:<name>.
  d.source = 'auto'
  d.dir = ''  # Folder of the ISBI stacks; else $SKIPNET_DATA_DIR or the cache.
  d.image = ''  # source=stack: TIFF or folder of PNG slices.
  d.label = ''  # source=stack: the same, of the labels.
  # source=stack: which image and which channel of the file data.image, counted
  # from 1; 0: the only one.
  d.series = 0
  d.channel = 0
  # binary: labels have two values, the larger inside cells. instances: a number
  # for each cell, 0 on membranes; where two cells touch is membrane too.
  d.label_kind = 'binary'
  d.label_inverted = False  # binary: the smaller value is inside cells instead.
  d.slices = 30  # source=synthetic: number of slices.
  d.size = 0  # Centre crop of every slice, in pixels; 0: whole slices.
  d.crop = 0  # Random crop of each training example, in pixels; 0: none.
  d.train = 'rest'  # Slices for training: 'rest' or a list such as '0-11,14'.
  # Slices for validation: a list, 'random:5' (drawn with the seed), or
  # 'fold:2/6' (the third of six contiguous folds).
  d.valid = '25-29'
  # Largest share of the device's memory for the data set; a larger data set
  # stays on the host, and an uncompressed TIFF in its file.
  d.device_share = 0.25
  d.augment = ConfigDict(dataclasses.asdict(Augmentation()))
  # w0 of U-Net's pixel weights, which also balance the classes; 0: no weights.
  d.border_weight = 0.0
  d.border_sigma = 5.0  # Pixels; sigma of these weights.
  d.widen = 0  # Pixels added to each side of the training labels' membranes.

  c.optim = o = ConfigDict()
  o.name = 'rmsprop'
  o.learning_rate = 1e-3
  o.decay = 0.9  # rmsprop: decay of the squared gradients. adam: b2.
  o.momentum = 0.0  # sgd, rmsprop: momentum. adam: b1.
  o.eps = 1e-8
  # Coefficient of sum(w^2) of the convolution kernels in the loss (adamw:
  # decoupled weight decay).
  o.l2 = 1e-4
  o.schedule = 'constant'
  # schedule=step: the rate is multiplied by step_factor every step_epochs
  # epochs or, if step_at is set, after those numbers of epochs.
  o.step_epochs = 200
  o.step_at = ()
  o.step_factor = 0.1
  o.warmup_epochs = 0  # Linear, from zero.
  o.accumulate = 1  # Batches whose gradients are averaged for one update.
  # Decay of the averaged parameters that evaluation uses; 0: no averaging.
  o.ema = 0.0
  # For networks with a discriminator: its rate, with the same schedule.
  o.discriminator_learning_rate = 2e-4

  c.train = t = ConfigDict()
  t.loss = 'bce'
  # For networks with auxiliary outputs, the weight of their losses: the first
  # weight at the start, the next after each number of epochs in auxiliary_at.
  t.auxiliary = (1.0,)
  t.auxiliary_at = ()
  # For networks with a discriminator: weight of the generator's adversarial
  # loss.
  t.adversarial = 0.1
  t.batch_size = 5  # Over all devices.
  t.epochs = 500
  # Steps in one compiled call; 0: one on a CPU, an epoch elsewhere.
  t.steps_per_call = 0
  t.checkpoint_every = 1  # Epochs.
  # GPU: the same command gives bit-identical results, but is slower. (On a
  # CPU, results are always bit-identical.)
  t.deterministic = False

  c.parallel = p = ConfigDict()
  p.mode = 'jit'
  p.devices = 0  # Number of devices; 0: one for jit, all for pmap and sharded.
  # Several processes: host:port of process 0, or 'auto' to ask SLURM or a TPU
  # pod.
  p.coordinator = ''
  p.num_processes = 1
  p.process_id = 0

  c.log = g = ConfigDict()
  g.progress = True  # Progress bar, if standard error is a terminal.
  g.tensorboard = True
  g.sample_every = 10  # Epochs between sample pictures; 0: at the end only.
  g.samples = 2  # Number of validation slices in them.
  return c


def load_experiment(path: pathlib.Path, *preset: str) -> ConfigDict:
  """Executes an experiment file, which is Python, and returns its config.

  An experiment can start from another one in this way:
  `load_experiment(pathlib.Path(__file__).with_name('long_short.py'), preset)`.

  Raises:
    InputError: the file cannot be read, or fails, or its config is not whole.
  """

  def refusal(problem: object, line: int | None = None) -> errors.InputError:
    where = f'{path}, line {line}' if line else f'{path}'
    return errors.InputError(
      f'The experiment file {where} cannot be used '
      f'({" ".join(str(problem).split())}): correct it, or give another, such '
      'as experiments/long_short.py.'
    )

  try:
    source = path.read_bytes()
  except (OSError, ValueError) as e:
    raise refusal(getattr(e, 'strerror', None) or e) from e
  names: dict[str, Any] = {'__name__': path.stem, '__file__': str(path)}
  try:
    exec(compile(source, str(path), 'exec', dont_inherit=True), names)
    get_config = names.get('get_config')
    if not callable(get_config):
      raise refusal('it has no function get_config')
    config = get_config(*preset)
  except errors.InputError:
    raise
  except (Exception, SystemExit) as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if not lines and isinstance(e, SyntaxError):
      lines = [e.lineno]
    raise refusal(
      f'{type(e).__name__}: {e}', lines[-1] if lines else None
    ) from e
  if not isinstance(config, ConfigDict):
    line = getattr(
      getattr(get_config, '__code__', None), 'co_firstlineno', None
    )
    raise refusal(
      f'get_config returned {type(config).__name__}, not ConfigDict', line
    )
  return config


def check_whole(config: ConfigDict) -> None:
  """Checks that no field of `get_default` is missing.

  Raises:
    InputError: one is missing, or a value is of a type that JSON cannot hold.
  """
  try:
    found = config_identity.to_flat(config)
  except TypeError as e:
    raise errors.InputError(
      f'The config has a value that cannot be saved as JSON ({e}): use numbers '
      'and words of Python.'
    ) from e
  missing = [
    name for name in config_identity.to_flat(get_default()) if name not in found
  ]
  if missing or 'model' not in config:
    raise errors.InputError(
      f'The config lacks {", ".join(missing[:3]) or "model"}: let get_config '
      'start from config.get_default() of skipnet_jax.'
    )


def pick_preset(config: ConfigDict, preset: str, presets: dict) -> ConfigDict:
  """Applies one of an experiment's presets.

  Args:
    config: changed in place.
    preset: the name in `--config=FILE:preset`.
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


def nearest(name: str, names: Iterable[str]) -> str:
  """The end of a message that names the closest of the known names."""
  known = list(names)
  close = difflib.get_close_matches(name, known, 1, 0.3)
  return f'did you mean {close[0]!r}?' if close else f'known: {known}.'


# The lowest value of each of these fields.
_LOWEST = {
  0: (
    *('seed', 'data.size', 'data.crop', 'data.border_weight', 'data.widen'),
    *('data.series', 'data.channel'),
    *('data.augment.rotation', 'data.augment.shear', 'data.augment.warp'),
    *('data.augment.elastic', 'data.augment.contrast'),
    *('data.augment.brightness', 'data.augment.noise'),
    *('optim.l2', 'optim.eps', 'optim.warmup_epochs'),
    *('train.steps_per_call', 'train.adversarial', 'parallel.devices'),
    *('log.sample_every', 'log.samples'),
  ),
  1: (
    *('optim.step_epochs', 'optim.accumulate', 'train.batch_size'),
    *('train.epochs', 'train.checkpoint_every', 'parallel.num_processes'),
  ),
  2: ('data.slices',),
}
_POSITIVE = (
  *('optim.learning_rate', 'optim.discriminator_learning_rate'),
  *('optim.step_factor', 'data.augment.elastic_sigma', 'data.border_sigma'),
)
_CHOICES = {
  'optim.name': OPTIMIZERS,
  'optim.schedule': SCHEDULES,
  'train.loss': LOSSES,
  'parallel.mode': MODES,
}


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
  known = get_default()
  names = [*known, *config_identity.to_flat(known)]
  for name in [*config, *config_identity.to_flat(config)]:
    if name not in names and not name.startswith('model.'):
      raise errors.InputError(
        f'Unknown config field {name!r}: {nearest(name, names)}'
      )

  def require(field: str, fits: Callable[[Any], bool], need: str) -> None:
    value = operator.attrgetter(field)(config)
    try:
      fitting = fits(value)
    except (TypeError, AttributeError, OverflowError):  # Of another type.
      fitting = False
    if not fitting:
      raise errors.InputError(f'{field} is {value!r}; it must be {need}.')

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
    require('data.label', bool, "the label stack's path")
  for low, fields in _LOWEST.items():
    for field in fields:
      require(
        field, lambda x: low <= x < math.inf, f'at least {low}, and finite'
      )
  # A limit of the random keys.
  require('seed', lambda x: x < 2**31, f'below {2**31}')
  for field in _POSITIVE:
    require(field, lambda x: 0 < x < math.inf, 'above 0, and finite')
  require('data.augment.elastic_share', lambda x: 0 <= x <= 1, 'in 0..1')
  require('data.device_share', lambda x: 0 < x <= 1, 'above 0 and at most 1')
  for field in ('optim.decay', 'optim.momentum', 'optim.ema'):
    require(field, lambda x: 0 <= x < 1, 'at least 0 and below 1')
  for field in ('optim.step_at', 'train.auxiliary_at'):
    require(
      field,
      lambda x: (
        list(x) == sorted(set(x))
        and all(isinstance(n, int) and 1 <= n < 2**31 for n in x)
      ),
      'increasing whole numbers of epochs, the first at least 1',
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
      'host:port of process 0, the same in every process',
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
  for name, changes in config.variants.items():
    whole = config.copy_and_resolve_references()
    whole.unlock()
    del whole.variants
    whole.lock()  # Unknown fields raise an error.
    whole.experiment = name
    try:
      whole.update(changes)
    except (KeyError, TypeError) as e:
      raise errors.InputError(f'The variant {name!r}: {e.args[0]}') from e
    validate(whole)
    configs[name] = whole
  return configs
