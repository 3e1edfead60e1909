"""The labelled stacks of two tissues, joined into one to train on.

A tissue is divided into folds, each of which holds out one part of it.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib

import numpy as np

from skipnet_jax import environment
from skipnet_jax import files
from skipnet_jax.data import isbi2012
from skipnet_jax.data import labels
from skipnet_jax.data import volume
from skipnet_jax.prediction import pixel_grid

FOLDS = 5
# Nanometres at which the networks are trained.
PIXEL_SIZE = 4.0
JOINED = 'joined.json'
# FIB-SEM slices are 10 nm apart and much alike: every eighth is taken, which
# makes as many as the challenge has.
_EVERY = 8


@dataclasses.dataclass(frozen=True)
class Tissue:
  """A labelled stack, at its own pixel size.

  Attributes:
    name: of the tissue, as in the tables.
    image: `[z, y, x]` uint8.
    inside: `[z, y, x]` bool, True inside a cell.
    pixel_size: in y and x, nanometres.
  """

  name: str
  image: np.ndarray
  inside: np.ndarray
  pixel_size: float

  @property
  def grid(self) -> pixel_grid.Grid:
    """Its pixels, and those on which the networks predict."""
    y, x = self.image.shape[1:]
    factor = self.pixel_size / PIXEL_SIZE
    return pixel_grid.Grid((y, x), (round(y * factor), round(x * factor)))

  def fold(self, fold: int) -> tuple[list[int], list[int]]:
    """Its slices for training, and those that a fold holds out."""
    parts = np.array_split(np.arange(len(self.image)), FOLDS)
    held = parts.pop(fold)
    return [int(z) for part in parts for z in part], [int(z) for z in held]


def load_tissues(
  isbi: str | pathlib.Path | None, fibsem: str | pathlib.Path
) -> tuple[Tissue, Tissue]:
  """Reads both stacks.

  Args:
    isbi: folder of the challenge's stacks; None: as `data.source=isbi2012`.
    fibsem: folder with image.tif and instances.tif of FIB-SEM sample 2.

  Raises:
    InputError: a stack is missing or cannot be used.
  """
  folder = isbi2012.find(isbi)
  if folder is None:
    folder = isbi2012.download(environment.cache_dir())
  image, values = isbi2012.load(folder, 'train')
  assert values is not None  # Only 'test' has none.
  first = Tissue(
    'isbi2012',
    image,
    labels.find_inside(values, image.shape, 'train-labels.tif'),
    isbi2012.PIXEL_SIZE,
  )
  paths = [pathlib.Path(fibsem, n) for n in ('image.tif', 'instances.tif')]
  with (
    volume.open_stack(paths[0]) as images,
    volume.open_stack(paths[1], dtypes=labels.DTYPES) as numbers,
  ):
    volume.check_same_slices(images, numbers)
    image, ids = images.read_all(), numbers.read_all()
  middle = slice(_EVERY // 2, None, _EVERY)
  image, ids = image[middle], ids[middle]
  meaning = labels.Meaning('instances')
  inside = labels.find_inside(ids, image.shape, str(paths[1]), meaning)
  return first, Tissue('fibsem', image, inside, 10.0)


def join(tissues: Sequence[Tissue], folder: pathlib.Path) -> None:
  """Writes image.tif and labels.tif: the pages of all tissues, at one size.

  Smaller pages are reflected beyond their borders. joined.json is written last
  and says of what they are made; where the same is there, nothing is done.

  Raises:
    InputError: the folder has other files of these names.
  """
  digest = hashlib.sha256()
  for tissue in tissues:
    for array in (tissue.image, tissue.inside):
      digest.update(np.ascontiguousarray(array).data)
  made = {'sha256': digest.hexdigest(), 'pixel_size': PIXEL_SIZE}
  outputs = [folder / name for name in (JOINED, 'image.tif', 'labels.tif')]
  if files.read_json(outputs[0]) == made:
    return
  files.check_outputs(
    outputs,
    overwrite=False,
    remedy='it is not of these stacks; choose another --workdir',
  )
  sides = [max(t.grid.network[i] for t in tissues) for i in (0, 1)]
  count = sum(len(t.image) for t in tissues)
  # Pixels in a nanometre.
  metadata = {'unit': 'nm', 'resolution': (1 / PIXEL_SIZE, 1 / PIXEL_SIZE)}
  shape = (count, *sides)
  folder.mkdir(parents=True, exist_ok=True)
  with (
    volume.StackWriter(outputs[1], shape, 'uint8', metadata) as images,
    volume.StackWriter(outputs[2], shape, 'uint8', metadata) as drawn,
  ):
    for tissue in tissues:
      grid = tissue.grid
      for page, inside in zip(tissue.image, tissue.inside, strict=True):
        images.write(_widened(grid.to_network(page), sides))
        # Of the share of a pixel that is inside.
        moved = grid.to_network(inside.astype(np.float32)) > 0.5
        drawn.write(_widened(np.uint8(255) * moved, sides))
  files.write_json(outputs[0], made)


def _widened(page: np.ndarray, sides: Sequence[int]) -> np.ndarray:
  before = [(s - n) // 2 for s, n in zip(sides, page.shape, strict=True)]
  padding = [
    (b, s - n - b) for b, s, n in zip(before, sides, page.shape, strict=True)
  ]
  return np.pad(page, padding, 'symmetric')
