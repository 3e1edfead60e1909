"""Predicts with trained runs, and scores the predictions on a data set."""

from collections.abc import Callable, Sequence
import sys
from typing import Any

import jax
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.data import data_set
from skipnet_jax.data import normalisation
from skipnet_jax.data import volume
from skipnet_jax.prediction import inference
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores


def make_predictor(
  runs: Sequence[trained.TrainedRun],
  *,
  tta: bool = False,
  mc_samples: int = 0,
  devices: Sequence[jax.Device] | None = None,
) -> inference.Predictor:
  """A predictor that averages over the runs, see `inference.Predictor`.

  Raises:
    InputError: runs of different networks or normalisations, or dropout samples
      of a network without dropout.
  """
  first = runs[0]
  for other in runs[1:]:
    fields = (
      {f'model.{name}': value for name, value in run.config.model.items()}
      | {'data.normalise': run.config.data.normalise}
      for run in (first, other)
    )
    changed = config_identity.differences(*fields)
    if changed:
      raise errors.InputError(
        f'{first.path} and {other.path} differ in {", ".join(changed)}: give '
        'runs of one network and one normalisation.'
      )
  if mc_samples < 0:
    raise errors.InputError(
      f'--mc_samples is {mc_samples}, but it must be at least 0 (no dropout).'
    )
  if mc_samples and not first.model.dropout:
    raise errors.InputError(
      f'--mc_samples is {mc_samples}, but {first.path} was trained without '
      'dropout (model.dropout is 0): omit --mc_samples, or train with dropout.'
    )
  return inference.Predictor(
    first.model,
    [r.variables for r in runs],
    tta=tta,
    mc_samples=mc_samples,
    normalise=first.config.data.normalise,
    devices=devices,
  )


def check_dtype(
  runs: Sequence[trained.TrainedRun], dtype: Any, name: str
) -> None:
  """Refuses images whose grey values the runs' normalisation cannot use.

  Args:
    runs: of one normalisation.
    dtype: of the images.
    name: of the images, for the message.
  """
  for run in runs:
    method, kept = run.config.data.normalise, run.dataset.get('dtype', '')
    normalisation.check(method, dtype, name, kept)


def predict(
  runs: trained.TrainedRun | Sequence[trained.TrainedRun],
  image: np.ndarray,
  *,
  tta: bool = False,
  mc_samples: int = 0,
  tile: int = 0,
  overlap: int | None = None,
) -> np.ndarray:
  """Predicts a stack in memory: `skipnet_jax.predict`.

  Every slice is normalised as in training. Nothing is calibrated:
  `calibration.of_run` gives the map that the command uses.

  Args:
    runs: an opened run, or several of one network to average.
    image: `[z, y, x]`, or `[y, x]` for one slice; uint8, uint16 or float32. A
      network with several input slices also uses a slice's neighbours in z.
    tta: whether to average the eight flips and rotations.
    mc_samples: number of dropout samples to average; 0: no dropout.
    tile: side of a tile in pixels, see `Predictor.tiling`; 0: whole slices up
      to 1536 pixels.
    overlap: pixels that tiles share; None: from the receptive field.

  Returns:
    The probability that a pixel is inside a cell, float32 in 0..1, of the
    image's shape.

  Raises:
    InputError: no run or runs of different networks, an image of another shape
      or dtype, pixels that are not finite, fewer slices than the network needs,
      samples or tiles that do not fit; before anything is compiled.

  Example:
    >>> import numpy as np
    >>> import skipnet_jax
    >>> run = skipnet_jax.load_run('runs/long_short')
    >>> image = np.arange(2 * 40 * 50, dtype=np.uint16).reshape(2, 40, 50)
    >>> probability = skipnet_jax.predict(run, image)
    >>> probability.shape, str(probability.dtype)
    ((2, 40, 50), 'float32')
  """
  several = [runs] if isinstance(runs, trained.TrainedRun) else list(runs)
  if not all(isinstance(run, trained.TrainedRun) for run in several):
    raise errors.InputError(
      f'The runs are {runs!r:.80}: open each by skipnet_jax.load_run or '
      'skipnet_jax.load_pretrained first.'
    )
  if not several:
    raise errors.InputError('There are 0 runs: give at least one.')
  if image.ndim not in (2, 3) or not image.size:
    raise errors.InputError(
      f'The image has shape {image.shape}, but it must be [z, y, x] or [y, x] '
      'with at least one pixel.'
    )
  if image.dtype not in (np.uint8, np.uint16, np.float32):
    raise errors.InputError(
      f'The image has dtype {image.dtype}, but it must be uint8, uint16 or '
      'float32: convert it, for example by image.astype(numpy.float32).'
    )
  predictor = make_predictor(several, tta=tta, mc_samples=mc_samples)
  stack = image.reshape(-1, *image.shape[-2:])
  if len(stack) < predictor.slices:
    raise errors.InputError(
      f'The image has {len(stack)} slice(s), but the network needs '
      f'{predictor.slices}: give a larger stack.'
    )
  check_dtype(several, stack.dtype, 'the image')
  volume.check_finite(stack, 'The image')
  tiling = predictor.tiling(
    stack.shape[1:], tile, overlap, lambda text: print(text, file=sys.stderr)
  )
  inputs = data_set.neighbours(
    np.arange(len(stack)), len(stack), predictor.slices
  )
  probability = np.empty(stack.shape, np.float32)
  for z, slices in enumerate(inputs):
    probability[z], _ = predictor(stack[slices], tiling)
  return probability.reshape(image.shape)


def predict_slices(
  predictor: inference.Predictor,
  data: data_set.DataSet,
  slices: Sequence[int],
  log: Callable[[str], None] = lambda _: None,
  advance: Callable[[], object] = lambda: None,
) -> np.ndarray:
  """Predicts some slices of a data set, `[z, y, x]` float32."""
  tiling = predictor.tiling(data.image.shape[1:], log=log)
  inputs = (data.around(z, predictor.slices) for z in slices)
  return np.stack([predictor(x, tiling, advance)[0] for x in inputs])


def score_predictions(
  predictions: np.ndarray, data: data_set.DataSet, slices: Sequence[int]
) -> dict[str, Any]:
  """Scores predictions `[z, y, x]` of some slices of a data set.

  Returns:
    The content of a scores.json, whose `per_slice` has the slice numbers of the
    data set.
  """
  result = scores.score_stack(predictions, data.label[list(slices)])
  for z, row in zip(slices, result['per_slice'], strict=True):
    row['slice'] = int(z)
  return result


def score_slices(
  predictor: inference.Predictor,
  data: data_set.DataSet,
  slices: Sequence[int],
  log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
  """Predicts some slices and scores them: the two functions above."""
  predictions = predict_slices(predictor, data, slices, log)
  return score_predictions(predictions, data, slices)
