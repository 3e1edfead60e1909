"""The runs of each study, and the published figures."""

from collections.abc import Callable, Iterable
import dataclasses
import pathlib

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors

Config = ml_collections.ConfigDict
SCALES = ('small', 'paper', 'smoke')
# Contiguous parts of the labelled slices; the papers validate on the last one.
FOLDS = 6


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a paper's table.

  Attributes:
    experiment: name of its file.
    changes: values of config fields, by dotted name.
    published: the paper's figure, as printed, by column.
  """

  experiment: str = 'long_short'
  changes: dict[str, object] = dataclasses.field(default_factory=dict)
  published: dict[str, str] = dataclasses.field(default_factory=dict)


def _scores(v_rand: str, v_info: str) -> dict[str, str]:
  return {'V_rand': v_rand, 'V_info': v_info}


def _gates(gates: str, v_rand: str, v_info: str) -> Row:
  return Row('f_clmser_s', {'model.gates': gates}, _scores(v_rand, v_info))


def _losses(valid: str, train: str) -> dict[str, str]:
  return {'validation loss': valid, 'training loss': train}


GATES = {
  'CLmser-w': _gates('none', '.97310', '.98712'),
  '+CG': _gates('cg', '.97359', '.98726'),
  '+CG+PG': _gates('cg+pg', '.97438', '.98868'),
  '+CG+FullPG': _gates('cg+full_pg', '.97709', '.98710'),
  '+CG+PG+GM': _gates('cg+pg+gm', '.98223', '.98919'),
}
SYSTEMS = {
  'FC-ResNet': Row('long_short', {}, _scores('.957', '.980')),
  'U-Net': Row('unet', {}, _scores('.97276', '.98662')),
  'FusionNet': Row('fusionnet', {}, _scores('.97804', '.98893')),
  **GATES,
  'CUMedVision': Row('cumedvision', {}, _scores('.97682', '.98865')),
  'M2FCN': Row('m2fcn', {}, _scores('.97805', '.98919')),
  'PolyMtl': Row('polymtl', {}, _scores('.98058', '.98816')),
  'ADDN': Row('addn', {}, _scores('.98317', '.99088')),
  'FCN+LSTM': Row('fcn_lstm', {}, _scores('.97537', '.98743')),
  'SFCNN': Row('sfcnn', {}, _scores('.98680', '.99144')),
}
TABLE_3 = {
  'long and short': Row('long_short', {}, _losses('.162', '.163')),
  'short only': Row('short_only', {}, _losses('.202', '.188')),
  'long only': Row('long_only', {}, _losses('.188', '.205')),
  'neither': Row('no_skips'),
}
_DICE: dict[str, object] = {'train.loss': 'dice'}
TABLE_2 = {
  'BCE': Row('long_short', {}, _scores('.957', '.980')),
  'Dice': Row('long_short', _DICE, _scores('.969', '.986')),
}
_COSINE = {'optim.schedule': 'cosine', 'optim.warmup_epochs': 2}
# One change at a time to the training of FC-ResNet's paper.
RECIPE = {
  'base': Row(),
  'Dice': Row(changes=_DICE),
  'BCE + Dice': Row(changes={'train.loss': 'bce_dice'}),
  'no warp': Row(changes={'data.augment.warp': 0.0}),
  'half the warp': Row(changes={'data.augment.warp': 5.0}),
  'twice the warp': Row(changes={'data.augment.warp': 20.0}),
  'quarter turns': Row(changes={'data.augment.rot90': True}),
  'intensity': Row(
    changes={
      'data.augment.contrast': 0.2,
      'data.augment.brightness': 0.2,
      'data.augment.noise': 0.1,
    }
  ),
  'EMA': Row(changes={'optim.ema': 0.99}),
  'cosine': Row(changes=_COSINE),
  'cooldown': Row(changes={'optim.cooldown_epochs': 10}),
  'AdamW, cosine': Row(
    changes={
      'optim.name': 'adamw',
      'optim.momentum': 0.9,
      'optim.decay': 0.999,
      'optim.l2': 1e-2,
      **_COSINE,
    }
  ),
  'labels widened': Row(changes={'data.widen': 1}),
  'borders weighted': Row(changes={'data.border_weight': 10.0}),
  'three slices': Row(changes={'model.slices': 3}),
  'own statistics': Row(changes={'model.use_running_average': False}),
}
SEGMENTATION = {'best': Row('best')}
# With a fifth of the steps; `use_few_slices` says which run to begin with.
FINE_TUNING = {
  'from scratch': Row(
    'best',
    {
      'train.steps_per_epoch': 20,
      'train.epochs': 25,
      'optim.cooldown_epochs': 5,
    },
  ),
  'fine-tuned': Row(
    'best',
    {
      'train.steps_per_epoch': 20,
      'train.epochs': 5,
      'optim.cooldown_epochs': 1,
      'train.init_from': 'RUN',
    },
  ),
}
# Of a stack of 250 slices with a number for each cell (FIB-SEM sample 2 of
# neuroproof_examples, 10 nm): two slices to train, five far from them.
_FEW_SLICES = {
  'source': 'stack',
  'label_kind': 'instances',
  'pixel_size': 10.0,
  'size': 0,
  'crop': 224,
  'train': '80,160',
  'valid': '20,50,110,200,230',
}
# Labels are names of the experiment's variants.
FIGURE_4 = dict.fromkeys(
  ('a_long_short_r9', 'b_long_r9', 'c_long_r3', 'd_long_r7_no_norm'),
  Row('gradient_flow'),
)


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs to be trained and compared.

  Attributes:
    name: one of `NAMES`.
    title: of its page.
    rows: rows of the table, by label.
    runs: whole configs by name, in the order of training.
    row_of: label of the row of each run.
    compared: the field of summary.json that ranks the rows.
    orderings: (better, worse) pairs of labels that the papers claim.
    reduced: labels of rows whose network differs from the published one, as it
      does where a small preset narrows it.
  """

  name: str
  title: str
  rows: dict[str, Row]
  runs: dict[str, Config]
  row_of: dict[str, str]
  compared: str
  orderings: tuple[tuple[str, str], ...]
  reduced: tuple[str, ...] = ()

  def budget(self) -> str:
    """How long its runs train, such as '500 steps'."""
    lengths = dict.fromkeys(
      f'{config.train.epochs * config.train.steps_per_epoch:,} steps'
      if config.train.steps_per_epoch
      else f'{config.train.epochs:,} epochs'
      for config in self.runs.values()
    )
    return ' or '.join(lengths)


def _beats(first: str, labels: Iterable[str]) -> tuple[tuple[str, str], ...]:
  return tuple((first, other) for other in labels if other != first)


# Each addition to the gates beats the network before it.
_ADDITIONS = tuple(zip(list(GATES)[1:], list(GATES), strict=False))
# All gates beat the systems in the table of Guo et al. 2019, except two.
_FULL = '+CG+PG+GM'
_WORSE = ('U-Net', 'FusionNet', 'CUMedVision', 'M2FCN', 'PolyMtl', 'FCN+LSTM')
_PUBLISHED = (
  *_beats(_FULL, _WORSE),
  ('ADDN', _FULL),
  ('SFCNN', _FULL),
  ('FusionNet', 'U-Net'),
)
# Title, rows, preset at the scale `small`, field to compare, claimed orderings.
_STUDIES = {
  'table_3': (
    'Long and short skips (Drozdzal et al. 2016, Table 3)',
    TABLE_3,
    'centre',
    'best_val_loss',
    _beats('long and short', TABLE_3),
  ),
  'table_2': (
    'Losses and averaging (Drozdzal et al. 2016, Table 2)',
    TABLE_2,
    'centre',
    'v_rand',
    (('Dice', 'BCE'),),
  ),
  'recipe': (
    'The recipe, one change at a time',
    RECIPE,
    'quick',
    'best_val_bce',
    tuple((row, 'base') for row in RECIPE if row != 'base'),
  ),
  'segmentation': (
    'From probabilities to cells',
    SEGMENTATION,
    'folds',
    'best_val_bce',
    (),
  ),
  'fine_tuning': (
    'Two labelled slices, with and without the weights of another run',
    FINE_TUNING,
    'folds',
    'best_val_bce',
    (('fine-tuned', 'from scratch'),),
  ),
  'gates': (
    'Gated skips (Guo et al. 2019, Table 1)',
    GATES,
    'budget',
    'v_rand',
    _ADDITIONS,
  ),
  'systems': (
    'Every system under one budget',
    SYSTEMS,
    'budget',
    'v_rand',
    (*_ADDITIONS, *_PUBLISHED),
  ),
  'figure_4': (
    'Updates of every layer (Drozdzal et al. 2016, Figure 4)',
    FIGURE_4,
    'small',
    'best_val_loss',
    _beats('a_long_short_r9', FIGURE_4),
  ),
}
NAMES = tuple(_STUDIES)
# Their repeats are folds; those of the other studies are seeds.
_IN_FOLDS = ('table_2', 'recipe', 'segmentation')


def use_few_slices(
  config: Config, image: str, labels: str, init_from: str
) -> None:
  """Completes a config of `FINE_TUNING`, in place, by its paths."""
  config.data.update(_FEW_SLICES, image=image, label=labels)
  if config.train.init_from:
    config.train.init_from = init_from


def make(
  name: str,
  scale: str,
  repeats: int,
  experiments: pathlib.Path,
  change: Callable[[Config], None] = lambda _: None,
) -> Study:
  """Plans a study.

  Args:
    name: one of `NAMES`.
    scale: 'small' for two CPU cores, 'paper' for an accelerator, 'smoke' for
      seconds.
    repeats: runs of each row: seeds from 0, or for table_2 and recipe folds,
      first the papers' own split.
    experiments: folder of the experiment files.
    change: changes each config in place.

  Raises:
    InputError: more repeats than folds, or an invalid config.
  """
  title, rows, small, compared, orderings = _STUDIES[name]
  if name in _IN_FOLDS and repeats > FOLDS:
    raise errors.InputError(
      f'--seeds is {repeats}, but {name} has {FOLDS} folds: give at most '
      f'{FOLDS}.'
    )
  preset = {'small': small}.get(scale, scale)
  runs, row_of = {}, {}
  reduced: dict[str, None] = {}
  for repeat in range(repeats):
    for label, row in rows.items():
      path = experiments / f'{row.experiment}.py'
      config = config_lib.load_experiment(path, preset)
      if config.model != config_lib.load_experiment(path, 'paper').model:
        reduced[label] = None
      if name == 'figure_4':
        config = config_checks.variants(config)[label]
      config.update_from_flattened_dict(row.changes)
      if scale == 'smoke':
        # It has fewer epochs than the row's cooldown.
        most = min(config.optim.cooldown_epochs, config.train.epochs)
        config.optim.cooldown_epochs = most
      part = repeat
      if name in _IN_FOLDS:
        part = FOLDS - 1 - repeat
        config.data.valid = f'fold:{part}/{FOLDS}'
      else:
        config.seed = repeat
      config.experiment = label
      change(config)
      config_checks.validate(config)
      key = f'{label.replace(",", "").replace(" ", "_")}_{part}'
      runs[key], row_of[key] = config, label
  return Study(
    name, title, rows, runs, row_of, compared, orderings, tuple(reduced)
  )
