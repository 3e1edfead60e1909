"""Prediction of slices of any size: tiles, orientations, dropout samples."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import pipeline
from skipnet_jax.training import losses

Variables = dict[str, Any]

# Largest slice side, in pixels, that is predicted without tiles by default.
WHOLE = 1536
_DEFAULT_TILE = 1024


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a slice is cut, and how the pieces are weighted together.

  Attributes:
    tile: sides y and x of a tile, in pixels.
    overlap: pixels that neighbouring tiles share.
    margin: pixels at an inner border of a tile that carry no weight, since
      their receptive field is cut there.
  """

  tile: tuple[int, int]
  overlap: int
  margin: int

  def starts(self, size: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Corners of the tiles that cover a slice of sides `size`."""
    axes = []
    for side, tile in zip(size, self.tile, strict=True):
      step = max(1, tile - self.overlap)
      axes.append([*range(0, max(0, side - tile), step), max(0, side - tile)])
    return ((y, x) for y in axes[0] for x in axes[1])

  def weight(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Weight of a tile's pixels, `[y, x]` float32: a ramp at inner borders."""
    axes = []
    for first, side, tile in zip(start, size, self.tile, strict=True):
      ramp = max(1, self.overlap - 2 * self.margin)
      place = np.arange(tile) + 0.5 - self.margin
      # 1e-6: an image with one tile has weight everywhere.
      low = np.clip(place / ramp, 1e-6, 1.0)
      axis = np.ones(tile)
      if first > 0:
        axis = np.minimum(axis, low)
      if first + tile < side:
        axis = np.minimum(axis, low[::-1])
      axes.append(axis)
    return np.outer(*axes).astype(np.float32)


class Predictor:
  """Averages a model's predictions over all that was asked for.

  One compiled function serves every tile, orientation, sample and checkpoint.

  Args:
    model: maps `(image [b, y, x, 1], train)` to outputs.
    variables: params and batch_stats of one or several checkpoints, whose
      predictions are averaged.
    tta: whether the eight flips and rotations are averaged.
    mc_samples: dropout samples averaged; 0: no dropout (PAPERS: 30).
    seed: of the dropout samples.
    multiple: what both sides of a tile must be multiples of.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: Sequence[Variables],
    *,
    tta: bool = False,
    mc_samples: int = 0,
    seed: int = 0,
    multiple: int = 32,
  ):
    self._variables = list(variables)
    self._tta = tta
    self._samples = mc_samples
    self._key = jax.random.key(seed)
    self._multiple = multiple
    self._model = model

    def predict(variables, image, key):
      outputs = model.apply(
        variables, image, train=False, sample=mc_samples > 0,
        rngs={'dropout': key},
      )
      return losses.prediction(outputs)[0, ..., 0]

    self._predict = jax.jit(predict)

  def receptive_field(self) -> int:
    """How far, in pixels, a pixel of the image reaches in the prediction.

    Measured, so that any model serves: a block of NaN in a strip of noise
    makes NaN of every pixel that it reaches.
    """
    block = self._multiple
    length = 8 * block
    variables = jax.tree.map(np.asarray, self._variables[0])
    apply = jax.jit(
      lambda v, x: self._model.apply(v, x, train=False)
    )
    while True:
      strip = np.ones((1, block, length, 1), np.float32)
      first = length // 2 // block * block
      strip[:, :, first : first + block] = np.nan
      reached = np.isnan(losses.prediction(apply(variables, strip)))
      columns = np.flatnonzero(reached.any((0, 1, 3)))
      if columns[0] > 0 and columns[-1] < length - 1:
        reach = max(first - columns[0], columns[-1] - (first + block - 1))
        return int(reach)
      length *= 2

  def tiling(
    self,
    size: tuple[int, int],
    tile: int = 0,
    overlap: int | None = None,
    say: Callable[[str], None] = lambda _: None,
  ) -> Tiling:
    """Chooses tile and overlap for slices of sides `size`.

    Args:
      size: sides y and x, in pixels.
      tile: side of a tile; 0: whole slices up to 1536 pixels, else 1024.
      overlap: pixels; None: from the receptive field, at most half a tile.
      say: told where the overlap is smaller than the receptive field needs.

    Raises:
      InputError: a tile or an overlap that does not fit.
    """
    m = self._multiple
    if tile % m or tile < 0:
      raise errors.InputError(
        f'--tile is {tile}; it must be a multiple of {m}: '
        f'{max(m, round(tile / m) * m)} is the nearest.'
      )
    if not tile and max(size) <= WHOLE:
      sides = tuple(-(-s // m) * m for s in size)
      if self._tta:
        # A rotated tile must have the compiled function's shape.
        sides = (max(sides),) * 2
      return Tiling(sides, 0, 0)
    tile = tile or _DEFAULT_TILE
    if all(s <= tile for s in size):
      return Tiling((tile, tile), 0, 0)
    if overlap is not None and not 0 <= overlap < tile:
      raise errors.InputError(
        f'--overlap is {overlap}; it must be at least 0 and below the tile, '
        f'{tile}.'
      )
    reach = self.receptive_field()
    # Beyond the margins on both sides a ramp blends the tiles smoothly.
    exact = 2 * reach + m
    if overlap is None:
      overlap = min(exact, tile // 2)
    if overlap < exact:
      say(
        f'Tiles of {tile} pixels overlap by {overlap}, while the receptive '
        f'field reaches {reach} pixels: predictions near tile borders differ '
        f'from those of whole slices. Exact from --overlap={exact}.'
      )
    return Tiling((tile, tile), overlap, min(reach, overlap * 3 // 8))

  def __call__(
    self, image: np.ndarray, tiling: Tiling
  ) -> tuple[np.ndarray, np.ndarray]:
    """Predicts one slice.

    Args:
      image: `[y, x]` uint8, uint16 or float32, as stored.
      tiling: from `tiling`.

    Returns:
      Mean and standard deviation over everything averaged, of the probability
      that a pixel is inside a cell, each `[y, x]` float32.

    Raises:
      InputError: NaN or infinite pixels.
    """
    stats = pipeline.statistics(image[None])
    image = (image.astype(np.float32) - stats['mean']) / stats['std']
    size = image.shape
    pad = [(0, max(0, t - s)) for s, t in zip(size, tiling.tile, strict=True)]
    image = np.pad(image, pad, 'symmetric')
    total = np.zeros((3, *image.shape), np.float32)
    for y, x in tiling.starts(image.shape):
      where = (
        slice(y, y + tiling.tile[0]), slice(x, x + tiling.tile[1])
      )
      mean, std = self._average(image[where])
      weight = tiling.weight((y, x), image.shape)
      total[0][where] += weight * mean
      total[1][where] += weight * std
      total[2][where] += weight
    crop = (slice(0, size[0]), slice(0, size[1]))
    return (total[0] / total[2])[crop], (total[1] / total[2])[crop]

  def count(self) -> int:
    """Predictions averaged for each tile."""
    return len(self._variables) * max(1, self._samples) * (8 if self._tta else 1)

  def _average(self, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Welford's running mean and squared deviation: no list of predictions.
    mean, squared, n = 0.0, 0.0, 0
    for variables in self._variables:
      for sample in range(max(1, self._samples)):
        key = jax.random.fold_in(self._key, sample)
        for turn in range(8 if self._tta else 1):
          turned = np.rot90(tile, turn % 4)
          turned = turned[:, ::-1] if turn >= 4 else turned
          value = np.asarray(
            self._predict(variables, turned[None, ..., None].copy(), key)
          )
          value = value[:, ::-1] if turn >= 4 else value
          value = np.rot90(value, -(turn % 4))
          n += 1
          delta = value - mean
          mean = mean + delta / n
          squared = squared + delta * (value - mean)
    return mean, np.sqrt(squared / n)


def variables_of(params: Any, batch_stats: Any) -> Variables:
  """What `Predictor` takes, of one checkpoint."""
  return {'params': params, 'batch_stats': batch_stats}
