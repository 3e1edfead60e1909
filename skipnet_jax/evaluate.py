"""Scores a run, or a TIFF of predictions.

`python -m skipnet_jax.evaluate --workdir=RUN`, or `--prediction=P.tif
--labels=L.tif --output=scores.json`
"""

import dataclasses
import os
import pathlib
import sys

from absl import flags

from skipnet_jax import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run to score.')
_SPLIT = flags.DEFINE_string(
  'split', 'valid', 'With --workdir: valid or train slices.'
)
_TTA = flags.DEFINE_bool(
  'tta', False, 'With --workdir: average the 8 flips and rotations.'
)
_SAMPLES = flags.DEFINE_integer(
  'mc_samples', 0, 'With --workdir: number of dropout samples to average.'
)
_CALIBRATION = flags.DEFINE_enum(
  'calibration',
  'auto',
  ['auto', 'fit', 'off'],
  "With --workdir: auto: use the run's calibration.json, if it has one; fit: "
  'make it from the training slices first; off: leave it out.',
)
_SEGMENT = flags.DEFINE_enum(
  'segment',
  None,
  ['multicut', 'lifted_multicut'],
  'With --workdir: score the cells of this method too. The run keeps in '
  'edges.json what this fits to its training slices.',
)
_PREDICTION = flags.DEFINE_string(
  'prediction',
  None,
  'TIFF to score: probabilities, 1 inside a cell, or numbered cells.',
)
_PREDICTION_KIND = flags.DEFINE_string(
  'prediction_kind',
  '',
  'probability, or instances: a number for each cell. By default instances for '
  'integers of 16 and more bits.',
)
_LABELS = flags.DEFINE_string(
  'labels',
  None,
  'TIFF of the labels. With --workdir: where the labels of a stack of your '
  'own lie, if they were moved.',
)
_KIND = flags.DEFINE_string(
  'labels_kind',
  'binary',
  'binary: two values, the larger inside cells; or instances: a number for '
  'each cell, 0 on membranes.',
)
_INVERTED = flags.DEFINE_bool(
  'labels_inverted', False, 'Of binary labels the smaller value is inside.'
)
_IMAGE = flags.DEFINE_string(
  'image',
  None,
  'With --prediction: the stack itself, for --panels. With --workdir: where a '
  'stack of your own lies, if it was moved.',
)
_SERIES = flags.DEFINE_integer(
  'series', 0, 'Which image of the file --image, from 1; 0: the only one.'
)
_CHANNEL = flags.DEFINE_integer(
  'channel', 0, 'Which channel of --image, from 1; 0: the only one.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'JSON file of the scores, with their curves beside it as PNG; by default '
  'scores.json in --workdir, with --segment=multicut scores_multicut.json.',
)
_PANELS = flags.DEFINE_string(
  'panels', None, 'Folder for a picture of each slice.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace existing files.')


def main() -> None:
  """Scores a run or two files."""
  of_run = bool(_WORKDIR.value)
  if of_run == bool(_PREDICTION.value):
    cli.refuse('Give either --workdir, or --prediction and --labels.')
  of_files = _PREDICTION_KIND, _KIND, _INVERTED, _SERIES, _CHANNEL
  if of_run:
    cli.refuse_given('goes with --prediction.', *of_files)
  else:
    for_runs = _SPLIT, _TTA, _SAMPLES, _CALIBRATION, _SEGMENT
    cli.refuse_given('goes with --workdir.', *for_runs)
    if not _PANELS.value:
      cli.refuse_given('goes with --panels, the pictures that show it.', _IMAGE)
  if not _IMAGE.value and (_SERIES.present or _CHANNEL.present):
    cli.refuse('--series and --channel go with --image.')
  # Imported late, so that --help does not wait for JAX.
  from skipnet_jax import environment
  from skipnet_jax.data import volume
  from skipnet_jax.evaluation import report
  from skipnet_jax.evaluation import run_scores
  from skipnet_jax.evaluation import scoring
  from skipnet_jax.prediction import fitted
  from skipnet_jax.runs import workdir

  inputs = [f.value for f in (_PREDICTION, _LABELS, _IMAGE) if f.value]
  if _WORKDIR.value:
    data = workdir.read_config(_WORKDIR.value).data
    inputs += [
      environment.expand_home(p) for p in (data.image, data.label) if p
    ]
    # What a run has besides its scores.
    own = 'config.json', 'environment.json', 'summary.json'
    fits = 'calibration.json', 'edges.json'
    inputs += [os.path.join(_WORKDIR.value, name) for name in (*own, *fits)]
    parts = [
      'scores',
      *(['train'] if _SPLIT.value == 'train' else []),
      *([_SEGMENT.value] if _SEGMENT.value else []),
    ]
    name = f'{"_".join(parts)}.json'
    output = _OUTPUT.value or pathlib.Path(_WORKDIR.value, name)
  else:
    labels, output = cli.require(_LABELS), cli.require(_OUTPUT)
  panels = pathlib.Path(_PANELS.value) if _PANELS.value else None
  files = report.OutputFiles(pathlib.Path(output), panels)
  files.check(_OVERWRITE.value, inputs)
  if _WORKDIR.value:
    evaluation = run_scores.score_run(
      _WORKDIR.value,
      _SPLIT.value,
      image=_IMAGE.value or '',
      labels=_LABELS.value or '',
      averaging=fitted.Averaging(_TTA.value, _SAMPLES.value),
      calibrate=_CALIBRATION.value,
      segment=_SEGMENT.value or '',
      log=print,
    )
  else:
    evaluation = scoring.score_files(
      cli.require(_PREDICTION),
      labels,
      dataclasses.replace(
        scoring.LABELS, kind=_KIND.value, inverted=_INVERTED.value
      ),
      _PREDICTION_KIND.value,
      _IMAGE.value,
      volume.Choice(_SERIES.value, _CHANNEL.value, '--'),
    )
  print(evaluation.title)
  if evaluation.identity.get('prediction_kind') == 'instances':
    print('The prediction numbers cells (--prediction_kind=instances).')
  print(report.format_table(evaluation.results))
  for line in files.write(evaluation):
    print(line)
  if evaluation.warning:
    print(f'warning: {evaluation.warning}', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main, 'unfinished files are removed.')
