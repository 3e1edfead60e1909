"""Scores the predictions of a run, or those in a file."""

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

Log = Callable[[str], None]
Path = str | os.PathLike
Shape = tuple[int, ...]
LABELS_KINDS = ('binary', 'instances')
_PREDICTION_DTYPES = (*volume.IMAGE_DTYPES, 'float64')
_LABEL_DTYPES = ('uint8', 'uint16', 'uint32', 'int16', 'int32')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scores, and the arrays for their figures.

  Attributes:
    title: a line that says what was scored.
    results: name to the scores of `scores.score_stack`. If predictions were
      averaged, the second one, 'plain', has the scores without averaging.
    identity: what was scored, as JSON values.
    prediction: `[z, y, x]`, of the first scores.
    inside: `[z, y, x]` bool, True inside.
    image: `[z, y, x]`, or None.
    warning: a sentence for every output file; '' for none.
  """

  title: str
  results: dict[str, dict[str, Any]]
  identity: dict[str, Any]
  prediction: np.ndarray
  inside: np.ndarray
  image: np.ndarray | None
  warning: str


def score_run(
  path: Path, split: str, *, tta: bool, mc_samples: int, log: Log
) -> Evaluation:
  """Scores a run's best checkpoint on its own data, as at the end of training.

  If predictions are averaged, the plain prediction is scored too. `tta` and
  `mc_samples` are those of `inference.Predictor`.

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
  data = trained.load_data(run)
  slices = list(getattr(data, split))
  samples = [f'{mc_samples} samples'] if mc_samples else []
  averaged = ' x '.join([*samples, *(['8 orientations'] if tta else [])])
  predictors = {
    averaged or 'plain': run_predictor.make_predictor(
      [run], tta=tta, mc_samples=mc_samples
    )
  }
  if averaged:
    predictors['plain'] = run_predictor.make_predictor([run])
  scored = {}
  total = len(slices) * sum(p.count for p in predictors.values())
  with stacks.progress(total, 'prediction') as bar:
    for name, predictor in predictors.items():
      scored[name] = run_predictor.score_slices(
        predictor, data, slices, log, bar.update
      )
  return Evaluation(
    title=f'{run.path.name}, {len(slices)} {split} slices of {data.name}',
    results={name: result for name, (_, result) in scored.items()},
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
    prediction=scored[averaged or 'plain'][0],
    inside=data.label[slices],
    image=data.image[slices],
    warning=run.warning or data.warning,
  )


def score_files(
  prediction: Path, labels: Path, kind: str, image: Path | None
) -> Evaluation:
  """Scores predictions against labels; the image stack is for the figures.

  The other arguments are those of `read_pair`.

  Raises:
    InputError: see `read_pair`; an image of another shape.
  """
  values, inside = read_pair(prediction, labels, kind)
  pages = None
  if image:
    with volume.open_stack(image) as reader:
      _check_shape(image, reader.shape, prediction, values.shape)
      pages = reader.read_all()
    volume.check_finite(pages, str(image))
  inverted = pixels.looks_inverted(values, inside)
  names = (pathlib.Path(path).name for path in (prediction, labels))
  return Evaluation(
    title=' against '.join(names),
    results={'plain': scores.score_stack(values, inside)},
    identity={
      'prediction': str(prediction),
      'labels': str(labels),
      'labels_kind': kind,
      'shape': list(values.shape),
    },
    prediction=values,
    inside=inside,
    image=pages,
    warning=f'{prediction}: {inverted}' if inverted else '',
  )


def _check_shape(
  path: Path, shape: Shape, prediction: Path, expected: Shape
) -> None:
  if shape != expected:
    raise errors.InputError(
      f'{path} has shape {shape} and {prediction} has shape {expected}, but '
      'they must be equal: give files of the same stack.'
    )


def read_pair(
  prediction: Path, labels: Path, kind: str
) -> tuple[np.ndarray, np.ndarray]:
  """Reads two TIFF stacks to score.

  Args:
    prediction: probabilities in 0..1, 1 inside a cell.
    labels: two values, the larger inside; or one number for each cell.
    kind: 'binary' or 'instances'. In instances, 0 is membrane; pixels at which
      two cells touch become membrane too.

  Returns:
    `[z, y, x]` float32 or float64, and the same shape bool, True inside.

  Raises:
    InputError: files that cannot be read, different shapes, or other values.
  """
  if kind not in LABELS_KINDS:
    raise errors.InputError(
      f'--labels_kind is {kind!r}; it must be {" or ".join(LABELS_KINDS)}.'
    )
  with (
    volume.open_stack(prediction, dtypes=_PREDICTION_DTYPES) as predicted,
    volume.open_stack(labels, dtypes=(*_LABEL_DTYPES, 'float32')) as truth,
  ):
    _check_shape(labels, truth.shape, prediction, predicted.shape)
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
    values = np.unique(label)
    if len(values) > 2 and label.dtype.kind in 'iu':
      raise errors.InputError(
        f'{name} has {len(values)} values ({", ".join(map(str, values[:5]))}'
        f'{", ..." if len(values) > 5 else ""}), but must have two, the larger '
        'one inside cells: threshold it, or pass --labels_kind=instances if '
        'every value is one cell.'
      )
    return volume.check_labels(label, label.shape, name)
  if label.dtype.kind not in 'iu' or label.min() < 0 or not label.any():
    raise errors.InputError(
      f'{name} has {label.dtype} values from {label.min()} to {label.max()}, '
      'but instances must be integers, 0 on membranes and 1 or more in cells: '
      'number the cells, or pass --labels_kind=binary.'
    )
  # Slow to import, and only instances need it.
  import skimage.segmentation

  inside = label > 0
  for page, cells in zip(label, inside, strict=True):
    cells &= ~skimage.segmentation.find_boundaries(page, connectivity=1)
  return inside
