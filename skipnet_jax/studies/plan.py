"""Which runs a study consists of, and what was published about them."""

from collections.abc import Callable
import dataclasses
import pathlib

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import errors

Config = ml_collections.ConfigDict
SCALES = ('small', 'paper', 'smoke')
# Contiguous parts of the labelled slices; the last is the papers' own.
FOLDS = 6


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a paper's table.

  Attributes:
    experiment: name of the file.
    changes: fields by dotted name.
    published: column to what the paper prints.
  """

  experiment: str
  changes: dict[str, object] = dataclasses.field(default_factory=dict)
  published: dict[str, str] = dataclasses.field(default_factory=dict)


def _but(experiment: str = 'long_short', **changes) -> Row:
  changes = {name.replace('__', '.'): value for name, value in changes.items()}
  return Row(experiment, changes)


def _row(experiment: str, v_rand: str, v_info: str, **changes) -> Row:
  published = {'V_rand': v_rand, 'V_info': v_info}
  return dataclasses.replace(_but(experiment, **changes), published=published)


def _losses(experiment: str, valid: str, train: str) -> Row:
  return Row(experiment, {}, {'validation loss': valid, 'training loss': train})


GATES = {
  'CLmser-w': _row('f_clmser_s', '.97310', '.98712', model__gates='none'),
  '+CG': _row('f_clmser_s', '.97359', '.98726', model__gates='cg'),
  '+CG+PG': _row('f_clmser_s', '.97438', '.98868', model__gates='cg+pg'),
  '+CG+FullPG': _row(
    'f_clmser_s', '.97709', '.98710', model__gates='cg+full_pg'
  ),
  '+CG+PG+GM': _row('f_clmser_s', '.98223', '.98919', model__gates='cg+pg+gm'),
}
SYSTEMS = {
  'FC-ResNet': _row('long_short', '.957', '.980'),
  'U-Net': _row('unet', '.97276', '.98662'),
  'FusionNet': _row('fusionnet', '.97804', '.98893'),
  **GATES,
  'CUMedVision': _row('cumedvision', '.97682', '.98865'),
  'M2FCN': _row('m2fcn', '.97805', '.98919'),
  'PolyMtl': _row('polymtl', '.98058', '.98816'),
  'ADDN': _row('addn', '.98317', '.99088'),
  'FCN+LSTM': _row('fcn_lstm', '.97537', '.98743'),
  'SFCNN': _row('sfcnn', '.98680', '.99144'),
}
TABLE_3 = {
  'long and short': _losses('long_short', '.162', '.163'),
  'short only': _losses('short_only', '.202', '.188'),
  'long only': _losses('long_only', '.188', '.205'),
  'neither': Row('no_skips'),
}
TABLE_2 = {
  'BCE': _row('long_short', '.957', '.980'),
  'Dice': _row('long_short', '.969', '.986', train__loss='dice'),
}


# The paper's training, and one change at a time.
RECIPE = {
  'base': _but(),
  'Dice': _but(train__loss='dice'),
  'BCE + Dice': _but(train__loss='bce_dice'),
  'no warp': _but(data__augment__warp=0.0),
  'half the warp': _but(data__augment__warp=5.0),
  'twice the warp': _but(data__augment__warp=20.0),
  'quarter turns': _but(data__augment__rot90=True),
  'intensity': _but(
    data__augment__contrast=0.2,
    data__augment__brightness=0.2,
    data__augment__noise=0.1,
  ),
  'EMA': _but(optim__ema=0.99),
  'cosine': _but(optim__schedule='cosine', optim__warmup_epochs=2),
  'AdamW, cosine': _but(
    optim__name='adamw',
    optim__momentum=0.9,
    optim__decay=0.999,
    optim__l2=1e-2,
    optim__schedule='cosine',
    optim__warmup_epochs=2,
  ),
  'labels widened': _but(data__widen=1),
  'borders weighted': _but(data__border_weight=10.0),
  'three slices': _but(model__slices=3),
}


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs that are to be compared.

  Attributes:
    name: of its folder.
    title: of its page.
    rows: by name.
    runs: whole configs by name, in the order in which they are trained.
    row_of: the row of each run.
    compared: the quantity of summary.json that decides.
    lower: whether less of it is better.
    orderings: (better, worse) pairs of rows, as the paper claims.
  """

  name: str
  title: str
  rows: dict[str, Row]
  runs: dict[str, Config]
  row_of: dict[str, str]
  compared: str
  lower: bool
  orderings: tuple[tuple[str, str], ...]


def _versus(first: str, rows) -> tuple[tuple[str, str], ...]:
  return tuple((first, other) for other in rows if other != first)


# Each addition to the gates beats the one before.
_CHAIN = tuple(zip(list(GATES)[1:], list(GATES), strict=False))
# The whole of it beats what Guo et al. 2019 compare it with, but for two.
_FULL = '+CG+PG+GM'
_BEATEN = ('U-Net', 'FusionNet', 'CUMedVision', 'M2FCN', 'PolyMtl', 'FCN+LSTM')
_PUBLISHED = (
  *_versus(_FULL, _BEATEN),
  ('ADDN', _FULL),
  ('SFCNN', _FULL),
  ('FusionNet', 'U-Net'),
)
# Name: title, rows, preset of the scale `small`, what is compared, whether less
# is better, claimed orderings, whether repeats are folds.
_STUDIES = {
  'table_3': (
    'Long and short skips (Drozdzal et al. 2016, Table 3)',
    TABLE_3,
    'small',
    'best_val_loss',
    True,
    _versus('long and short', TABLE_3),
    False,
  ),
  'table_2': (
    'Losses and averaging (Drozdzal et al. 2016, Table 2)',
    TABLE_2,
    'small',
    'v_rand',
    False,
    (('Dice', 'BCE'),),
    True,
  ),
  'recipe': (
    'The recipe, one change at a time',
    RECIPE,
    'quick',
    'v_rand',
    False,
    tuple((row, 'base') for row in RECIPE if row != 'base'),
    True,
  ),
  'gates': (
    'Gated skips (Guo et al. 2019, Table 1)',
    GATES,
    'budget',
    'v_rand',
    False,
    _CHAIN,
    False,
  ),
  'systems': (
    'Every system under one budget',
    SYSTEMS,
    'budget',
    'v_rand',
    False,
    (*_CHAIN, *_PUBLISHED),
    False,
  ),
}
NAMES = (*_STUDIES, 'figure_4')


def make(
  name: str,
  scale: str,
  repeats: int,
  experiments: pathlib.Path,
  change: Callable[[Config], None] = lambda _: None,
) -> Study:
  """The runs of a study.

  Args:
    name: one of `NAMES`.
    scale: 'small' for two CPU cores, 'paper' for an accelerator, 'smoke' for
      seconds.
    repeats: runs of each row: seeds from 0, and for table_2 and recipe folds
      from the papers' own split on.
    experiments: the folder of the experiment files.
    change: applied to every config.

  Raises:
    InputError: more folds than there are, or a config that cannot be used.
  """
  if name == 'figure_4':
    return _figure_4(scale, repeats, experiments, change)
  title, rows, small, compared, lower, orderings, folds = _STUDIES[name]
  if folds and repeats > FOLDS:
    raise errors.InputError(
      f'--seeds is {repeats}, but {name} has {FOLDS} folds: give at most '
      f'{FOLDS}.'
    )
  preset = {'small': small}.get(scale, scale)
  runs, row_of = {}, {}
  for repeat in range(repeats):
    for label, row in rows.items():
      config = config_lib.load_experiment(
        experiments / f'{row.experiment}.py', preset
      )
      config.update_from_flattened_dict(row.changes)
      part = repeat
      if folds:
        part = FOLDS - 1 - repeat
        config.data.valid = f'fold:{part}/{FOLDS}'
      else:
        config.seed = repeat
      config.experiment = label
      change(config)
      config_lib.validate(config)
      key = f'{label.replace(",", "").replace(" ", "_")}_{part}'
      runs[key], row_of[key] = config, label
  return Study(name, title, rows, runs, row_of, compared, lower, orderings)


def _figure_4(scale, repeats, experiments, change) -> Study:
  path = experiments / 'gradient_flow.py'
  runs, row_of = {}, {}
  for seed in range(repeats):
    config = config_lib.load_experiment(path, scale)
    config.seed = seed
    change(config)
    for label, whole in config_lib.variants(config).items():
      runs[f'{label}_{seed}'], row_of[f'{label}_{seed}'] = whole, label
  rows = {label: Row('gradient_flow') for label in row_of.values()}
  return Study(
    'figure_4',
    'Updates of every layer (Drozdzal et al. 2016, Figure 4)',
    rows,
    runs,
    row_of,
    'best_val_loss',
    True,
    _versus(next(iter(rows)), rows),
  )
