"""Scores of averaged predictions: dropout samples, orientations, networks.

Dropout samples are Table 2 of Drozdzal et al. 2016.
"""

from collections.abc import Callable, Sequence
import pathlib
import re
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.analysis.page import report
from skipnet_jax.data import isbi2012
from skipnet_jax.data import labels as labels_lib
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import trained as runs_lib
from skipnet_jax.scores import scores as scores_lib
from skipnet_jax.studies import plan
from skipnet_jax.studies import results

Say = Callable[[str], None]
# Ways to predict: the name in the tables, and options of `make_predictor`.
Ways = dict[str, dict[str, Any]]
# The ways that each study compares.
WAYS: dict[str, Ways] = {
  'table_2': {
    'no dropout': {},
    **{f'dropout, N = {n}': {'mc_samples': n} for n in (1, 5, 10, 30, 100)},
  },
  'recipe': {'one prediction': {}, '8 orientations': {'tta': True}},
}
FILE = 'averaging.json'
KEYS = ('v_rand', 'v_info')
_COLUMNS = ('predicted by', 'folds', 'V_rand', 'V_info')


def measure(
  study: plan.Study, folder: pathlib.Path, ways: Ways, say: Say
) -> None:
  """Scores every finished run in each way that is not in its file yet.

  `averaging.json` in the run's folder: way to v_rand and v_info on the run's
  validation slices.
  """
  for name in results.read(study, folder):
    _score(folder / name / FILE, [folder / name], ways, say, name)


def _score(
  file: pathlib.Path,
  paths: Sequence[pathlib.Path],
  ways: Ways,
  say: Say,
  label: str,
) -> dict[str, Any]:
  """Adds missing scores of the runs' averaged prediction to a JSON file."""
  scores = files.read_json(file)
  missing = [way for way in ways if way not in scores]
  if not missing:
    return scores
  runs = [runs_lib.open_run(path) for path in paths]
  data = runs_lib.load_data(runs[0])
  for way in missing:
    predictor = run_predictor.make_predictor(runs, **ways[way])
    scored = run_predictor.score_slices(predictor, data, data.drawn(data.valid))
    scores[way] = {key: scored[key] for key in KEYS}
    say(f'{label}, {way}: V_rand {scored["v_rand"]:.4f}')
    files.write_json(file, scores)
  return scores


def _lines(label: str, folds: Sequence[dict[str, Any]], ways: Ways) -> list:
  """Table rows of a label: one for each way, over the scores of its folds."""
  lines = []
  for way in ways:
    scored = [scores[way] for scores in folds if way in scores]
    if scored:
      cells = (results.mean_and_range([s[key] for s in scored]) for key in KEYS)
      lines.append([label, way, len(scored), *cells])
  return lines


def table(study: plan.Study, folder: pathlib.Path, ways: Ways) -> report.Table:
  """Scores of each row and way, over the folds."""
  lines = []
  for label in study.rows:
    names = [name for name, row in study.row_of.items() if row == label]
    folds = [files.read_json(folder / name / FILE) for name in names]
    lines += _lines(label, folds, ways)
  return report.Table(
    'Averaging',
    'Mean, minimum and maximum over the folds, on the validation slices of '
    'each fold.',
    ['row', *_COLUMNS],
    lines,
  )


def ensemble_table(
  study: plan.Study, folder: pathlib.Path, ways: Ways, say: Say
) -> report.Table:
  """Scores of the averaged prediction of all rows' networks, in each fold.

  Only rows whose `config.model` equals that of the first row take part. The
  scores are kept in the study's folder, in a file for each fold and set of
  rows.
  """
  first = next(iter(study.runs.values())).model
  members: dict[str, list[str]] = {}
  for name in results.read(study, folder):
    if study.runs[name].model == first:
      members.setdefault(name.rsplit('_', 1)[1], []).append(name)
  folds_of: dict[tuple[str, ...], list[dict[str, Any]]] = {}
  for fold, names in members.items():
    rows = tuple(study.row_of[name] for name in names)
    if len(rows) > 1:
      label = re.sub(r'[^a-z0-9]+', '_', '_'.join(rows).lower())
      file = folder / f'together_{fold}_{label}'[:200]
      paths = [folder / name for name in names]
      folds_of.setdefault(rows, []).append(
        _score(file.with_suffix('.json'), paths, ways, say, f'fold {fold}')
      )
  lines = []
  for rows, folds in folds_of.items():
    lines += _lines('; '.join(rows), folds, ways)
  return report.Table(
    'Averaged networks',
    'The prediction is the average of all networks of a fold, none of which '
    'was trained on its validation slices.',
    ['rows', *_COLUMNS],
    lines,
  )


def test_set_table(
  study: plan.Study, folder: pathlib.Path, labels: str, say: Say
) -> report.Table:
  """Scores on the challenge's test slices, for whoever has their labels.

  Each row's prediction is the average of the networks of all folds, without
  dropout and with 30 dropout samples.

  Args:
    study: table_2.
    folder: of its runs.
    labels: the official test labels, which no training uses.
    say: called with each progress message.

  Raises:
    InputError: the test stack is missing, or the labels do not fit it.
  """
  stacks = isbi2012.find()
  if stacks is None:
    raise errors.InputError(
      '--test_labels needs the test stack beside the training stacks: set '
      'SKIPNET_DATA_DIR to their folder.'
    )
  image, _ = isbi2012.load(stacks, 'test')
  with volume.open_stack(labels) as stack:
    inside = labels_lib.find_inside(stack.read_all(), image.shape, labels)
  finished, lines = results.read(study, folder), []
  for label in study.rows:
    runs = [
      runs_lib.open_run(folder / name)
      for name in finished
      if study.row_of[name] == label
    ]
    if not runs:
      continue
    for samples in (0, 30):
      predictor = run_predictor.make_predictor(runs, mc_samples=samples)
      tiling = predictor.tiling(image.shape[1:], log=say)
      around = sources.neighbours(
        np.arange(len(image)), len(image), predictor.slices
      )
      prediction = np.stack([predictor(image[i], tiling)[0] for i in around])
      scored = scores_lib.score_stack(prediction, inside)
      say(f'{label}, {samples} samples, test slices: {scored["v_rand"]:.4f}')
      cells = (f'{scored[key]:.4f}' for key in KEYS)
      lines.append([label, samples, len(runs), *cells])
  return report.Table(
    'Official test slices',
    'The prediction is the average of the networks of all folds.',
    ['loss', 'dropout samples', 'networks', 'V_rand', 'V_info'],
    lines,
  )
