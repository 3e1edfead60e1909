"""Scores of a study's runs as segmentations, by each way to make cells.

Guo et al. 2019 score after post-processing by lifted multicut. Everything that
is fitted here, the calibration and the edges, sees training slices alone.
"""

from collections.abc import Callable
import contextlib
import pathlib

import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.analysis.page import report
from skipnet_jax.data import data_set
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import run_predictor
from skipnet_jax.prediction.cells import cells
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores
from skipnet_jax.studies import averaging
from skipnet_jax.studies import plan
from skipnet_jax.studies import results

FILE = 'segmentation.json'
CEILING = 'labels on superpixels'
_PLAIN, _TURNED = fitted.Averaging(), fitted.Averaging(tta=True)
# What each study compares. Eight orientations of every system would take longer
# than their training.
STUDIES = {
  'segmentation': (_PLAIN, _TURNED),
  'recipe': (_PLAIN, _TURNED),
  'systems': (_PLAIN,),
}
METHODS = ('thresholds', 'calibrated thresholds', *cells.METHODS, CEILING)


def _ways(each: fitted.Averaging) -> list[str]:
  return [m if each == _PLAIN else f'{m}, {each.name}' for m in METHODS]


# The ways of the tables: each method with each averaging.
WAYS = (*_ways(_PLAIN), *_ways(_TURNED))


def measure(
  study: plan.Study, folder: pathlib.Path, say: Callable[[str], None]
) -> None:
  """Scores every finished run in each way that is not in its file yet.

  `segmentation.json` in the run's folder: way to v_rand and v_info on the run's
  validation slices, or null, see `score`.
  """
  for name, summary in results.read(study, folder).items():
    file = folder / name / FILE
    known = averaging.kept(file, summary)
    for each in STUDIES[study.name]:
      ways = _ways(each)
      if not set(ways) <= set(known):
        run = trained.open_run(folder / name)
        found = score(run, trained.load_data(run), each)
        known |= dict(zip(ways, found.values(), strict=True))
        files.write_json(file, known)
        for way, row in zip(ways, found.values(), strict=True):
          rand = f'V_rand {row["v_rand"]:.4f}' if row else 'not possible'
          say(f'{name}, {way}: {rand}')


def score(
  run: trained.TrainedRun, data: data_set.DataSet, averaging_: fitted.Averaging
) -> dict[str, dict[str, float] | None]:
  """Scores on the validation slices by each of METHODS.

  Returns:
    Method to `v_rand` and `v_info`; None where the training slices have too few
    edges between superpixels for a fit, as after a few steps of training.
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
  valid = measured['valid']
  calibrate = calibration.fit(pages['train'], inside['train'])
  drawn = {
    'thresholds': pages['valid'],
    'calibrated thresholds': calibrate(pages['valid']),
  }
  methods: tuple[str, ...] = ()
  with contextlib.suppress(errors.InputError):
    regressions = edge_fit.fit(measured['train'], inside['train'])
    methods = cells.METHODS if regressions.lifted else cells.METHODS[:1]
  for method in methods:
    drawn[method] = np.stack(
      [cells.draw(cells.segment(each, regressions, method)) for each in valid]
    )
  drawn[CEILING] = np.stack(
    [
      cells.draw(edge_fit.nearest_regions(each.graph, page)[each.graph.labels])
      for each, page in zip(valid, inside['valid'], strict=True)
    ]
  )
  found = dict.fromkeys(METHODS)
  for method, pictures in drawn.items():
    scored = scores.score_stack(pictures, inside['valid'])
    found[method] = {key: scored[key] for key in averaging.KEYS}
  return found


def table(study: plan.Study, folder: pathlib.Path) -> report.Table:
  """Scores of each row and way, over the runs; other rows beside the first."""
  first, *others = study.rows
  found = {name: files.read_json(folder / name / FILE) for name in study.runs}

  def of_row(label: str, way: str) -> dict[str, dict[str, float]]:
    # By seed or fold: the end of the run's name.
    return {
      name.rsplit('_', 1)[1]: scores_[way]
      for name, scores_ in found.items()
      if study.row_of[name] == label and scores_.get(way)
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
