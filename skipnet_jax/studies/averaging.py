"""Scores of averaged predictions: Table 2 of Drozdzal et al. 2016."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.analysis.page import report
from skipnet_jax.data import data_set
from skipnet_jax.data import isbi2012
from skipnet_jax.data import labels as labels_lib
from skipnet_jax.data import volume
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import trained as runs_lib
from skipnet_jax.scores import scores as scores_lib
from skipnet_jax.studies import plan
from skipnet_jax.studies import results

Say = Callable[[str], None]
# Ways to predict: the name in the table, and options of `make_predictor`.
Ways = dict[str, dict[str, Any]]
# Those of Table 2.
WAYS: Ways = {
  'no dropout': {},
  **{f'dropout, N = {n}': {'mc_samples': n} for n in (1, 5, 10, 30, 100)},
}
FILE = 'averaging.json'
# By these fields of summary.json, scores know their checkpoint.
_CHECKPOINT = ('best_epoch', 'best_val_bce')
KEYS = ('v_rand', 'v_info')


def measure(
  study: plan.Study, folder: pathlib.Path, ways: Ways, say: Say
) -> None:
  """Scores every finished run in each way that is not in its file yet.

  `averaging.json` in the run's folder: way to v_rand and v_info on the run's
  validation slices.
  """
  for name, summary in results.read(study, folder).items():
    file = folder / name / FILE
    scores = kept(file, summary)
    missing = [way for way in ways if way not in scores]
    if not missing:
      continue
    run = runs_lib.open_run(folder / name)
    data = runs_lib.load_data(run)
    for way in missing:
      predictor = run_predictor.make_predictor([run], **ways[way])
      slices = data.drawn(data.valid)
      scored = run_predictor.score_slices(predictor, data, slices)
      scores[way] = {key: scored[key] for key in KEYS}
      say(f'{name}, {way}: V_rand {scored["v_rand"]:.4f}')
      files.write_json(file, scores)


def kept(file: pathlib.Path, summary: Mapping[str, Any]) -> dict[str, Any]:
  """The scores in a run's file, if they are of its best checkpoint.

  Args:
    file: JSON; missing or of another checkpoint, it counts as empty.
    summary: of the run.
  """
  checkpoint = {key: summary.get(key) for key in _CHECKPOINT}
  scores = files.read_json(file)
  same = scores.get('checkpoint') == checkpoint
  return scores if same else {'checkpoint': checkpoint}


def table(study: plan.Study, folder: pathlib.Path, ways: Ways) -> report.Table:
  """Scores of each row and way, over the folds."""
  lines = []
  for label in study.rows:
    names = [name for name, row in study.row_of.items() if row == label]
    folds = [files.read_json(folder / name / FILE) for name in names]
    for way in ways:
      scored = [scores[way] for scores in folds if way in scores]
      if scored:
        cells = (
          results.mean_and_range([s[key] for s in scored]) for key in KEYS
        )
        lines.append([label, way, len(scored), *cells])
  return report.Table(
    'Averaging',
    'Mean, minimum and maximum over the folds, on the validation slices of '
    'each fold.',
    ['row', 'predicted by', 'folds', 'V_rand', 'V_info'],
    lines,
  )


def load_test_set(labels: str) -> tuple[np.ndarray, np.ndarray]:
  """The challenge's test slices `[z, y, x]`, and True inside a cell.

  Args:
    labels: see `test_set_table`.

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
  return image, inside


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
  image, inside = load_test_set(labels)
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
      around = data_set.neighbours(
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
