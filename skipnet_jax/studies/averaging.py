"""Predictions averaged: dropout samples, orientations, several networks.

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
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import trained as runs_lib
from skipnet_jax.scores import scores as scores_lib
from skipnet_jax.studies import plan
from skipnet_jax.studies import results

Say = Callable[[str], None]
Ways = dict[str, dict[str, Any]]
# Study: what a table calls a way to predict, and its options.
PLAIN, TURNED = 'one prediction', '8 orientations'
WAYS: dict[str, Ways] = {
  'table_2': {
    'no dropout': {},
    **{f'dropout, N = {n}': {'mc_samples': n} for n in (1, 5, 10, 30, 100)},
  },
  'recipe': {PLAIN: {}, TURNED: {'tta': True}},
}
FILE = 'averaging.json'
KEYS = ('v_rand', 'v_info')


def measure(
  study: plan.Study, folder: pathlib.Path, ways: Ways, say: Say
) -> None:
  """Scores every finished run in each way; keeps what is there.

  In `averaging.json` of the run's folder: the way to v_rand and v_info on the
  run's validation slices.
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
  """Adds to a file what it lacks: scores of the paths' networks averaged."""
  found = files.read_json(file)
  todo = [way for way in ways if way not in found]
  if not todo:
    return found
  runs = [runs_lib.open_run(path) for path in paths]
  data = runs_lib.load_data(runs[0])
  for way in todo:
    predictor = run_predictor.make_predictor(runs, **ways[way])
    _, scored = run_predictor.score_slices(predictor, data, data.valid)
    found[way] = {key: scored[key] for key in KEYS}
    say(f'{label}, {way}: V_rand {scored["v_rand"]:.4f}')
    files.write_json(file, found)
  return found


def _lines(label: str, found: Sequence[dict[str, Any]], ways: Ways) -> list:
  lines = []
  for way in ways:
    scored = [kept[way] for kept in found if way in kept]
    if scored:
      spreads = (results.spread([s[key] for s in scored]) for key in KEYS)
      lines.append([label, way, len(scored), *spreads])
  return lines


def table(study: plan.Study, folder: pathlib.Path, ways: Ways) -> report.Table:
  """A line for each row and way, with the spread over folds."""
  lines = []
  for label in study.rows:
    names = [name for name, row in study.row_of.items() if row == label]
    kept = [files.read_json(folder / name / FILE) for name in names]
    found = [scored for scored in kept if scored]
    lines += _lines(label, found, ways)
  return report.Table(
    'Averaging',
    'Mean, least and most over the folds, on the validation slices of each.',
    ['row', 'predicted by', 'folds', 'V_rand', 'V_info'],
    lines,
  )


def together(
  study: plan.Study, folder: pathlib.Path, ways: Ways, say: Say
) -> report.Table:
  """What the networks of all rows give, averaged fold by fold.

  Of those rows whose network is the first row's. Kept in the study's folder,
  by the rows that took part.
  """
  done = results.read(study, folder)
  first = next(iter(study.runs.values())).model
  members: dict[str, list[str]] = {}
  for name in done:
    if study.runs[name].model == first:
      members.setdefault(name.rsplit('_', 1)[1], []).append(name)
  lines = []
  by_rows: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
  for fold, names in members.items():
    rows = tuple(study.row_of[name] for name in names)
    by_rows.setdefault(rows, []).append((fold, names))
  for rows, folds in by_rows.items():
    if len(rows) < 2:
      continue
    found = []
    for fold, names in folds:
      label = re.sub(r'[^a-z0-9]+', '_', '_'.join(rows).lower())
      file = folder / f'together_{fold}_{label}'[:200]
      paths = [folder / name for name in names]
      found.append(
        _score(file.with_suffix('.json'), paths, ways, say, f'fold {fold}')
      )
    lines += _lines('; '.join(rows), found, ways)
  return report.Table(
    'Averaged networks',
    'All networks of a fold averaged, each trained without its validation '
    'slices.',
    ['rows', 'predicted by', 'folds', 'V_rand', 'V_info'],
    lines,
  )


def official(
  study: plan.Study,
  folder: pathlib.Path,
  labels: str,
  say: Say,
  samples: Sequence[int] = (0, 30),
) -> report.Table:
  """The challenge's test slices, by whoever has their labels.

  Args:
    study: table_2.
    folder: of its runs.
    labels: the official test labels; never part of any training here.
    say: told of progress.
    samples: of dropout.

  Raises:
    InputError: the test stack is not found, or the labels do not fit it.
  """
  stacks = isbi2012.find()
  if stacks is None:
    raise errors.InputError(
      '--test_labels needs the test stack beside the training stacks: name '
      'their folder in SKIPNET_DATA_DIR.'
    )
  image, _ = isbi2012.load(stacks, 'test')
  with volume.open_stack(labels) as stack:
    inside = volume.check_labels(stack.read_all(), image.shape, labels)
  lines = []
  for label in study.rows:
    runs = [
      runs_lib.open_run(folder / name)
      for name, row in study.row_of.items()
      if row == label and files.read_json(folder / name / 'summary.json')
    ]
    if not runs:
      continue
    for n in samples:
      predictor = run_predictor.make_predictor(runs, mc_samples=n)
      tiling = predictor.tiling(image.shape[1:], say=say)
      around = sources.neighbours(
        np.arange(len(image)), len(image), predictor.slices
      )
      prediction = np.stack([predictor(image[i], tiling)[0] for i in around])
      scored = scores_lib.score_stack(prediction, inside)
      say(f'{label}, {n} samples, test slices: {scored["v_rand"]:.4f}')
      found = (f'{scored[key]:.4f}' for key in ('v_rand', 'v_info'))
      lines.append([label, n, len(runs), *found])
  return report.Table(
    'Official test slices',
    'The networks of all folds averaged.',
    ['loss', 'dropout samples', 'networks', 'V_rand', 'V_info'],
    lines,
  )
