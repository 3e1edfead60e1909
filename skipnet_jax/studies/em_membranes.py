"""The study behind the networks that ship: two tissues, five folds.

The pages of both stacks are joined, at one pixel size, into one stack to train
on. A fold holds out the same part of both. Networks of both tissues and of
either alone are scored on the held-out slices of both stacks, at the pixel size
of these, as `predict` treats a file; so is the image itself, blurred.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np
import scipy.ndimage

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.analysis.page import report
from skipnet_jax.data import labels
from skipnet_jax.evaluation import run_scores
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import run_predictor
from skipnet_jax.prediction import segmenters
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores
from skipnet_jax.studies import plan
from skipnet_jax.studies import tissues as tissues_lib

ROWS = ('both', 'isbi2012', 'fibsem')
METHODS = ('calibrated thresholds', 'multicut')
BASELINE = 'blurred image'
# Of the baseline: sigmas in pixels of the stack.
_SIGMAS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
Say = Callable[[str], None]


def check_output(folder: pathlib.Path) -> None:
  """Makes the folder of the results; call it before any training.

  Raises:
    InputError: it cannot be written, or has files that are no results of this
      study.
  """
  report.make_folder(folder)
  path = folder / 'scores.json'
  if set(files.read_json(path)) >= {'runs', 'rows'}:
    return
  names = 'scores.json', 'table.md', *(f'{row}.png' for row in ROWS)
  files.check_outputs(
    [folder / name for name in names],
    overwrite=False,
    remedy=f'{path} is no result of this study; choose another --output',
  )


def make(
  tissues: Sequence[tissues_lib.Tissue],
  data: pathlib.Path,
  experiment: pathlib.Path,
  folds: Iterable[int],
  rows: Sequence[str] = ROWS,
) -> plan.Study:
  """Plans the runs.

  Args:
    tissues: in the order of `tissues.join`.
    data: folder of `tissues.join`.
    experiment: experiments/em_membranes.py.
    folds: of `tissues.FOLDS`.
    rows: of ROWS.
  """
  runs, row_of = {}, {}
  for fold in folds:
    for row in rows:
      config = config_lib.load_experiment(experiment, row)
      config.data.image = str(data / 'image.tif')
      config.data.label = str(data / 'labels.tif')
      pages: tuple[list[int], list[int]] = ([], [])
      start = 0
      for tissue in tissues:
        if row in ('both', tissue.name):
          for found, part in zip(pages, tissue.fold(fold), strict=True):
            found += [start + z for z in part]
        start += len(tissue.image)
      config.data.train, config.data.valid = map(labels.ranges, pages)
      config_checks.validate(config)
      runs[f'{row}_{fold}'], row_of[f'{row}_{fold}'] = config, row
  return plan.Study(
    'em_membranes',
    'Networks that ship: two tissues, five folds',
    {row: plan.Row('em_membranes') for row in rows},
    runs,
    row_of,
    'best_val_bce',
    (),
  )


def fit(path: pathlib.Path, averaging: fitted.Averaging, say: Say) -> None:
  """Fits calibration and edges to a run's training slices, where they lack."""
  run = trained.open_run(path)
  try:
    edge_fit.of_run(run, averaging, 'multicut')
    found = calibration.of_run(run, averaging)
  except errors.InputError:
    found = None
  if found is None:
    run_scores.score_run(
      path,
      'valid',
      image='',
      labels='',
      averaging=averaging,
      calibrate='fit',
      segment='multicut',
      log=say,
    )


def score(
  run: trained.TrainedRun, tissue: tissues_lib.Tissue, slices: Sequence[int]
) -> dict[str, dict[str, float]]:
  """V_rand and V_info of some slices of a tissue, by each of METHODS."""
  averaging = fitted.Averaging()
  predictor = run_predictor.make_predictor([run])
  calibrate = calibration.of_run(run, averaging)
  assert calibrate is not None  # After `fit`.
  by_edges = segmenters.choose([run], averaging, 'multicut', None, None)
  grid = tissue.grid
  tiling = predictor.tiling(grid.network)
  shown: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
  for z in slices:
    page = grid.to_network(tissue.image[z])
    inside, _ = predictor(page, tiling)
    shown['calibrated thresholds'].append(calibrate(grid.from_network(inside)))
    found = by_edges(inside, page, grid)
    shown['multicut'].append((found > 0).astype(np.float32))
  return {m: _scores(np.stack(p), tissue, slices) for m, p in shown.items()}


def _scores(
  pages: np.ndarray, tissue: tissues_lib.Tissue, slices: Sequence[int]
) -> dict[str, float]:
  found = scores.score_stack(pages, tissue.inside[list(slices)])
  return {key: found[key] for key in ('v_rand', 'v_info')}


def baseline(tissue: tissues_lib.Tissue, fold: int) -> dict[str, float]:
  """Scores of the blurred image as if it were a probability map.

  The blur is that with the best V_rand on the training slices. Each slice's
  grey values are ranked, so that thresholds are shares of the pixels.

  Returns:
    v_rand and v_info of the held-out slices, at the best threshold of each, and
    the blur's sigma in pixels.
  """
  training, held = tissue.fold(fold)

  def blurred(slices: Sequence[int], sigma: float) -> np.ndarray:
    pages = []
    for z in slices:
      page = scipy.ndimage.gaussian_filter(
        tissue.image[z].astype(np.float32), sigma
      )
      ranks = np.empty(page.size, np.float32)
      ranks[page.ravel().argsort(kind='stable')] = np.arange(page.size)
      pages.append(ranks.reshape(page.shape) / page.size)
    return np.stack(pages)

  def rand(sigma: float) -> float:
    return _scores(blurred(training, sigma), tissue, training)['v_rand']

  sigma = max(_SIGMAS, key=rand)
  return {**_scores(blurred(held, sigma), tissue, held), 'sigma': sigma}


def unscored(study: plan.Study, path: pathlib.Path) -> plan.Study:
  """The study without the runs whose scores a results file has already.

  Args:
    study: from `make`.
    path: scores.json of the results, as `measure` writes it; may be missing.

  Raises:
    InputError: the file has scores of a run with another config.
  """
  known = files.read_json(path).get('runs', {})
  runs = {}
  for name, config in study.runs.items():
    if name not in known:
      runs[name] = config
    elif known[name]['config'] != config_identity.hash_of(config):
      raise errors.InputError(
        f'{path} has the scores of {name} with config {known[name]["config"]}, '
        f'and its config is {config_identity.hash_of(config)} now: give '
        'another --output, or move the file away.'
      )
  return dataclasses.replace(study, runs=runs)


def measure(
  study: plan.Study,
  folder: pathlib.Path,
  tissues: Sequence[tissues_lib.Tissue],
  path: pathlib.Path,
  say: Say,
) -> dict[str, Any]:
  """Scores the finished runs that have no scores, and the baseline.

  Args:
    study: from `make`.
    folder: of its runs.
    tissues: to score on.
    path: scores.json of the results, written after each run. What it has is
      kept.
    say: called with each progress message.

  Returns:
    Row to tissue to method to fold to scores.
  """
  content: dict[str, Any] = {'command': '', 'date': '', 'runs': {}, 'rows': {}}
  content.update(files.read_json(path))
  found = content['rows']

  def write() -> None:
    content.update(command=environment.command(), date=environment.now())
    files.write_json(path, content)

  for name, config in unscored(study, path).runs.items():
    if not (folder / name / 'summary.json').exists():
      continue
    row, _, fold = name.rpartition('_')
    fit(folder / name, fitted.Averaging(), say)
    run = trained.open_run(folder / name)
    for tissue in tissues:
      by_method = score(run, tissue, tissue.fold(int(fold))[1])
      for method, each in by_method.items():
        say(f'{name} on {tissue.name}, {method}: {_shown(each)}')
        into = found.setdefault(row, {}).setdefault(tissue.name, {})
        into.setdefault(method, {})[fold] = each
    made = files.read_json(folder / name / 'environment.json')
    kept = {key: made.get(key) for key in ('date', 'git')}
    kept |= {'config': config_identity.hash_of(config)}
    content['runs'][name] = kept
    write()
  for tissue in tissues:
    into = found.setdefault(BASELINE, {}).setdefault(tissue.name, {})
    into = into.setdefault('thresholds', {})
    for fold in sorted({name.rpartition('_')[2] for name in study.runs}):
      if fold not in into:
        into[fold] = baseline(tissue, int(fold))
        say(f'{BASELINE} of {tissue.name}, fold {fold}: {_shown(into[fold])}')
        write()
  return found


def _shown(each: Mapping[str, float]) -> str:
  return f'V_rand {each["v_rand"]:.4f}, V_info {each["v_info"]:.4f}'


def table(found: Mapping[str, Any]) -> str:
  """The scores as Markdown: mean, least and most over the folds of all rows.

  Folds differ by more than networks do, so that a fold counts only if each row
  has it.
  """
  folds = set.intersection(
    *(
      set(by_fold)
      for by_tissue in found.values()
      for by_method in by_tissue.values()
      for by_fold in by_method.values()
    )
  )
  if not folds:
    return 'No fold has scores of all rows yet.\n'
  lines = [
    '| trained on | scored on | cells by | folds | V_rand | V_info |',
    '|---|---|---|---|---|---|',
  ]
  for row, by_tissue in found.items():
    for tissue, by_method in by_tissue.items():
      for method, by_fold in by_method.items():
        cellsof = []
        for key in ('v_rand', 'v_info'):
          values = [by_fold[fold][key] for fold in sorted(folds)]
          cellsof.append(
            f'{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})'
          )
        lines.append(
          f'| {row} | {tissue} | {method} | {len(folds)} | '
          + ' | '.join(cellsof)
          + ' |'
        )
  return '\n'.join(lines) + '\n'
