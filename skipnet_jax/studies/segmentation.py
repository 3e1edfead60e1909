"""Scores of a study's runs as segmentations, by each way to make cells.

Guo et al. 2019 score after post-processing by lifted multicut. Everything that
is fitted here, the calibration and the edges, sees training slices alone.
"""

from collections.abc import Callable
import pathlib

import numpy as np

from skipnet_jax import files
from skipnet_jax.analysis.page import report
from skipnet_jax.data import sources
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import cells
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores
from skipnet_jax.studies import averaging
from skipnet_jax.studies import plan
from skipnet_jax.studies import results

STUDIES = ('segmentation', 'recipe')
FILE = 'segmentation.json'
CEILING = 'labels on superpixels'
AVERAGINGS = (fitted.Averaging(), fitted.Averaging(tta=True))
METHODS = ('thresholds', 'calibrated thresholds', *cells.METHODS, CEILING)
# The ways of the tables: each method with each averaging.
WAYS = tuple(
  method if each.name == 'plain' else f'{method}, {each.name}'
  for each in AVERAGINGS
  for method in METHODS
)


def measure(
  study: plan.Study, folder: pathlib.Path, say: Callable[[str], None]
) -> None:
  """Scores every finished run in each way that is not in its file yet.

  `segmentation.json` in the run's folder: way to v_rand and v_info on the run's
  validation slices.
  """
  for name in results.read(study, folder):
    file = folder / name / FILE
    known = files.read_json(file)
    for number, each in enumerate(AVERAGINGS):
      ways = WAYS[number * len(METHODS) :][: len(METHODS)]
      if not set(ways) <= set(known):
        run = trained.open_run(folder / name)
        found = score(run, trained.load_data(run), each)
        known |= dict(zip(ways, found, strict=True))
        files.write_json(file, known)
        say(f'{name}, {each.name}: multicut {known[ways[2]]["v_rand"]:.4f}')


def score(
  run: trained.TrainedRun, data: sources.DataSet, averaging_: fitted.Averaging
) -> list[dict[str, float]]:
  """`v_rand` and `v_info` on the validation slices, for each of METHODS.

  Raises:
    InputError: see `edge_fit.fit`.
  """
  predictor = run_predictor.make_predictor([run], tta=averaging_.tta)
  pages, measured, inside = {}, {}, {}
  for split in ('train', 'valid'):
    slices = data.drawn(getattr(data, split))
    pages[split] = run_predictor.predict_slices(predictor, data, slices)
    measured[split] = [
      cells.measure(page, data.image[z])
      for z, page in zip(slices, pages[split], strict=True)
    ]
    inside[split] = data.label[slices]
  calibrate = calibration.fit(pages['train'], inside['train'])
  regressions = edge_fit.fit(measured['train'], inside['train'])

  valid = list(zip(measured['valid'], inside['valid'], strict=True))
  by_cells = [
    [cells.segment(each, regressions, method) for each, _ in valid]
    for method in cells.METHODS
  ]
  by_cells.append(
    [
      edge_fit.nearest_regions(each.graph, page)[each.graph.labels]
      for each, page in valid
    ]
  )
  predictions = [
    pages['valid'],
    calibrate(pages['valid']),
    *(np.stack([cells.draw(page) for page in each]) for each in by_cells),
  ]
  scored = (scores.score_stack(each, inside['valid']) for each in predictions)
  return [{key: each[key] for key in averaging.KEYS} for each in scored]


def table(study: plan.Study, folder: pathlib.Path) -> report.Table:
  """Scores of each row and way, over the runs; other rows beside the first."""
  first, *others = study.rows
  found = {name: files.read_json(folder / name / FILE) for name in study.runs}

  def of_row(label: str, way: str) -> dict[str, dict[str, float]]:
    # By seed or fold: the end of the run's name.
    return {
      name.rsplit('_', 1)[1]: scores_[way]
      for name, scores_ in found.items()
      if study.row_of[name] == label and way in scores_
    }

  lines = []
  for label in study.rows:
    for way in WAYS:
      runs, base = of_row(label, way), of_row(first, way)
      if not runs:
        continue
      line = [label, way, len(runs)]
      for key in averaging.KEYS:
        line.append(results.mean_and_range([run[key] for run in runs.values()]))
        both = runs.keys() & base.keys()
        above = sum(runs[k][key] > base[k][key] for k in both)
        wins = '-' if label == first else f'{above} of {len(both)}'
        line += [wins] if others else []
      lines.append(line)
  columns = ['row', 'cells by', 'runs']
  for name in ('V_rand', 'V_info'):
    columns += [name, *([f'above {first} in'] if others else [])]
  return report.Table(
    'Segmentation',
    'Mean, minimum and maximum over the runs, on the validation slices of '
    'each. Calibration and edges are fitted to its training slices. Labels on '
    'superpixels: each superpixel in the true region with which it shares most '
    'pixels; no way to join superpixels does much better.',
    columns,
    lines,
  )
