"""What is to be scored, from a run or from two files, and its scores."""

from collections.abc import Callable
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import volume
from skipnet_jax.prediction import run_predictor
from skipnet_jax.prediction import stacks
from skipnet_jax.runs import trained
from skipnet_jax.scores import pixels
from skipnet_jax.scores import scores

LABELS_KINDS = ('binary', 'instances')
_PREDICTION_DTYPES = (*volume.IMAGE_DTYPES, 'float64')
_LABEL_DTYPES = ('uint8', 'uint16', 'uint32', 'int16', 'int32')


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Scores, and all that its figures show.

  Attributes:
    title: what was scored, in a line.
    results: name to the scores of `scores.score_stack`. The first is the
      evaluation; a second one, 'plain', is without all averaging.
    identity: what was scored, as JSON values.
    prediction: `[z, y, x]`, what the first scores are of.
    inside: `[z, y, x]` bool, True inside.
    image: `[z, y, x]`, or None.
    warning: for every artefact; '' for none.
  """

  title: str
  results: dict[str, dict[str, Any]]
  identity: dict[str, Any]
  prediction: np.ndarray
  inside: np.ndarray
  image: np.ndarray | None
  warning: str


def judge_run(
  path: str | os.PathLike,
  split: str = 'valid',
  *,
  tta: bool = False,
  mc_samples: int = 0,
  say: Callable[[str], None] = lambda _: None,
) -> Verdict:
  """Scores a run's best checkpoint on its own data, as its training does.

  Where predictions are averaged, the plain one is scored as well.

  Args:
    path: the run's folder.
    split: 'valid' or 'train'.
    tta: see `inference.Predictor`.
    mc_samples: see `inference.Predictor`.
    say: told what else there is to know.

  Raises:
    InputError: a run, its data or an option that cannot be used; before
      anything is compiled.
  """
  if split not in trained.SPLITS:
    raise errors.InputError(
      f'--split is {split!r}; it must be {" or ".join(trained.SPLITS)}: for '
      'slices without labels, use predict.'
    )
  run = trained.open_run(path)
  data = trained.load_data(run)
  slices = list(getattr(data, split))
  names = [f'{mc_samples} samples'] if mc_samples else []
  names += ['8 orientations'] if tta else []
  jobs = {
    ' x '.join(names) or 'plain': run_predictor.make_predictor(
      [run], tta=tta, mc_samples=mc_samples
    )
  }
  if names:
    jobs['plain'] = run_predictor.make_predictor([run])
  results, predictions = {}, []
  total = len(slices) * sum(p.count for p in jobs.values())
  with stacks.progress(total, 'prediction') as bar:
    for name, predictor in jobs.items():
      prediction, results[name] = run_predictor.score_slices(
        predictor, data, slices, say, bar.update
      )
      predictions.append(prediction)
  return Verdict(
    title=f'{run.path.name}, {len(slices)} {split} slices of {data.name}',
    results=results,
    identity={
      'dataset': run.dataset['name'],
      'fingerprint': run.dataset['fingerprint'],
      'workdir': str(run.path),
      'split': split,
      'slices': slices,
      'best_epoch': run.best_epoch,
      'tta': tta,
      'mc_samples': mc_samples,
    },
    prediction=predictions[0],
    inside=data.label[slices],
    image=data.image[slices],
    warning=run.warning or data.warning,
  )


def judge_files(
  prediction: str | os.PathLike,
  labels: str | os.PathLike,
  kind: str = 'binary',
  image: str | os.PathLike | None = None,
) -> Verdict:
  """Scores a stack of predictions against a stack of labels.

  Args:
    prediction: TIFF of probabilities, 1 inside a cell.
    labels: TIFF of two values, or of instances.
    kind: see `read_pair`.
    image: the stack itself, to be shown; or None.

  Raises:
    InputError: see `read_pair`; an image of another shape.
  """
  values, inside = read_pair(prediction, labels, kind)
  shown = None
  if image:
    with volume.open_stack(image) as reader:
      if reader.shape != values.shape:
        raise errors.InputError(
          f'{image} has shape {reader.shape} and {prediction} has shape '
          f'{values.shape}, but they must be equal: give the image of that '
          'very stack.'
        )
      shown = reader.read_all()
    volume.check_finite(shown, str(image))
  inverted = pixels.looks_inverted(values, inside)
  return Verdict(
    title=f'{_name(prediction)} against {_name(labels)}',
    results={'plain': scores.score_stack(values, inside)},
    identity={
      'prediction': str(prediction),
      'labels': str(labels),
      'labels_kind': kind,
      'shape': list(values.shape),
    },
    prediction=values,
    inside=inside,
    image=shown,
    warning=f'{prediction}: {inverted}' if inverted else '',
  )


def _name(path: str | os.PathLike) -> str:
  return pathlib.Path(path).name


def read_pair(
  prediction: str | os.PathLike, labels: str | os.PathLike, kind: str
) -> tuple[np.ndarray, np.ndarray]:
  """Reads two stacks to score.

  Args:
    prediction: probabilities in 0..1, 1 inside a cell.
    labels: two values, the larger inside; or one number for each cell.
    kind: 'binary' or 'instances'. Of instances, 0 is membrane, and so are the
      pixels where two touch.

  Returns:
    `[z, y, x]` float32 or float64, and the same shape bool, True inside.

  Raises:
    InputError: unreadable, of different shapes, or other values than these.
  """
  if kind not in LABELS_KINDS:
    raise errors.InputError(
      f'--labels_kind is {kind!r}; it must be {" or ".join(LABELS_KINDS)}.'
    )
  with (
    volume.open_stack(prediction, dtypes=_PREDICTION_DTYPES) as predicted,
    volume.open_stack(labels, dtypes=(*_LABEL_DTYPES, 'float32')) as truth,
  ):
    if predicted.shape != truth.shape:
      raise errors.InputError(
        f'{prediction} has shape {predicted.shape} and {labels} has shape '
        f'{truth.shape}, but they must be equal: give the labels of that very '
        'stack.'
      )
    values, label = predicted.read_all(), truth.read_all()
  volume.check_finite(values, str(prediction))
  inside = _inside(label, str(labels), kind)
  try:
    pixels.checked_stacks(values, inside)
  except errors.InputError as e:
    raise errors.InputError(f'{prediction}: {e}') from e
  return values, inside


def _inside(label: np.ndarray, name: str, kind: str) -> np.ndarray:
  """Labels of either kind as `[z, y, x]` bool."""
  if kind == 'binary':
    volume.check_finite(label, name)
    found = np.unique(label)
    if len(found) > 2 and label.dtype.kind in 'iu':
      raise errors.InputError(
        f'{name} has {len(found)} values ({", ".join(map(str, found[:5]))}'
        f'{", ..." if len(found) > 5 else ""}) where two are needed, the '
        'larger inside a cell: threshold it, or pass --labels_kind=instances '
        'if every value is a cell of its own.'
      )
    return volume.check_labels(label, label.shape, name)
  if label.dtype.kind not in 'iu' or label.min() < 0 or not label.any():
    raise errors.InputError(
      f'{name} has {label.dtype} values from {label.min()} to {label.max()}, '
      'but instances are integers from 1 up, with 0 on membranes: number the '
      'cells, or pass --labels_kind=binary.'
    )
  # Takes long to import, and no other labels need it.
  import skimage.segmentation

  inside = label > 0
  for page, cells in zip(label, inside, strict=True):
    cells &= ~skimage.segmentation.find_boundaries(page, connectivity=1)
  return inside
