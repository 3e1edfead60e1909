"""Dropout samples averaged (Drozdzal et al. 2016, Table 2)."""

from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.analysis import report
from skipnet_jax.data import isbi2012
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.evaluation import runs as runs_lib
from skipnet_jax.evaluation import scores as scores_lib
from skipnet_jax.studies import plan
from skipnet_jax.studies import results
from skipnet_jax.studies import runner
from skipnet_jax.training import workdir

Say = Callable[[str], None]
# 0: no dropout, one prediction.
SAMPLES = (0, 1, 5, 10, 30, 100)
FILE = 'averaging.json'


def measure(
  study: plan.Study, folder: pathlib.Path, say: Say, samples=SAMPLES
) -> None:
  """Scores every finished run with each number of samples; keeps what is there.

  In `averaging.json` of the run's folder: samples to v_rand and v_info on the
  run's validation slices.
  """
  for name in study.runs:
    path = folder / name
    if runner.summary_of(path) is None:
      continue
    found = _read(path)
    todo = [n for n in samples if str(n) not in found]
    if not todo:
      continue
    run = runs_lib.open_run(path)
    data = runs_lib.load_data(run)
    for n in todo:
      predictor = runs_lib.make_predictor([run], mc_samples=n)
      _, scored = runs_lib.score_slices(predictor, data, data.valid)
      found[str(n)] = {key: scored[key] for key in ('v_rand', 'v_info')}
      say(f'{name}, {n} samples: {found[str(n)]}')
      workdir.write_json(path / FILE, found)


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads((path / FILE).read_text())
  except (OSError, ValueError):
    return {}


def table(
  study: plan.Study, folder: pathlib.Path, samples=SAMPLES
) -> report.Table:
  """A line for each loss and number of samples, with the spread over folds."""
  lines = []
  for label in study.rows:
    names = [name for name, row in study.row_of.items() if row == label]
    found = [kept for name in names if (kept := _read(folder / name))]
    for n in samples:
      scored = [kept[str(n)] for kept in found if str(n) in kept]
      if scored:
        lines.append(
          [
            label,
            n or 'no dropout',
            len(scored),
            *(
              results.spread([s[key] for s in scored])
              for key in ('v_rand', 'v_info')
            ),
          ]
        )
  return report.Table(
    'Averaging',
    'Mean, least and most over the folds, on the validation slices of each.',
    ['loss', 'dropout samples', 'folds', 'V_rand', 'V_info'],
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
      if row == label and runner.summary_of(folder / name)
    ]
    if not runs:
      continue
    for n in samples:
      predictor = runs_lib.make_predictor(runs, mc_samples=n)
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
