"""Which stack a config means, and which of its slices train and validate."""

from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import math
import re
from typing import Any, NotRequired, TypedDict

import ml_collections
import numpy as np

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.data import border_weight
from skipnet_jax.data import fingerprint as fingerprint_lib
from skipnet_jax.data import isbi2012
from skipnet_jax.data import labels
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import pixel_size as pixel_size_lib
from skipnet_jax.data import stack_reader
from skipnet_jax.data import synthetic
from skipnet_jax.data import volume


class Identity(TypedDict):
  """What a run's folder keeps of its data, see `DataSet`."""

  name: str
  fingerprint: str
  # Not in the folders of older runs.
  pixel_size: NotRequired[float]


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
    return fingerprint_lib.remembered(
      self.state, lambda: fingerprint_lib.of_arrays(self.image, self.label)
    )

  def identity(self) -> Identity:
    """What a run's folder keeps of its data."""
    return {
      'name': self.name,
      'fingerprint': self.fingerprint(),
      'pixel_size': self.pixel_size,
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
  return kept.get('pixel_size', 0.0) or _known_pixel_size(kept['name'])


def _known_pixel_size(name: str) -> float:
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


def load(config: ml_collections.ConfigDict) -> DataSet:
  """Finds, reads and checks the data set of a config.

  Args:
    config: a whole config; `data` and, for a random split, `seed` are used.

  Raises:
    InputError: missing or unusable files, an empty or overlapping split, a
      centre crop larger than the slices, a stack of floats where
      `data.normalise` is 'range'.
  """
  data = config.data
  meaning = labels.Meaning(data.label_kind, data.label_inverted)
  # Before the pixels are read: what changes later changes this too.
  state = ''
  if data.source == 'stack':
    state = fingerprint_lib.state_of(
      _stack_paths(data),
      *(data.size, data.series, data.channel),
      *(data.label_kind, data.label_inverted),
    )
  name, image, label, warning, remedy, pixel_size = _read(data, meaning)
  normalisation.check(data.normalise, image.dtype, name)
  if data.size:
    image, label = (_centre_crop(s, data.size) for s in (image, label))
    if 'synthetic' not in name:
      name += f', centre {data.size}x{data.size}'
  train, valid = split(data.train, data.valid, len(image), config.seed)
  label_name = data.label if data.source == 'stack' else name
  warnings = [warning, *_check_label(label, train, valid, label_name, meaning)]
  weight = None
  if data.border_weight:
    weight = border_weight.border_weight(
      np.asarray(label), data.border_weight, data.border_sigma
    )
  return DataSet(
    name,
    image,
    label,
    train,
    valid,
    ' '.join(filter(None, warnings)),
    remedy,
    weight,
    state,
    data.normalise,
    data.pixel_size or pixel_size or _known_pixel_size(name),
  )


def _check_label(
  label: volume.Stack,
  train: tuple[int, ...],
  valid: tuple[int, ...],
  name: str,
  meaning: labels.Meaning,
) -> list[str]:
  """Warnings of labels that are perhaps not drawn, or inverted.

  Raises:
    InputError: no slice of a split has both cells and membranes.
  """
  for field, slices in (('data.train', train), ('data.valid', valid)):
    if not any(labels.is_drawn(label[z]) for z in slices):
      raise errors.InputError(
        f'{field} selects slices {labels.ranges(slices)}, but in {name} each '
        'of them has only one value, all membrane or all inside cells: select '
        'slices whose membranes are drawn.'
      )
  groups = {'training slices': train, 'validation slices': valid}
  undrawn = labels.undrawn_sentence(label, groups, name)
  if undrawn:
    undrawn += (
      '; where they are not drawn, leave them out of data.train and data.valid'
    )
  inverted = labels.inverted_sentence(label, [*train, *valid], name, meaning)
  return [f'LABELS: {text}.' for text in (undrawn, inverted) if text]


def _stack_paths(data: ml_collections.ConfigDict) -> tuple[str, str]:
  """Where the image and its labels are."""
  image, label = map(environment.expand_home, (data.image, data.label))
  return image, label


def _read(
  data: ml_collections.ConfigDict, meaning: labels.Meaning
) -> tuple[str, volume.Stack, volume.Stack, str, str, float]:
  source = data.source
  if source == 'stack':
    choice = volume.Choice(data.series, data.channel, 'data.')
    image_path, label_path = _stack_paths(data)
    with (
      volume.open_stack(image_path, choice=choice) as images,
      volume.open_stack(label_path, dtypes=labels.DTYPES) as labelled,
    ):
      volume.check_same_slices(images, labelled)
      on_disk = images.on_disk()
      image = images.read_all() if on_disk is None else on_disk
      label: volume.Stack
      in_chunks = ome_zarr.is_one(label_path)
      stored = labelled.on_disk() if in_chunks else None
      # A volume in chunks may be larger than the memory, and so its labels.
      if stored is not None:
        label = labels.find_inside_on_disk(
          stored, image.shape, data.label, meaning
        )
      else:
        label = labels.find_inside(
          labelled.read_all(), image.shape, data.label, meaning
        )
      y, x = pixel_size_lib.of_metadata(images.metadata) or (0.0, 0.0)
    # Pixels that are not square have no size that a run could keep.
    side = y if math.isclose(y, x, rel_tol=0.02) else 0.0
    return f'stack {data.image}', image, label, '', '', side
  if source.startswith('tfds:'):
    # The one room that needs tensorflow_datasets, which takes long to import.
    from skipnet_jax.data import isbi2012_tfds

    image, label = isbi2012_tfds.load_tfds(
      source.removeprefix('tfds:'), environment.expand_home(data.dir) or None
    )
    label = labels.find_inside(label, image.shape, source, meaning)
    return source, image, label, '', '', 0.0
  if source in ('auto', 'isbi2012'):
    folder = isbi2012.find(data.dir)
    problem = ''
    given = ' or '.join(map(str, isbi2012.given_folders(data.dir)))
    missing = 'the ISBI 2012 stacks were not found'
    missing += f' in {given}' if given else ''
    if folder is None:
      try:
        folder = isbi2012.download(environment.cache_dir())
      except errors.InputError as e:
        if source == 'isbi2012':
          raise errors.InputError(f'{missing}: {e}') from e
        problem = str(e)
    if folder is not None:
      image, values = isbi2012.load(folder, 'train')
      assert values is not None  # Only 'test' has none.
      label = labels.find_inside(values, image.shape, 'train-labels.tif')
      return 'isbi2012', image, label, '', '', 0.0
    warning = (
      f'SYNTHETIC DATA: {missing}, so a procedural stack stands in and no '
      'score here says anything about the challenge.'
    )
  else:
    problem = ''
    warning = 'SYNTHETIC DATA: no score here says anything about real tissue.'
  size = data.size or 512
  image, label = synthetic.load(slices=data.slices, size=size)
  name = f'synthetic {data.slices}x{size}x{size}'
  return name, image, label > 0, warning, problem, 0.0


def _centre_crop(stack: volume.Stack, size: int) -> Any:
  y, x = stack.shape[1:]
  if size > min(y, x):
    raise errors.InputError(
      f'data.size is {size}, but the slices are {y}x{x}: give at most '
      f'{min(y, x)}, or 0 for whole slices.'
    )
  top, left = (y - size) // 2, (x - size) // 2
  return stack[:, top : top + size, left : left + size]


def _parse_list(text: str, field: str, count: int) -> tuple[int, ...]:
  indices: list[int] = []
  for part in filter(None, (p.strip() for p in text.split(','))):
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', part)
    if not match:
      raise errors.InputError(
        f'{field} has {part!r}; give slices such as 0-11,14'
        + (', random:5 or fold:0/6.' if field == 'data.valid' else ' or rest.')
      )
    low, high = int(match[1]), int(match[2] or match[1])
    if high < low or high >= count:
      raise errors.InputError(
        f'{field} has {part!r}, but the stack has {count} slices, 0 to '
        f'{count - 1}.'
      )
    indices += range(low, high + 1)
  return tuple(dict.fromkeys(indices))


def split(
  train: str, valid: str, count: int, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Slices for training and validation.

  Args:
    train: 'rest' or a list such as '0-11,14'.
    valid: a list, 'random:N' (by seed) or 'fold:K/N' (contiguous, K from 0).
    count: number of slices.
    seed: decides over 'random:N'.

  Raises:
    InputError: unreadable, empty or overlapping.
  """
  drawn = re.fullmatch(r'random:(\d+)', valid)
  fold = re.fullmatch(r'fold:(\d+)/(\d+)', valid)
  if drawn:
    if int(drawn[1]) >= count:
      raise errors.InputError(
        f'data.valid is {valid!r}, but the stack has {count} slices: leave '
        'some for training.'
      )
    order = np.random.default_rng(seed).permutation(count)
    held = tuple(sorted(int(i) for i in order[: int(drawn[1])]))
  elif fold:
    k, folds = int(fold[1]), int(fold[2])
    if not (k < folds and 2 <= folds <= count):
      raise errors.InputError(
        f'data.valid is {valid!r}; give fold:K/N with N from 2 to {count} (the '
        'slices) and K below N.'
      )
    held = tuple(int(i) for i in np.array_split(np.arange(count), folds)[k])
  else:
    held = _parse_list(valid, 'data.valid', count)
  if train == 'rest':
    rest: Sequence[int] = [i for i in range(count) if i not in held]
  else:
    rest = _parse_list(train, 'data.train', count)
  for field, slices in (('data.train', rest), ('data.valid', held)):
    if not slices:
      raise errors.InputError(
        f'{field} selects no slice of the {count}: name at least one.'
      )
  both = sorted(set(rest) & set(held))
  if both:
    raise errors.InputError(
      f'Slices {both} are in data.train and in data.valid: take them out of '
      'one.'
    )
  return tuple(rest), held
