"""Volumes predicted by a network that is none, and read again."""

import numpy as np

from skipnet_jax.data import volume
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.prediction import volumes


class Fake(inference.Predictor):
  """Predicts what depends on all pixels of a tile, and on the order of slices.

  Args:
    tile: side of a tile.
    slices: of the input.
    normalise: see `Predictor`.
  """

  def __init__(self, tile=64, slices=1, normalise='slice'):
    self._tile, self.slices, self.normalise = tile, slices, normalise
    self._variables, self._keys, self._turns = [0], [0], 1
    self.multiple, self.tiles = 32, 0

  def tiling(self, size, *_):
    sides = [min(self._tile, tiling_lib.round_up(n, 32)) for n in size]
    return tiling_lib.Tiling(tuple(sides), self._tile // 2, 8)

  def compile(self, tiling):
    pass

  def _averages(self, tiles, advance):
    for tile in tiles:
      self.tiles += 1
      advance()
      mixed = tile @ np.arange(1, self.slices + 1, dtype=np.float32)
      mean = np.cumsum(mixed, 1) + np.cumsum(mixed[::-1], 0)
      yield 1 / (1 + np.exp(-mean / 8)), np.abs(mixed)


def settings(source):
  choice = volume.Choice()
  return {
    'input': str(source.path),
    'level': choice.level,
  }


def predict(predictor, path, output, **options):
  with volume.open_stack(path) as source:
    given = settings(source)
    return volumes.predict_volume(predictor, source, output, given, **options)


def read(path, level=0):
  with volume.open_stack(
    path,
    dtypes=('float32', 'uint32'),
    choice=volume.Choice(level=level),
  ) as stack:
    assert not stack.filled
    return stack.read_all()
