"""The tables of a gradient-flow report."""

from collections.abc import Sequence
import json

import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax.analysis import measure
from skipnet_jax.analysis.page import findings
from skipnet_jax.analysis.page import point_figures
from skipnet_jax.analysis.page import report
from skipnet_jax.runs import recorded

Config = ml_collections.ConfigDict
Runs = Sequence[recorded.RecordedRun]

# Training slices on which the sharpness is measured.
SHARP_SLICES = 2
_L2 = ('', '_with_l2')


def sharpness(sharp: dict[str, dict[str, measure.Sharp]]) -> report.Table:
  """The sharpness of each run at some moments."""
  rows = []
  for run, moments in sharp.items():
    for moment, each in moments.items():
      row = [run, moment, each.limit]
      for found in (each.plain, each.preconditioned):
        ratio = found.value / each.limit if found else None
        row += [found.value if found else None, ratio]
      rows.append(row)
  return report.Table(
    'Sharpness',
    'The largest eigenvalue of the Hessian of the training loss, L2 included, '
    f'on the centres of the first {SHARP_SLICES} training slices; a bound '
    'from below, by twelve products with a vector. RMSprop divides gradients '
    'by P: with P, it is that of P^(-1/2) H P^(-1/2). Where the ratio to '
    '2 / learning rate is above 1, steps along that direction grow (Cohen et '
    'al. 2022).',
    (
      *('run', 'at', '2 / learning rate'),
      *('eigenvalue', 'ratio', 'with P', 'ratio with P'),
    ),
    rows,
    'sharpness',
  )


def found_skips(points: point_figures.Points) -> list[report.Table]:
  """A table of the skips that were found; [] if all networks name theirs."""
  rows = [
    (name, join.name, join.kind, join.layers)
    for name, by_moment in points.items()
    for join in next(iter(by_moment.values())).found
  ]
  if not rows:
    return []
  return [
    report.Table(
      'Skips that were found',
      'These networks do not name their skips. In their traced programs, one '
      'side of each of these sums and concatenations bypasses layers that the '
      'other side passes. A long skip bypasses layers of lower resolution.',
      ('network', 'where', 'kind', 'layers bypassed'),
      rows,
    )
  ]


def differences(configs: dict[str, Config]) -> report.Table:
  """Every config field in which networks differ."""
  varied = config_identity.varied(list(configs.values()))
  cells = [
    [value if isinstance(value, str) else json.dumps(value) for value in values]
    for values in varied.values()
  ]
  text = 'Every config field in which they differ.'
  return report.Table(
    'What was compared',
    text if varied else 'No field differs.',
    ('run', *varied),
    list(zip(configs, *cells, strict=True)),
    'differences',
  )


def least_trained(runs: Runs) -> report.Table:
  """The stage of each run that is updated least."""
  return report.Table(
    'The least trained stage',
    'The stage with the smallest change of its weights, and the one with the '
    'smallest gradient, in the last half of the epochs. Each is divided by the '
    'mean over all convolutions; all means are geometric.',
    (
      *('run', 'least net change', 'its share of the mean'),
      *('least gradient', 'share of the mean'),
    ),
    [
      (
        run.name,
        *(
          cell
          for quantity in ('net_change', 'grad_l2')
          for least in [findings.least_stage(run, quantity)]
          for cell in ((least.stage, least.ratio) if least else (None, None))
        ),
      )
      for run in runs
    ],
    'least_trained',
  )


def scores(runs: Runs) -> report.Table:
  """Losses and scores of each run."""
  rows = []
  for run in runs:
    epoch = run.summary.get('best_epoch')
    if epoch is None:
      epoch = 1 + int(np.nanargmin(run.curve('valid_loss')))
    by_epoch = {record['epoch']: record for record in run.records}
    best = by_epoch.get(epoch, {})
    rows.append(
      (
        run.name,
        len(run.layers),
        run.summary.get('parameters'),
        epoch,
        *(best.get(f'{p}_loss{l2}') for p in ('train', 'valid') for l2 in _L2),
        *(run.summary.get(n) for n in ('constant_val_bce', 'v_rand', 'v_info')),
      )
    )
  return report.Table(
    'Losses and scores',
    'Losses at the epoch of the best validation loss, without and with the L2 '
    'term. Constant: the BCE of predicting the mean label of the validation '
    'slices everywhere. V_rand and V_info: of the checkpoint of that epoch, '
    "the best over the challenge's thresholds.",
    (
      *('run', 'convolutions', 'parameters', 'best epoch'),
      *('train loss', 'train + L2', 'valid loss', 'valid + L2'),
      *('constant BCE', 'V_rand', 'V_info'),
    ),
    rows,
    'scores',
  )
