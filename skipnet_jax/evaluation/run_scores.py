"""Scores the predictions of a run on its own data."""

from collections.abc import Callable
import os

from skipnet_jax import errors
from skipnet_jax.evaluation import scoring
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import run_predictor
from skipnet_jax.prediction import stacks
from skipnet_jax.runs import trained

CALIBRATE = ('auto', 'fit', 'off')


def score_run(
  path: str | os.PathLike,
  split: str,
  *,
  image: str,
  labels: str,
  averaging: fitted.Averaging,
  calibrate: str = 'auto',
  log: Callable[[str], None],
) -> scoring.Evaluation:
  """Scores a run's best checkpoint on its own data, as at the end of training.

  Slices whose labels have no membrane, or no cell, are left out. If predictions
  are averaged, the plain prediction is scored too; if they are calibrated, the
  uncalibrated one.

  Args:
    path: the run's folder.
    split: 'valid' or 'train': which slices.
    image: see `trained.load_data`.
    labels: see `trained.load_data`.
    averaging: of the predictions.
    calibrate: one of CALIBRATE: use the calibration in the run's folder, fit it
      to the training slices first, or leave it out.
    log: called with each message.

  Raises:
    InputError: a run, data or an option that cannot be used; before anything is
      compiled.
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
  # What is fitted sees only training slices.
  training = data.drawn(data.train) if calibrate == 'fit' else []
  every = sorted({*slices, *training})
  places = {z: place for place, z in enumerate(every)}
  predicted = {}
  total = len(every) * sum(p.count for p in predictors.values())
  with stacks.progress(total, 'prediction') as bar:
    for name, predictor in predictors.items():
      pages = run_predictor.predict_slices(
        predictor, data, every, log, bar.update
      )
      if calibrate == 'fit':
        calibrations[name] = calibration.fit(
          pages[[places[z] for z in training]], data.label[training]
        )
        fitted.write(
          run, calibration.KIND, ways[name], calibrations[name].for_json()
        )
      predicted[name] = pages[[places[z] for z in slices]]
  first = next(iter(predicted))
  shown = {
    name: calibrations[name](pages) if name in calibrations else pages
    for name, pages in predicted.items()
  }
  prediction = shown[first]
  for name, way in ways.items():
    line = calibration.describe(run, way, calibrations.get(name))
    if line and calibrate != 'off':
      log(line)
  if first in calibrations:
    shown['uncalibrated'] = predicted[first]
  identity = {
    'dataset': run.dataset['name'],
    'fingerprint': run.dataset['fingerprint'],
    'workdir': str(run.path),
    'split': split,
    'slices': slices,
    'best_epoch': run.best_epoch,
    'tta': averaging.tta,
    'mc_samples': averaging.mc_samples,
  }
  if calibrations:
    identity['calibration'] = {
      name: each.for_json() for name, each in calibrations.items()
    }
  return scoring.Evaluation(
    title=f'{run.path.name}, {len(slices)} {split} slices of {data.name}',
    results={
      name: run_predictor.score_predictions(pages, data, slices)
      for name, pages in shown.items()
    },
    identity=identity,
    prediction=prediction,
    inside=data.label[slices],
    image=data.image[slices],
    warning=run.warning or data.warning,
  )
