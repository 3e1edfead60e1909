"""Scores a file of predictions; `run_scores` scores those of a run."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import chunk_store
from skipnet_jax.data import label_warnings
from skipnet_jax.data import labels as labels_lib
from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import volume
from skipnet_jax.scores import pixels
from skipnet_jax.scores import scores

Path = str | os.PathLike
Shape = tuple[int, ...]
PREDICTION_KINDS = ('probability', 'instances')
# How a user of `evaluate` says what values mean.
LABELS = labels_lib.Meaning(
  kind_option='--labels_kind', inverted_option='--labels_inverted'
)
_SEGMENTATION = labels_lib.Meaning('instances', kind_option='--prediction_kind')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scores, and the arrays for their figures.

  Attributes:
    title: a line that says what was scored.
    results: name to the scores of `scores.score_stack`. If predictions were
      averaged, the second one, 'plain', has the scores without averaging; if
      they were calibrated, the last one, 'uncalibrated', those of the first
      without calibration.
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


def score_files(
  prediction: Path,
  labels: Path,
  meaning: labels_lib.Meaning,
  kind: str,
  image: Path | None,
  choice: volume.Choice = volume.Choice(),  # noqa: B008
) -> Evaluation:
  """Scores predictions against labels; the image stack is for the figures.

  Slices whose labels have no membrane, or no cell, are left out. `choice` is of
  the image. The other arguments are those of `read_pair`.

  Raises:
    InputError: see `read_pair`; an image of another shape.
  """
  values, inside, kind = read_pair(prediction, labels, meaning, kind)
  pages = None
  if image:
    with volume.open_stack(image, choice=choice) as reader:
      _check_shape(image, reader.shape, prediction, values.shape)
      pages = reader.read_all()
    volume.check_finite(pages, str(image))
  every = range(len(inside))
  slices = [z for z in every if labels_lib.is_drawn(inside[z])]
  if not slices:
    raise errors.InputError(
      f'{labels} has no slice with both cells and membranes: label at least '
      'one slice.'
    )
  name = str(labels)
  warnings = [
    label_warnings.undrawn_sentence(inside, {'slices': every}, name),
    label_warnings.inverted_sentence(inside, every, name, meaning),
    label_warnings.single_sentence(inside, slices, name),
  ]
  values, inside = values[slices], inside[slices]
  inverted = pixels.looks_inverted(values, inside)
  if inverted:
    sentence = f'{prediction}: {inverted.removesuffix(".")}'
    warnings.append(f'{sentence} ({meaning.inverted_option})')
  result = scores.score_stack(values, inside)
  for z, row in zip(slices, result['per_slice'], strict=True):
    row['slice'] = z
  names = (pathlib.Path(path).name for path in (prediction, labels))
  return Evaluation(
    title=' against '.join(names),
    results={'plain': result},
    identity={
      'prediction': str(prediction),
      'prediction_kind': kind,
      'labels': name,
      'labels_kind': meaning.kind,
      'labels_inverted': meaning.inverted,
      'shape': [len(every), *values.shape[1:]],
    },
    prediction=values,
    inside=inside,
    image=None if pages is None else pages[slices],
    warning=' '.join(f'{text}.' for text in warnings if text),
  )


def _check_finished(path: Path, stack: volume.StackReader) -> None:
  """Refuses a volume that `predict` has begun and not finished.

  Of other volumes, a missing chunk is one of the fill value.
  """
  if not stack.filled or chunk_store.is_url(os.fspath(path)):
    return
  if ome_zarr_metadata.read_settings(pathlib.Path(path)) is not None:
    raise errors.InputError(
      f'{path} lacks blocks in slices {labels_lib.ranges([*stack.filled])} '
      '(counted from 0): its prediction is not finished; give the command that '
      'began it again.'
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
  prediction: Path,
  labels: Path,
  meaning: labels_lib.Meaning = LABELS,
  kind: str = '',
) -> tuple[np.ndarray, np.ndarray, str]:
  """Reads two TIFF stacks to score.

  Args:
    prediction: probabilities in 0..1, 1 inside a cell; or one number for each
      cell, as `predict --segmentation` writes them.
    labels: two values, or one number for each cell.
    meaning: of the labels' values.
    kind: 'probability' or 'instances'; by default 'instances' for integers of
      16 and more bits, else 'probability'.

  Returns:
    `[z, y, x]` float32 or float64, or bool of instances, True outside their
    borders; the same shape bool, True inside; the kind.

  Raises:
    InputError: files that cannot be read, different shapes, or other values.
  """
  if kind not in ('', *PREDICTION_KINDS):
    raise errors.InputError(
      f'--prediction_kind is {kind!r}; it must be '
      f'{" or ".join(PREDICTION_KINDS)}.'
    )
  with (
    volume.open_stack(prediction, dtypes=labels_lib.DTYPES) as predicted,
    volume.open_stack(labels, dtypes=labels_lib.DTYPES) as truth,
  ):
    volume.check_same_slices(predicted, truth)
    _check_shape(labels, truth.shape, prediction, predicted.shape)
    values, label = predicted.read_all(), truth.read_all()
    for path, stack in ((prediction, predicted), (labels, truth)):
      _check_finished(path, stack)
  inside = labels_lib.find_inside(label, label.shape, str(labels), meaning)
  integers = values.dtype.kind in 'iu' and values.dtype.itemsize > 1
  kind = kind or PREDICTION_KINDS[integers]
  if kind == 'instances':
    values = labels_lib.draw_instances(values, str(prediction), _SEGMENTATION)
    return values, inside, kind
  volume.check_finite(values, str(prediction))
  try:
    pixels.checked_stacks(values, inside)
  except errors.InputError as e:
    sentence = str(e).removesuffix('.')
    if np.array_equal(values, np.round(values)):
      sentence += ', or pass --prediction_kind=instances if it numbers cells'
    raise errors.InputError(f'{prediction}: {sentence}.') from e
  return values, inside, kind
