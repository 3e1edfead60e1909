"""The config of an experiment: every field with its default.

An experiment file has `get_config(preset)`, which calls `get_default`, changes
fields, and applies one of its presets.
"""

from collections.abc import Iterable
import dataclasses
import difflib
import os
import pathlib
import re
import sys
import traceback
import types

import ml_collections

from skipnet_jax import errors

ConfigDict = ml_collections.ConfigDict

LOSSES = ('bce', 'dice', 'bce_dice', 'smooth_l1')
NORMALISATIONS = ('slice', 'range', 'local')
MODES = ('jit', 'pmap', 'sharded')
KERNELS = ('xla', 'pallas')
OPTIMIZERS = ('rmsprop', 'sgd', 'adam', 'adamw')
SCHEDULES = ('constant', 'step', 'cosine')
# Sides of a pixel in nanometres; others are taken for an error.
SMALLEST_PIXEL, LARGEST_PIXEL = 0.01, 100_000.0

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
  # Lengths are multiplied by a factor from 1 / (1 + scale) to 1 + scale, whose
  # logarithm is uniform.
  scale: float = 0.0
  # Pixels; standard deviation of the displacements of a 3x3 grid, which are
  # interpolated to every pixel with bicubic splines.
  warp: float = 10.0
  rot90: bool = False  # 0 to 3 quarter turns; square examples only.
  # Pixels; each displacement is uniform in +- elastic, then smoothed by a
  # Gaussian, with zeros beyond the edge, which makes it much smaller. 0: none.
  elastic: float = 0.0
  elastic_sigma: float = 15.0  # Pixels; of that Gaussian.
  elastic_share: float = 0.5  # Share of the examples that it is applied to.
  # Pixels; the image is smoothed by a Gaussian of sigma 0 to blur, uniform.
  blur: float = 0.0
  # The normalised image is multiplied by a factor in 1 +- contrast, uniform.
  contrast: float = 0.0
  # Share of the examples whose contrast is lost before the noise is added: they
  # are multiplied by a factor in 0.1..0.5, uniform.
  low_contrast: float = 0.0
  # Then an offset in +- brightness, uniform, is added.
  brightness: float = 0.0
  noise: float = 0.0  # Standard deviation of the noise added to each pixel.

  def active(self) -> bool:
    """Whether any transform moves pixels."""
    return any(
      (
        self.flip,
        self.rot90,
        self.rotation,
        self.shear,
        self.scale,
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
  # source=stack: TIFF, PNG or folder of slices; OME-Zarr, N5 or a Neuroglancer
  # volume, which may be larger than the memory.
  d.image = ''
  d.label = ''  # source=stack: the same, of the labels.
  # source=stack: which image of the file data.image, counted from 1; 0: the
  # only one.
  d.series = 0
  d.channel = 0  # source=stack: which channel, likewise.
  # Side of the image's pixels in nanometres, to which predict resamples its
  # input; 0: what the file says, or 4 for isbi2012; unknown where neither does.
  d.pixel_size = 0.0
  # binary: labels have two values, the larger inside cells. instances: a number
  # for each cell, 0 on membranes; where two cells touch is membrane too.
  d.label_kind = 'binary'
  d.label_inverted = False  # binary: the smaller value is inside cells instead.
  d.slices = 30  # source=synthetic: number of slices.
  # slice: each slice gets zero mean and unit variance. range: the range of the
  # stack's integer type becomes -1..1, for uint8 grey / 127.5 - 1. local: each
  # pixel by the mean and variance of those at most 128 pixels away, so that the
  # rest of the slice has no influence.
  d.normalise = 'slice'
  d.size = 0  # Centre crop of every slice, in pixels; 0: whole slices.
  d.crop = 0  # Random crop of each training example, in pixels; 0: none.
  d.train = 'rest'  # Slices for training: 'rest' or a list such as '0-11,14'.
  # Slices for validation: a list, 'random:5' (drawn with the seed), or
  # 'fold:2/6' (the third of six contiguous folds).
  d.valid = '25-29'
  # Largest share of a device's memory for the data set. A larger one stays in
  # the host's memory; an uncompressed TIFF or a chunked volume, on the disk.
  d.device_share = 0.25
  d.augment = ConfigDict(dataclasses.asdict(Augmentation()))
  # w0 of U-Net's pixel weights, which also balance the classes; 0: no weights.
  d.border_weight = 0.0
  d.border_sigma = 5.0  # Pixels; sigma of these weights.
  d.widen = 0  # Pixels added to each side of the training labels' membranes.

  c.optim = o = ConfigDict()
  o.name = 'rmsprop'
  o.learning_rate = 1e-3  # Before the schedule changes it.
  o.decay = 0.9  # rmsprop: decay of the squared gradients. adam: b2.
  o.momentum = 0.0  # sgd, rmsprop: momentum. adam: b1.
  o.eps = 1e-8  # rmsprop, adam: added to the root of the squared gradients.
  # Coefficient of sum(w^2) of the convolution kernels in the loss (adamw:
  # decoupled weight decay).
  o.l2 = 1e-4
  o.schedule = 'constant'
  # schedule=step: the rate is multiplied by step_factor every step_epochs
  # epochs or, if step_at is set, after those numbers of epochs.
  o.step_epochs = 200
  o.step_at = ()  # schedule=step: numbers of epochs; (): see step_epochs.
  o.step_factor = 0.1  # schedule=step: see step_epochs.
  o.warmup_epochs = 0  # Linear, from zero.
  o.cooldown_epochs = 0  # Linear, to zero, at the end of the run.
  o.accumulate = 1  # Batches whose gradients are averaged for one update.
  # Decay of the averaged parameters that evaluation uses; 0: no averaging. With
  # BatchNorm, each epoch ends with as many as 50 forward passes, which estimate
  # the statistics for these parameters.
  o.ema = 0.0
  # For networks with a discriminator: its rate, with the same schedule.
  o.discriminator_learning_rate = 2e-4

  c.train = t = ConfigDict()
  t.loss = 'bce'
  # For networks with auxiliary outputs, the weight of their losses: the first
  # weight at the start, the next after each number of epochs in auxiliary_at.
  t.auxiliary = (1.0,)
  t.auxiliary_at = ()  # Numbers of epochs, see auxiliary.
  # For networks with a discriminator: weight of the generator's adversarial
  # loss.
  t.adversarial = 0.1
  t.batch_size = 5  # Over all devices, whose number must divide it.
  # Steps in an epoch; 0: as many whole batches as the training slices fill, at
  # least one.
  t.steps_per_epoch = 0
  t.epochs = 500  # A finished run trains on if it is raised.
  # Folder of a run, or pretrained:NAME of a pretrained network: training begins
  # with the parameters and the BatchNorm statistics that predict would take
  # from it; steps and the optimizer's state begin anew. '': random values. Only
  # the first start reads it.
  t.init_from = ''
  # Whether layers that do not fit this network, or are missing there, keep
  # their random values; otherwise they are refused.
  t.init_skip_mismatch = False
  # Steps in one compiled call; 0: one on a CPU, an epoch elsewhere.
  t.steps_per_call = 0
  t.checkpoint_every = 1  # Epochs.
  # pallas, for NVIDIA GPUs: in bfloat16, FC-ResNet's blocks use kernels of our
  # own, which move fewer bytes. They were compiled for a GPU, but none has run
  # them yet.
  t.kernels = 'xla'
  # GPU: the same command gives bit-identical results, but is slower. (On a
  # CPU, results are always bit-identical.)
  t.deterministic = False

  c.parallel = p = ConfigDict()
  p.mode = 'jit'
  p.devices = 0  # Number of devices; 0: one for jit, all for pmap and sharded.
  # Several processes: host:port of process 0, or 'auto' to ask SLURM or a TPU
  # pod.
  p.coordinator = ''
  p.num_processes = 1  # Of all machines.
  p.process_id = 0  # Of this process, from 0.

  c.log = g = ConfigDict()
  g.progress = True  # Progress bar, if standard error is a terminal.
  g.tensorboard = True  # Whether event files are written.
  g.sample_every = 10  # Epochs between sample pictures; 0: at the end only.
  g.samples = 2  # Number of validation slices in them.
  # After each epoch, measures how curved the training loss is along the next
  # step, by one gradient and some eight forward passes of one slice.
  g.critical_sharpness = False
  return c


def experiment_names() -> dict[str, pathlib.Path]:
  """Names and files of the experiments that skipnet_jax comes with."""
  here = pathlib.Path(__file__).parent
  installed = here / 'experiments'
  folder = installed if installed.is_dir() else here.parent / 'experiments'
  return {path.stem: path for path in sorted(folder.glob('*.py'))}


def _find_experiment(path: str | os.PathLike[str]) -> pathlib.Path:
  """The file of an experiment's name, or else the path itself."""
  text = os.fspath(path)
  known = experiment_names()
  if text in known:
    return known[text]
  if re.fullmatch(r'\w+', text) and not os.path.exists(text):
    raise errors.InputError(
      f'There is no experiment {text!r}: {nearest(text, known)}'
    )
  return pathlib.Path(path)


def load_experiment(path: str | os.PathLike[str], *preset: str) -> ConfigDict:
  """Executes an experiment file, which is Python, and returns its config.

  An experiment can start from another one in this way:
  `load_experiment(pathlib.Path(__file__).with_name('long_short.py'), preset)`.

  Args:
    path: the file; or the name of one that skipnet_jax comes with, such as
      'long_short', in any folder.
    *preset: one of its presets; without, its default.

  Raises:
    InputError: there is no such name; the file cannot be read, or fails, or its
      config is not whole.
  """
  path = _find_experiment(path)
  known = path.stem if path.stem in experiment_names() else 'long_short'

  def refusal(problem: object, line: int | None = None) -> errors.InputError:
    where = f'{path}, line {line}' if line else f'{path}'
    return errors.InputError(
      f'The experiment file {where} cannot be used '
      f'({" ".join(str(problem).split())}): correct it, or give another, such '
      f'as {known}.'
    )

  try:
    source = path.read_bytes()
  except (OSError, ValueError) as e:
    raise refusal(getattr(e, 'strerror', None) or e) from e
  module = types.ModuleType(f'experiments.{path.stem}')
  module.__file__ = str(path)
  # Its dataclasses look for their module there.
  sys.modules[module.__name__] = module
  try:
    exec(compile(source, str(path), 'exec', dont_inherit=True), vars(module))
    get_config = vars(module).get('get_config')
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
  finally:
    sys.modules.pop(module.__name__, None)
  if not isinstance(config, ConfigDict):
    line = getattr(
      getattr(get_config, '__code__', None), 'co_firstlineno', None
    )
    raise refusal(
      f'get_config returned {type(config).__name__}, not ConfigDict', line
    )
  return config


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
