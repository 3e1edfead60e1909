"""The ways from the probabilities of a slice to its numbered cells."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
from typing import Protocol

import numpy as np

from skipnet_jax import errors
from skipnet_jax.prediction import calibration as calibration_lib
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction.cells import cells
from skipnet_jax.runs import trained
from skipnet_jax.scores import thinning

METHODS = ('threshold', *cells.METHODS)


class Segmenter(Protocol):
  """Numbers the cells of a slice."""

  @property
  def how(self) -> str:
    """How it does so, for a message."""
    ...

  @property
  def identity(self) -> str:
    """Differs where other cells are found."""
    ...

  @property
  def remedy(self) -> str:
    """Against a slice of a single cell, for a message."""
    ...

  def __call__(
    self, inside: np.ndarray, image: np.ndarray, grid: pixel_grid.Grid
  ) -> np.ndarray:
    """Numbers from 1 up, 0 on borders, `[y, x]` int32, on the input's grid.

    Args:
      inside: `[y, x]` float32, the probability of the inside of cells, not
        calibrated, on the network's grid.
      image: `[y, x]`, grey values, on the network's grid.
      grid: brings what is on the network's grid back to the input's.
    """
    ...


@dataclasses.dataclass(frozen=True)
class ByThreshold:
  """The regions above a threshold, with thinned borders.

  Attributes:
    threshold: a pixel is inside if its probability is larger.
    origin: of the threshold, for a message.
    calibration: maps the probabilities first.
  """

  threshold: float
  origin: str = ''
  calibration: Callable[[np.ndarray], np.ndarray] | None = None

  @property
  def how(self) -> str:
    """See `Segmenter`."""
    return f'at threshold {self._shown}' + (
      f' ({self.origin})' if self.origin else ''
    )

  @property
  def identity(self) -> str:
    """See `Segmenter`; the volume has the calibration beside it."""
    return f'at threshold {self.threshold!r}'

  @property
  def _shown(self) -> str:
    text = f'{self.threshold:.3g}'
    # Many lie just below 1.
    rounded = float(text) in (0, 1) and float(text) != self.threshold
    return repr(self.threshold) if rounded else text

  @property
  def remedy(self) -> str:
    """See `Segmenter`."""
    return f'at threshold {self._shown}: try another --threshold'

  def __call__(
    self, inside: np.ndarray, image: np.ndarray, grid: pixel_grid.Grid
  ) -> np.ndarray:
    """See `Segmenter`; the cells are found on the input's grid."""
    del image
    inside = grid.from_network(inside)
    mapped = self.calibration(inside) if self.calibration else inside
    # In float64, or the last threshold would round to 1.
    return thinning.thin_borders(mapped.astype(np.float64) > self.threshold)


@dataclasses.dataclass(frozen=True)
class ByEdges:
  """Superpixels, joined by multicut.

  Attributes:
    regressions: of their edges.
    method: one of `cells.METHODS`.
    origin: of the regressions, for a message.
  """

  regressions: cells.Regressions
  method: str
  origin: str = ''

  @property
  def how(self) -> str:
    """See `Segmenter`."""
    return f'by {self.method} ({self.origin})'

  @property
  def identity(self) -> str:
    """See `Segmenter`."""
    fits = self.regressions.local, self.regressions.lifted
    text = json.dumps([fit and fit.for_json() for fit in fits])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'by {self.method} with the fit {digest}'

  @property
  def remedy(self) -> str:
    """See `Segmenter`."""
    return f'by {self.method}: look at their probabilities'

  def __call__(
    self, inside: np.ndarray, image: np.ndarray, grid: pixel_grid.Grid
  ) -> np.ndarray:
    """See `Segmenter`.

    The cells are found on the network's grid, to which the regressions were
    fitted. Their borders are drawn on the input's, where they close again.
    """
    measured = cells.measure(inside, image)
    found = cells.segment(measured, self.regressions, self.method)
    found = grid.labels_from_network(found)
    return np.where(cells.draw(found), found, np.int32(0))


def choose(
  runs: Sequence[trained.TrainedRun],
  averaging: fitted.Averaging,
  method: str,
  threshold: float | None,
  calibration: calibration_lib.Calibration | None,
) -> ByThreshold | ByEdges:
  """The segmenter that the flags of `predict` ask for.

  Args:
    runs: of the prediction.
    averaging: of each run's predictions.
    method: one of METHODS.
    threshold: None: the best of the run's scores, see `trained.best_threshold`.
    calibration: of the prediction.

  Raises:
    InputError: a threshold outside of 0..1 or beside another method; several
      runs or none with fitted edges, for these.
  """
  if threshold is not None and not 0 <= threshold <= 1:
    raise errors.InputError(
      f'--threshold is {threshold:g}; it must be in 0..1, as probabilities are.'
    )
  if method == 'threshold':
    if threshold is not None:
      return ByThreshold(threshold, '--threshold', calibration)
    threshold, origin = trained.best_threshold(
      runs,
      plain=len(runs) == 1 and averaging == fitted.Averaging(),
      calibration=calibration.for_json() if calibration else None,
    )
    return ByThreshold(threshold, origin, calibration)
  if threshold is not None:
    raise errors.InputError(
      f'--threshold is {threshold:g} and --method is {method}, which uses no '
      'threshold: leave one of them out.'
    )
  if len(runs) > 1:
    raise errors.InputError(
      f'--method is {method}, which uses the edges of one run, but --workdir '
      f'names {len(runs)}: give one.'
    )
  regressions, _ = edge_fit.of_run(runs[0], averaging, method)
  return ByEdges(regressions, method, str(runs[0].path / edge_fit.KIND.file))
