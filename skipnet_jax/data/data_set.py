"""A labelled stack with its split, and what a run's folder keeps of it."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import math
from typing import Any, NotRequired, TypedDict

import numpy as np

from skipnet_jax.data import fingerprint as fingerprint_lib
from skipnet_jax.data import isbi2012
from skipnet_jax.data import labels
from skipnet_jax.data import stack_reader
from skipnet_jax.data import volume


class Identity(TypedDict):
  """What a run's folder keeps of its data, see `DataSet`."""

  name: str
  fingerprint: str
  # Not in the folders of older runs.
  pixel_size: NotRequired[float]
  dtype: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A labelled stack and its split.

  Attributes:
    name: what figures and reports show, such as 'isbi2012'.
    image: `[z, y, x]` uint8, uint16 or float32; may stay in its file.
    label: `[z, y, x]` bool, True inside a cell; may stay on the disk.
    train: slices for training.
    valid: slices for validation.
    warning: a sentence that every artefact repeats; '' for real data whose
      labels are as expected.
    remedy: why the real data were not found, and what to do.
    weight: `[z, y, x]` float32, by which the losses count pixels; None: alike.
    state: of the files, see `fingerprint.state_of`; '' where there are none.
    normalise: how slices are normalised, one of
      `config.NORMALISATIONS`.
    pixel_size: side of a pixel in nanometres; 0: unknown.
  """

  name: str
  image: volume.Stack
  label: volume.Stack
  train: tuple[int, ...]
  valid: tuple[int, ...]
  warning: str = ''
  remedy: str = ''
  weight: np.ndarray | None = None
  state: str = ''
  normalise: str = 'slice'
  pixel_size: float = 0.0

  def around(self, z: int, slices: int) -> np.ndarray:
    """Slice `z` in the middle of its neighbours, `[slices, y, x]`."""
    return self.image[neighbours(np.asarray(z), len(self.image), slices)]

  def drawn(self, slices: Sequence[int]) -> list[int]:
    """Those of the slices whose labels have both cells and membranes."""
    return [z for z in slices if labels.is_drawn(self.label[z])]

  def lacking(self) -> str:
    """Names slices of parts that were read and are not on the disk, or ''."""
    slices = {*self.train, *self.valid}
    return ' '.join(
      f'{stack.path} lacks chunks, which count as its fill value, in slices '
      f'{labels.ranges([*stack.filled & slices])} (counted from 0).'
      for stack in (self.image, self.label)
      if isinstance(stack, stack_reader.SlicesOnDisk) and stack.filled & slices
    )

  def inside_share(self) -> float:
    """The share of pixels inside cells, of the slices of both splits."""
    slices = (*self.train, *self.valid)
    return float(np.mean([self.label[z].mean() for z in slices]))

  def fingerprint(self) -> str:
    """See `fingerprint.of_arrays`; of files, hashed once."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    return fingerprint_lib.remembered(
      self.state, lambda: fingerprint_lib.of_arrays(self.image, self.label)
    )

  def identity(self) -> Identity:
    """What a run's folder keeps of its data."""
    return {
      'name': self.name,
      'fingerprint': self.fingerprint(),
      'pixel_size': self.pixel_size,
      'dtype': np.dtype(self.image.dtype).name,
    }

  def change_since(self, kept: Identity) -> str:
    """What is not as when a run began: '' or, for one, 'the labels'.

    Args:
      kept: the `identity` that the run's folder keeps.
    """
    before = kept.get('fingerprint', '')
    if is_old(kept):
      return '' if before == self._old_fingerprint() else 'pixels or labels'
    pairs = zip(before.split('-'), self.fingerprint().split('-'), strict=True)
    changed = [a != b for a, b in pairs]
    return ' and '.join(itertools.compress(('pixels', 'labels'), changed))

  def _old_fingerprint(self) -> str:
    head = f'{self.name} {self.image.shape} {self.image.dtype}'
    digest = hashlib.sha256(head.encode())
    for array in (self.image, self.label):
      digest.update(np.ascontiguousarray(array[0]).tobytes())
    return digest.hexdigest()[:12]

  def constant_bce(self, slices: Sequence[int]) -> float:
    """BCE, in nats, of predicting the slices' own share of cells everywhere."""
    p = float(np.mean([self.label[z].mean() for z in slices]))
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def trained_pixel_size(kept: Identity) -> float:
  """Side of a pixel of a run's data in nanometres; 0: unknown.

  Older runs keep none, but isbi2012 is known.
  """
  return kept.get('pixel_size', 0.0) or known_pixel_size(kept['name'])


def known_pixel_size(name: str) -> float:
  """Side of a pixel, in nanometres, of a named data set; 0: unknown."""
  isbi = name.removeprefix('tfds:').startswith('isbi2012')
  return isbi2012.PIXEL_SIZE if isbi else 0.0


def is_old(kept: Identity) -> bool:
  """Whether an identity is of the first slice and the name alone.

  So were all, before there was a fingerprint of all pixels, in two parts.
  """
  return str(kept.get('fingerprint')).count('-') != 1


def neighbours(z: Any, count: int, slices: int) -> Any:
  """The slices that an example of several slices consists of.

  Args:
    z: the slices in the middle, integers `[...]`, an array of NumPy or JAX.
    count: slices of the stack, at least `slices`.
    slices: of an example, odd.

  Returns:
    `[..., slices]`; beyond the stack's ends, those inside by reflection.
  """
  offsets = np.arange(slices).reshape(z.ndim * (1,) + (slices,)) - slices // 2
  at = abs(z[..., None] + offsets)
  return count - 1 - abs(count - 1 - at)
