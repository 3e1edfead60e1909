"""Prediction of slices of any size: tiles, orientations, dropout samples."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import pipeline
from skipnet_jax.models import network
from skipnet_jax.prediction import gate_maps
from skipnet_jax.step import losses

Variables = dict[str, Any]

# Longest side of a slice, in pixels, that is predicted whole by default.
WHOLE = 1536
_DEFAULT_TILE = 1024
# How far a receptive field is measured; beyond, it counts as the whole slice.
_FAR = 4096


def _ceil(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a slice is cut, and how the pieces are weighted together.

  Attributes:
    tile: sides y and x of a tile, in pixels, multiples of `multiple`.
    overlap: pixels that neighbouring tiles share, at least.
    margin: pixels at an inner border of a tile that carry no weight, since
      their receptive field is cut there; less than half the overlap.
    multiple: the network's downsampling. Tiles start at its multiples, for
      pooling and decimation to meet the same pixels as in a whole slice.
  """

  tile: tuple[int, int]
  overlap: int = 0
  margin: int = 0
  multiple: int = 32

  def padded(self, size: Sequence[int]) -> tuple[int, int]:
    """Sides that a slice of sides `size` is padded to."""
    y, x = (
      max(tile, _ceil(side, self.multiple))
      for side, tile in zip(size, self.tile, strict=True)
    )
    return y, x

  def starts(self, size: Sequence[int]) -> list[tuple[int, int]]:
    """Corners of the tiles that cover a slice of sides `size`."""
    axes, m = [], self.multiple
    for side, tile in zip(self.padded(size), self.tile, strict=True):
      # A side without a neighbour may be shorter than the overlap.
      step = max(m, (tile - self.overlap) // m * m)
      axes.append([*range(0, side - tile, step), side - tile])
    return list(itertools.product(*axes))

  def weight(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Weight of a tile's pixels, `[y, x]` float32: ramps at inner borders."""
    ramp = max(1, self.overlap - 2 * self.margin)
    axes = []
    for first, side, tile in zip(
      start, self.padded(size), self.tile, strict=True
    ):
      rising = np.clip((np.arange(tile) + 0.5 - self.margin) / ramp, 0, 1)
      axis = np.ones(tile)
      if first > 0:
        axis = axis * rising
      if first + tile < side:
        axis = axis * rising[::-1]
      axes.append(axis)
    return np.outer(*axes).astype(np.float32)


def _outputs(
  model: network.Network,
  variables: Variables,
  image: jax.Array,
  **settings: Any,
) -> losses.Outputs:
  outputs = model.apply(variables, image, train=False, **settings)
  assert not isinstance(outputs, tuple)  # With what is mutable: nothing.
  return outputs


# One cache for all predictors: a network is compiled once for each shape.
@functools.partial(jax.jit, static_argnums=(0, 1))
def predict_tile(
  model: network.Network,
  sample: bool,
  variables: Variables,
  image: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """The prediction of one tile, compiled.

  Args:
    model: as in `Predictor`.
    sample: whether dropout is on.
    variables: of one checkpoint.
    image: `[y, x, slices]` float32, normalised.
    key: of the dropout sample.

  Returns:
    `[y, x]` float32.
  """
  outputs = _outputs(
    model,
    variables,
    image[None],
    sample=sample,
    rngs={'dropout': key},
  )
  return losses.prediction(outputs)[0, ..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _normalised(
  model: network.Network, variables: Variables, image: jax.Array
) -> jax.Array:
  outputs = _outputs(model, variables, image[None])
  return outputs['normalised'][0, ..., 0]


class Predictor:
  """Averages a model's predictions over all that was asked for.

  One compiled function serves every tile, orientation, sample and checkpoint;
  with orientations of tiles that are not square, a second one.

  Args:
    model: maps `(image [b, y, x, slices], train, sample)` to outputs.
    variables: params and batch_stats of one or several checkpoints, whose
      predictions are averaged.
    tta: whether the eight flips and rotations are averaged.
    mc_samples: dropout samples averaged; 0: no dropout (the paper: 30).
    seed: of the dropout samples.
    multiple: what both sides of a tile must be multiples of, beside what the
      model's must.
  """

  def __init__(
    self,
    model: network.Network,
    variables: Sequence[Variables],
    *,
    tta: bool = False,
    mc_samples: int = 0,
    seed: int = 0,
    multiple: int = 32,
  ):
    self._model = model
    device = jax.local_devices()[0]
    self._variables = [jax.device_put(v, device) for v in variables]
    self._turns = 8 if tta else 1
    self._samples = mc_samples
    self._keys = jax.random.split(jax.random.key(seed), max(1, mc_samples))
    self._multiple = math.lcm(multiple, model.size_multiple)
    self.slices = model.slices

  @property
  def count(self) -> int:
    """Predictions averaged for each tile."""
    return len(self._variables) * len(self._keys) * self._turns

  def gates(self, image: np.ndarray) -> dict[str, np.ndarray]:
    """What the first checkpoint's pixel gates let through, in 0..1.

    Args:
      image: as for `__call__`; of a side above 1536 pixels the first ones.

    Returns:
      As `gate_maps.gate_maps`, of the image's size.

    Raises:
      InputError: NaN or infinite pixels.
    """
    prepared, (y, x) = self._whole(image)
    found = gate_maps.gate_maps(self._model, self._variables[0], prepared)
    return {name: mask[:y, :x] for name, mask in found.items()}

  def normalised(self, image: np.ndarray) -> np.ndarray | None:
    """What the first checkpoint's normaliser makes of an image.

    Args:
      image: as for `gates`.

    Returns:
      `[y, x]` float32, or None for a network without.

    Raises:
      InputError: NaN or infinite pixels.
    """
    if not self._model.normalises:
      return None
    prepared, (y, x) = self._whole(image)
    found = _normalised(self._model, self._variables[0], prepared)
    return np.asarray(found)[:y, :x]

  def _whole(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The image as the network takes it in one piece, and its own sides."""
    image = image[..., :WHOLE, :WHOLE]
    y, x = image.shape[-2:]
    m = self._multiple
    return _prepare(image, (_ceil(y, m), _ceil(x, m))), (y, x)

  def receptive_field(self) -> int | None:
    """How far, in pixels, a pixel of the image reaches in the prediction.

    Measured, so that any model serves: NaN in a block of a strip makes NaN of
    every pixel that it reaches. None if that is the whole strip, as with
    pooling over the whole slice.
    """
    block = self._multiple
    # Nothing here is a number that counts: the quickest compilation serves.
    cpu = jax.default_backend() == 'cpu'
    options = {'xla_backend_optimization_level': 0} if cpu else None
    predict = jax.jit(
      lambda v, x: losses.prediction(_outputs(self._model, v, x)),
      compiler_options=options,
    )
    for far in (_FAR // 2, 2 * _FAR + block):
      length = _ceil(far, block)
      strip = np.ones((1, block, length, self.slices), np.float32)
      first = length // 2 // block * block
      strip[:, :, first : first + block] = np.nan
      reached = np.isnan(predict(self._variables[0], strip)).any((0, 1, 3))
      columns = np.flatnonzero(reached)
      if columns[0] > 0 and columns[-1] < length - 1:
        return int(max(first - columns[0], columns[-1] - first - block + 1))
    return None

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
      InputError: a tile or an overlap that does not fit; before anything is
        compiled.
    """
    m = self._multiple
    if tile % m or tile < 0:
      raise errors.InputError(
        f'--tile is {tile}; it must be a multiple of {m}: '
        f'{max(m, round(tile / m) * m)} is the nearest.'
      )
    side = tile or _ceil(_DEFAULT_TILE if max(size) > WHOLE else max(size), m)
    if overlap is not None and not 0 <= overlap <= side - m:
      raise errors.InputError(
        f'--overlap is {overlap}; it must be from 0 to {side - m}, the tile '
        f'of {side} less {m}.'
      )
    sides = (min(side, _ceil(size[0], m)), min(side, _ceil(size[1], m)))
    if max(size) <= side:
      return Tiling(sides, multiple=m)
    reach = self.receptive_field()
    if reach is None:
      overlap = min(side // 2, side - m) if overlap is None else overlap
      say(
        f'The receptive field is the whole slice: tiles of {side} pixels give '
        'another prediction than whole slices do. Whole ones from '
        f'--tile={_ceil(max(size), m)}.'
      )
      return Tiling(sides, overlap, overlap * 3 // 8, m)
    # Between margins of `reach` on both sides, a ramp blends smoothly.
    exact = 2 * reach + m
    if overlap is None:
      overlap = min(exact, side // 2, side - m)
    margin = reach
    if overlap < exact:
      margin = min(reach, overlap * 3 // 8)
      whole, enough = _ceil(max(size), m), max(side, _ceil(exact + m, m))
      remedy = f'--tile={whole}'
      if enough < whole:
        remedy = f'--tile={enough} --overlap={exact}'
      say(
        f'Tiles of {side} pixels overlap by {overlap}, while the receptive '
        f'field reaches {reach} pixels: predictions near tile borders may '
        f'differ from those of whole slices. Equal from {remedy}.'
      )
    return Tiling(sides, overlap, margin, m)

  def __call__(
    self,
    image: np.ndarray,
    tiling: Tiling,
    advance: Callable[[], object] = lambda: None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Predicts the slice in the middle.

    Args:
      image: `[slices, y, x]`, see `sources.neighbours`, or `[y, x]` where
        that is one; uint8, uint16 or float32, as stored.
      tiling: from `tiling`.
      advance: called after each of `count` predictions of each tile.

    Returns:
      Mean and standard deviation over everything averaged, of the probability
      that a pixel is inside a cell, each `[y, x]` float32.

    Raises:
      InputError: NaN or infinite pixels.
    """
    size = image.shape[-2:]
    sides = tiling.padded(size)
    image = _prepare(image, sides)
    mean, std, weights = np.zeros((3, *sides), np.float32)
    for y, x in tiling.starts(size):
      where = slice(y, y + tiling.tile[0]), slice(x, x + tiling.tile[1])
      weight = tiling.weight((y, x), size)
      tile_mean, tile_std = self._average(image[where], advance)
      mean[where] += weight * tile_mean
      std[where] += weight * tile_std
      weights[where] += weight
    crop = slice(size[0]), slice(size[1])
    # Rounding could leave the range by the last bit.
    mean = np.clip(mean[crop] / weights[crop], 0, 1)
    return mean, std[crop] / weights[crop]

  def _average(
    self, tile: np.ndarray, advance: Callable[[], object]
  ) -> tuple[np.ndarray, np.ndarray]:
    # Welford's running mean and squared deviation: no list of predictions.
    mean, squared = np.zeros((2, *tile.shape[:2]), np.float32)
    for number, value in enumerate(self._predictions(tile), start=1):
      delta = value - mean
      mean += delta / np.float32(number)
      squared += delta * (value - mean)
      advance()
    return mean, np.sqrt(squared / np.float32(self.count))

  def _predictions(self, tile: np.ndarray) -> Iterator[np.ndarray]:
    turned = [_turn(tile, turn) for turn in range(self._turns)]
    for variables, key in itertools.product(self._variables, self._keys):
      for turn, image in enumerate(turned):
        value = predict_tile(
          self._model, self._samples > 0, variables, image, key
        )
        yield _turn_back(np.asarray(value), turn)


def _prepare(image: np.ndarray, sides: Sequence[int]) -> np.ndarray:
  """Normalised and continued by reflection: `[*sides, slices]` float32."""
  image = image.reshape(-1, *image.shape[-2:])
  mean, std = (x[:, None, None] for x in pipeline.statistics(image).values())
  normalised = np.moveaxis((image.astype(np.float32) - mean) / std, 0, -1)
  rest = [(0, a - b) for a, b in zip(sides, image.shape[1:], strict=True)]
  return np.pad(normalised, (*rest, (0, 0)), 'symmetric')


def _turn(image: np.ndarray, turn: int) -> np.ndarray:
  """One of the eight orientations of `[y, x, ...]`."""
  image = np.rot90(image, turn % 4)
  return np.ascontiguousarray(image[:, ::-1] if turn >= 4 else image)


def _turn_back(image: np.ndarray, turn: int) -> np.ndarray:
  return np.rot90(image[:, ::-1] if turn >= 4 else image, -(turn % 4))
