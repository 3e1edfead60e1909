"""Predicts slices of any size, from tiles, orientations and dropout samples."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from skipnet_jax.data import normalisation
from skipnet_jax.models import network
from skipnet_jax.prediction import gate_maps
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.step import losses

Variables = dict[str, Any]
Statistics = Mapping[str, np.ndarray]
Average = tuple[np.ndarray, np.ndarray]  # Mean and standard deviation.

# A receptive field that reaches this far, in pixels, counts as unlimited.
_MAX_REACH = 4096


def _outputs(
  model: network.Network, variables: Variables, image: jax.Array, **options: Any
) -> losses.Outputs:
  outputs = model.apply(variables, image, train=False, **options)
  assert not isinstance(outputs, tuple)  # It is, only with `mutable`.
  return outputs


def devices() -> list[jax.Device]:
  """Those of this machine that a prediction may use.

  Of CPU devices only the first one, as all of them share the same cores.
  """
  found = jax.local_devices()
  return found[:1] if found[0].platform == 'cpu' else found


# Not a method: all predictors share what was compiled.
@functools.partial(jax.jit, static_argnums=(0, 1))
def predict_tile(
  model: network.Network,
  sample: bool,
  variables: Variables,
  image: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """The prediction of one tile, `[y, x]` float32.

  `image` is `[y, x, slices]` float32, normalised. If `sample`, dropout is on,
  with `key`.
  """
  rngs = {'dropout': key}
  outputs = _outputs(model, variables, image[None], sample=sample, rngs=rngs)
  return losses.prediction(outputs)[0, ..., 0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _predict_tiles(
  mesh: jax.sharding.Mesh,
  model: network.Network,
  sample: bool,
  variables: Variables,
  images: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """`predict_tile` of as many tiles as there are devices, one on each."""

  def each(variables, images, key):
    return predict_tile(model, sample, variables, images[0], key)[None]

  tiles, all_of_it = jax.P('tiles'), jax.P()
  return jax.shard_map(
    each,
    mesh=mesh,
    in_specs=(all_of_it, tiles, all_of_it),
    out_specs=tiles,
    check_vma=False,
  )(variables, images, key)


@functools.partial(jax.jit, static_argnums=0)
def _normalised(
  model: network.Network, variables: Variables, image: jax.Array
) -> jax.Array:
  outputs = _outputs(model, variables, image[None])
  return outputs['normalised'][0, ..., 0]


class Predictor:
  """Averages predictions over checkpoints, orientations and dropout samples.

  The network is compiled once; twice if tiles that are not square are rotated.

  Args:
    model: maps `(image [b, y, x, slices], train, sample)` to outputs.
    variables: params and batch_stats of each checkpoint.
    tta: whether to average the eight flips and rotations.
    mc_samples: number of dropout samples to average (the paper: 30); 0: no
      dropout.
    seed: of the dropout samples.
    multiple: both sides of a tile are multiples of it and of the model's
      `size_multiple`.
    normalise: how slices were normalised in training, see `normalisation`.
    devices: each predicts a tile at a time; None: the first one alone.

  Attributes:
    normalise: the argument.
    slices: neighbouring slices in the network's input.
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
    normalise: str = 'slice',
    devices: Sequence[jax.Device] | None = None,
  ):
    self._model = model
    devices = devices or jax.local_devices()[:1]
    self._mesh = jax.sharding.Mesh(np.asarray(devices), ('tiles',))
    self._variables = [jax.device_put(v, devices[0]) for v in variables]
    self._copies = self._variables
    if len(devices) > 1:
      everywhere = jax.NamedSharding(self._mesh, jax.P())
      self._copies = [jax.device_put(v, everywhere) for v in variables]
    self._turns = 8 if tta else 1
    self._samples = mc_samples
    self._keys = jax.random.split(jax.random.key(seed), max(1, mc_samples))
    self.multiple = math.lcm(multiple, model.size_multiple)
    self.slices = model.slices
    self.normalise = normalise

  @property
  def count(self) -> int:
    """Predictions averaged for each tile."""
    return len(self._variables) * len(self._keys) * self._turns

  def gates(self, image: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of the first checkpoint's pixel gates, see `gate_maps`.

    They have the size of the image (see `__call__`), which is cropped to 1536
    pixels in y and x.

    Raises:
      InputError: NaN or infinite pixels; floats that cannot be normalised.
    """
    prepared, (y, x) = self._cropped(image)
    masks = gate_maps.gate_maps(self._model, self._variables[0], prepared)
    return {name: mask[:y, :x] for name, mask in masks.items()}

  def normalised(self, image: np.ndarray) -> np.ndarray | None:
    """The image after the first checkpoint's normaliser; None without one.

    It is `[y, x]` float32, of the size that `gates` has.

    Raises:
      InputError: NaN or infinite pixels; floats that cannot be normalised.
    """
    if not self._model.normalises:
      return None
    prepared, (y, x) = self._cropped(image)
    normalised = _normalised(self._model, self._variables[0], prepared)
    return np.asarray(normalised)[:y, :x]

  def _cropped(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The cropped image as the network takes it, and its sides before that."""
    most = tiling_lib.MAX_WHOLE
    image = image[..., :most, :most]
    y, x = image.shape[-2:]
    m = self.multiple
    image = image.reshape(-1, y, x)
    pages, statistics = normalisation.prepare(image, self.normalise)
    image = _pad(
      np.asarray(pages), (tiling_lib.round_up(y, m), tiling_lib.round_up(x, m))
    )
    return _normalise(image, statistics), (y, x)

  def receptive_field(self) -> int | None:
    """How far, in pixels, a pixel of the image affects the prediction.

    It is measured, which works for any model: a block of NaN in a strip makes
    all pixels NaN that depend on it. None if these are the whole strip, as with
    pooling over the whole slice.
    """
    block = self.multiple
    # Only NaN counts here: choose the fastest compilation.
    cpu = jax.default_backend() == 'cpu'
    options = {'xla_backend_optimization_level': 0} if cpu else None
    predict = jax.jit(
      lambda v, x: losses.prediction(_outputs(self._model, v, x)),
      compiler_options=options,
    )
    for length in (_MAX_REACH // 2, 2 * _MAX_REACH + block):
      length = tiling_lib.round_up(length, block)
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
    log: Callable[[str], None] = lambda _: None,
  ) -> tiling_lib.Tiling:
    """Chooses tile and overlap for slices with the sides `size`.

    Args:
      size: sides y and x, in pixels.
      tile: side of a tile; 0: whole slices up to 1536 pixels, else 1024.
      overlap: pixels; None: from the receptive field, at most half a tile.
      log: called with a warning if tiles change the prediction.

    Raises:
      InputError: a tile or an overlap that does not fit; before anything is
        compiled.
    """
    return tiling_lib.choose(
      size, self.multiple, self.receptive_field, tile, overlap, log
    )

  def __call__(
    self,
    image: np.ndarray,
    tiling: tiling_lib.Tiling,
    advance: Callable[[], object] = lambda: None,
  ) -> Average:
    """Predicts the middle slice of a network's input.

    Args:
      image: `[slices, y, x]`, see `data_set.neighbours`, or `[y, x]` for one
        slice; uint8, uint16 or float32, not normalised.
      tiling: from `tiling`.
      advance: called after each of `count` predictions of each tile.

    Returns:
      Mean and standard deviation, over all averaged predictions, of the
      probability that a pixel is inside a cell, each `[y, x]` float32.

    Raises:
      InputError: NaN or infinite pixels; floats that cannot be normalised.
    """
    image = image.reshape(-1, *image.shape[-2:])
    y, x = image.shape[1:]
    (found,) = self.predict_slices([image], (y, x), tiling, advance)
    return found

  def predict_slices(
    self,
    images: Iterable[np.ndarray],
    size: tuple[int, int],
    tiling: tiling_lib.Tiling,
    advance: Callable[[], object] = lambda: None,
  ) -> Iterator[Average]:
    """Predicts slices one after the other, on all devices.

    Args:
      images: `[slices, y, x]` each, see `__call__`; read when they are needed.
      size: sides y and x of all.
      tiling: see `__call__`.
      advance: see `__call__`.

    Yields:
      What `__call__` returns.
    """

    def prepared() -> Iterator[tuple[np.ndarray, Statistics]]:
      for image in images:
        pages, statistics = normalisation.prepare(image, self.normalise)
        yield _pad(np.asarray(pages), tiling.padded(size)), statistics

    whole = range(size[0]), range(size[1])
    return self.predict_windows(prepared(), tiling, size, whole, advance)

  def predict_windows(
    self,
    images: Iterable[tuple[np.ndarray, Statistics]],
    tiling: tiling_lib.Tiling,
    size: tuple[int, int],
    window: tiling_lib.Window,
    advance: Callable[[], object] = lambda: None,
  ) -> Iterator[Average]:
    """Predicts the same part of slices: the same bits as of whole slices.

    Args:
      images: `[slices, y, x]` each, and the statistics of their whole slices,
        both from `normalisation.prepare`. Of the image, the rows and columns
        that `Tiling.touching` names; beyond the slice, its reflection.
      tiling: of the whole slice.
      size: sides of the whole slice.
      window: rows and columns that are predicted.
      advance: see `__call__`.

    Yields:
      What `__call__` returns; of the window.
    """
    starts, box = tiling.touching(size, window)
    sides = [len(span) for span in window]
    places = []
    for start in starts:
      tile, inner, outer = [], [], []
      axes = zip(start, tiling.tile, window, box, strict=True)
      for first, side, span, read in axes:
        begin, end = max(first, span.start), min(first + side, span.stop)
        tile.append(slice(first - read.start, first - read.start + side))
        inner.append(slice(begin - first, end - first))
        outer.append(slice(begin - span.start, end - span.start))
      places.append((start, tile, inner, outer))
    tiles = (
      _normalise(image[:, *tile], statistics)
      for image, statistics in images
      for _, tile, _, _ in places
    )
    mean, std, weights = np.zeros((3, *sides), np.float32)
    for (start, _, inner, outer), (tile_mean, tile_std) in zip(
      itertools.cycle(places), self._averages(tiles, advance), strict=False
    ):
      weight = tiling.weight(start, size)[*inner]
      mean[*outer] += weight * tile_mean[*inner]
      std[*outer] += weight * tile_std[*inner]
      weights[*outer] += weight
      if start == starts[-1]:
        # Clipped, since rounding errors could exceed the range.
        yield np.clip(mean / weights, 0, 1), std / weights
        mean, std, weights = np.zeros((3, *sides), np.float32)

  def compile(self, tiling: tiling_lib.Tiling) -> None:
    """Predicts tiles of zeros: what follows needs no more memory."""
    tile = np.zeros((*tiling.tile, self.slices), np.float32)
    for turn in range(min(2, self._turns)):
      self._predict(self._copies[0], [_turn(tile, turn)], self._keys[0])

  def _predict(
    self, variables: Variables, tiles: Sequence[np.ndarray], key: jax.Array
  ) -> np.ndarray:
    """Predictions `[tiles, y, x]`, of no more tiles than devices."""
    devices, sample = self._mesh.size, self._samples > 0
    if devices == 1:
      (tile,) = tiles
      one = predict_tile(self._model, sample, variables, tile, key)
      return np.asarray(one)[None]
    idle = [np.zeros_like(tiles[0])] * (devices - len(tiles))
    images = jax.device_put(
      np.stack([*tiles, *idle]), jax.NamedSharding(self._mesh, jax.P('tiles'))
    )
    found = _predict_tiles(
      self._mesh, self._model, sample, variables, images, key
    )
    return np.asarray(found)[: len(tiles)]

  def _averages(
    self, tiles: Iterator[np.ndarray], advance: Callable[[], object]
  ) -> Iterator[Average]:
    """Mean and standard deviation of each tile's predictions, `[y, x]`."""
    while group := list(itertools.islice(tiles, self._mesh.size)):
      turned = [
        [_turn(tile, turn) for tile in group] for turn in range(self._turns)
      ]
      # Welford's running mean and variance: stores no list of predictions.
      shape = (2, len(group), *group[0].shape[:2])
      means, squares = np.zeros(shape, np.float32)
      for number, (variables, key, (turn, images)) in enumerate(
        itertools.product(self._copies, self._keys, enumerate(turned)), start=1
      ):
        outputs = self._predict(variables, images, key)
        for mean, squared, output in zip(means, squares, outputs, strict=True):
          value = _turn_back(output, turn)
          delta = value - mean
          mean += delta / np.float32(number)
          squared += delta * (value - mean)
          advance()
      stds = np.sqrt(squares / np.float32(self.count))
      yield from zip(means, stds, strict=True)


def _pad(image: np.ndarray, sides: Sequence[int]) -> np.ndarray:
  """`[slices, y, x]` of larger sides, continued by reflection."""
  y, x = image.shape[1:]
  padding = (0, 0), (0, sides[0] - y), (0, sides[1] - x)
  return np.pad(image, padding, 'symmetric')


def _normalise(image: np.ndarray, statistics: Statistics) -> np.ndarray:
  """`[slices, y, x]` as the network takes it: `[y, x, slices]` float32."""
  mean, std = (statistics[key][:, None, None] for key in ('mean', 'std'))
  return np.moveaxis((image.astype(np.float32) - mean) / std, 0, -1)


def _turn(image: np.ndarray, turn: int) -> np.ndarray:
  """One of the eight orientations of `[y, x, ...]`."""
  image = np.rot90(image, turn % 4)
  return np.ascontiguousarray(image[:, ::-1] if turn >= 4 else image)


def _turn_back(image: np.ndarray, turn: int) -> np.ndarray:
  return np.rot90(image[:, ::-1] if turn >= 4 else image, -(turn % 4))
