"""Pictures and scores of a run's validation slices."""

import pathlib
from typing import Any

import numpy as np

from skipnet_jax import models
from skipnet_jax import plots
from skipnet_jax.data import volume
from skipnet_jax.prediction import gate_maps
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import run_log
from skipnet_jax.scores import scores
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import prepare


class Samples:
  """Predicts the validation slices of a run, to draw or to score them.

  Args:
    prepared: the parts of the run.
    path: folder for the pictures.
    log: shows them in TensorBoard.
  """

  def __init__(
    self, prepared: prepare.Prepared, path: pathlib.Path, log: run_log.RunLog
  ):
    self._data, self._config = prepared.data, prepared.config
    self._path, self._log = path, log

  def _predictor(self, state: state_lib.TrainState) -> inference.Predictor:
    host = parallel_lib.to_host(state.averaged().replace(key=None))
    return inference.Predictor(
      models.build_model(self._config.model),
      [host.variables()],
      normalise=self._config.data.normalise,
    )

  def score(self, state: state_lib.TrainState) -> dict[str, Any]:
    """The content of a scores.json, from one copy of the state."""
    predictor, data = self._predictor(state), self._data
    result = run_predictor.score_slices(
      predictor, data, data.drawn(data.valid), self._log.print
    )
    return scores.for_json(result)

  def exist(self, name: str) -> bool:
    """Whether `draw` has drawn all pictures of this name."""
    first = self._data.valid[0]
    return (self._path / f'{name}_slice_{first:03d}.png').exists()

  def draw(self, name: str, state: state_lib.TrainState, step: int) -> None:
    """Writes PNGs of the first `log.samples` validation slices.

    Each shows `side_by_side`. A network with pixel gates gets a second picture,
    of its gates; one with a normaliser a picture of the normalised slice.
    Processes that write no files draw nothing.

    Args:
      name: beginning of the file names.
      state: one copy.
      step: for TensorBoard.
    """
    log = self._log
    if not log.active:
      return
    predictor, data = self._predictor(state), self._data
    self._path.mkdir(exist_ok=True)
    tiling = predictor.tiling(data.image.shape[1:], log=log.print)

    def show(z: int, kind: str, picture: np.ndarray) -> None:
      suffix = '' if kind == 'slice' else f'_{kind}'
      path = self._path / f'{name}_slice_{z:03d}{suffix}.png'
      volume.write_png(path, picture)
      log.picture(f'{kind}_{z:03d}', picture, step)

    # In reverse: the last picture is that of the first slice, see `exist`.
    for z in reversed(data.valid[: self._config.log.samples]):
      pages = data.around(z, predictor.slices)
      masks = predictor.gates(pages)
      if masks:
        show(z, 'gates', gate_maps.gate_panel(data.image[z], masks))
      normalised = predictor.normalised(pages)
      if normalised is not None:
        both = [plots.stretch(p) for p in (data.image[z], normalised)]
        show(z, 'normalised', np.round(255 * np.hstack(both)).astype(np.uint8))
      mean, _ = predictor(pages, tiling)
      show(z, 'slice', side_by_side(data.image[z], data.label[z], mean))


def side_by_side(
  image: np.ndarray, label: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
  """Image, label and prediction, each `[y, x]`, as one `[y, 3x+8]` uint8."""
  gap = np.full((image.shape[0], 4), 1.0)
  row = np.hstack(
    [plots.stretch(image), gap, label.astype(float), gap, prediction]
  )
  return np.round(255 * row).astype(np.uint8)
