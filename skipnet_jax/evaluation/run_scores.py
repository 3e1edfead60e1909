"""Scores the predictions of a run on its own data."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import data_set
from skipnet_jax.evaluation import scoring
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import progress as progress_lib
from skipnet_jax.prediction import run_predictor
from skipnet_jax.prediction.cells import cells
from skipnet_jax.runs import trained

CALIBRATE = ('auto', 'fit', 'off')
Log = Callable[[str], None]
# Predictions `[y, x]` by slice.
Pages = Mapping[int, np.ndarray]


def score_run(
  path: str | os.PathLike,
  split: str,
  *,
  image: str,
  labels: str,
  averaging: fitted.Averaging,
  calibrate: str = 'auto',
  segment: str = '',
  log: Log,
) -> scoring.Evaluation:
  """Scores a run's best checkpoint on its own data, as at the end of training.

  Slices whose labels have no membrane, or no cell, are left out. If predictions
  are averaged, the plain prediction is scored too; if they are calibrated, the
  uncalibrated one. What is fitted sees training slices alone.

  Args:
    path: the run's folder.
    split: 'valid' or 'train': which slices.
    image: see `trained.load_data`.
    labels: see `trained.load_data`.
    averaging: of the predictions.
    calibrate: one of CALIBRATE: use the calibration in the run's folder, fit it
      first, or leave it out.
    segment: one of `cells.METHODS`, whose cells are scored first, or ''. Edges
      are fitted if the run's folder has no fit that can be used.
    log: called with each message.

  Raises:
    InputError: a run, data or an option that cannot be used, before anything is
      compiled; or training slices to which edges cannot be fitted.
  """
  if split not in ('valid', 'train'):
    raise errors.InputError(
      f'--split is {split!r}, but it must be valid or train: use the predict '
      'command for slices without labels.'
    )
  run = trained.open_run(path)
  data = trained.load_data(run, image, labels)
  slices = data.drawn(getattr(data, split))
  ways = {each.name: each for each in (averaging, fitted.Averaging())}
  predictors = {
    name: run_predictor.make_predictor(
      [run], tta=way.tta, mc_samples=way.mc_samples
    )
    for name, way in ways.items()
  }
  calibrations = {}
  if calibrate == 'auto':
    found = {name: calibration.of_run(run, way) for name, way in ways.items()}
    calibrations = {name: each for name, each in found.items() if each}
  edges = _kept_edges(run, averaging, segment) if segment else None
  training = data.drawn(data.train)
  new_edges = segment and edges is None
  if calibrate == 'fit':
    fitted.check_writable(run, calibration.KIND)
  if new_edges:
    fitted.check_writable(run, edge_fit.KIND)
  wanted = {}
  for name in ways:
    fits = calibrate == 'fit' or (new_edges and name == averaging.name)
    wanted[name] = sorted({*slices, *(training if fits else ())})
  predicted: dict[str, Pages] = {}
  total = sum(len(wanted[n]) * p.count for n, p in predictors.items())
  pages_wanted = sum(map(len, wanted.values()))
  with progress_lib.progress(pages_wanted, total) as advance:
    for name, predictor in predictors.items():
      pages = run_predictor.predict_slices(
        predictor, data, wanted[name], log, advance
      )
      predicted[name] = dict(zip(wanted[name], pages, strict=True))
  for name, way in ways.items():
    if calibrate == 'fit':
      calibrations[name] = calibration.fit(
        np.stack([predicted[name][z] for z in training]), data.label[training]
      )
      content = calibrations[name].for_json()
      fitted.write(run, calibration.KIND, way, content)
    line = calibration.describe(run, way, calibrations.get(name))
    if line and calibrate != 'off':
      log(line)

  shown = {}
  if segment:
    by_slice = predicted[averaging.name]
    edges = edges or _fit_edges(run, averaging, data, training, by_slice)
    for line in edge_fit.describe(run, edges):
      log(line)
    shown[segment] = _drawn(run, averaging, segment, data, slices, by_slice)
  for name, by_slice in predicted.items():
    pages = np.stack([by_slice[z] for z in slices])
    shown[name] = calibrations[name](pages) if name in calibrations else pages
  if averaging.name in calibrations:
    shown['uncalibrated'] = np.stack(
      [predicted[averaging.name][z] for z in slices]
    )
  identity = {
    'dataset': run.dataset['name'],
    'fingerprint': run.dataset['fingerprint'],
    'workdir': str(run.path),
    'split': split,
    'slices': slices,
    'best_epoch': run.best_epoch,
    'network': trained.network_of(run),
    'tta': averaging.tta,
    'mc_samples': averaging.mc_samples,
  }
  if calibrations:
    identity['calibration'] = {
      name: each.for_json() for name, each in calibrations.items()
    }
  if edges:
    identity |= {'segment': segment, 'training': edges['training_scores']}
  title = f'{run.path.name}, {len(slices)} {split} slices of {data.name}'
  return scoring.Evaluation(
    title=f'{title}, {segment}' if segment else title,
    results={
      name: run_predictor.score_predictions(pages, data, slices)
      for name, pages in shown.items()
    },
    identity=identity,
    prediction=next(iter(shown.values())),
    inside=data.label[slices],
    image=data.image[slices],
    warning=run.warning or data.warning,
  )


def _kept_edges(
  run: trained.TrainedRun, averaging: fitted.Averaging, segment: str
) -> Mapping[str, Any] | None:
  """The fit in the run's folder; None where it must be fitted (again)."""
  try:
    edge_fit.of_run(run, averaging, 'multicut')
  except errors.InputError:
    return None
  # It has none for lifted edges where the training slices have too few.
  return edge_fit.of_run(run, averaging, segment)[1]


def _fit_edges(
  run: trained.TrainedRun,
  averaging: fitted.Averaging,
  data: data_set.DataSet,
  training: Sequence[int],
  pages: Pages,
) -> Mapping[str, Any]:
  """Fits edges to the training slices; writes and returns the fit."""
  measured = [cells.measure(pages[z], data.image[z]) for z in training]
  inside = data.label[list(training)]
  content = edge_fit.for_json(
    edge_fit.fit(measured, inside),
    training,
    edge_fit.training_scores(measured, inside),
  )
  fitted.write(run, edge_fit.KIND, averaging, content)
  return content


def _drawn(
  run: trained.TrainedRun,
  averaging: fitted.Averaging,
  segment: str,
  data: data_set.DataSet,
  slices: Sequence[int],
  pages: Pages,
) -> np.ndarray:
  """The cells of some slices as pictures, `[z, y, x]` bool."""
  regressions, _ = edge_fit.of_run(run, averaging, segment)
  return np.stack(
    [
      cells.draw(
        cells.segment(
          cells.measure(pages[z], data.image[z]), regressions, segment
        )
      )
      for z in slices
    ]
  )
