"""Which stack a config means: finds, reads and checks it."""

import math
from typing import Any

import ml_collections
import numpy as np

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.data import border_weight
from skipnet_jax.data import data_set
from skipnet_jax.data import fingerprint as fingerprint_lib
from skipnet_jax.data import isbi2012
from skipnet_jax.data import label_warnings
from skipnet_jax.data import labels
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import pixel_size as pixel_size_lib
from skipnet_jax.data import slice_split
from skipnet_jax.data import synthetic
from skipnet_jax.data import volume


def load(config: ml_collections.ConfigDict) -> data_set.DataSet:
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
  train, valid = slice_split.split(
    data.train, data.valid, len(image), config.seed
  )
  label_name = data.label if data.source == 'stack' else name
  warnings = [warning, *_check_label(label, train, valid, label_name, meaning)]
  weight = None
  if data.border_weight:
    drawn = [z for z in train if labels.is_drawn(label[z])]
    weight = border_weight.border_weight(
      np.asarray(label),
      data.border_weight,
      data.border_sigma,
      float(np.mean([label[z].mean() for z in drawn])),
    )
  return data_set.DataSet(
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
    data.pixel_size or pixel_size or data_set.known_pixel_size(name),
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
  undrawn = label_warnings.undrawn_sentence(label, groups, name)
  if undrawn:
    undrawn += (
      '; where they are not drawn, leave them out of data.train and data.valid'
    )
  inverted = label_warnings.inverted_sentence(
    label, [*train, *valid], name, meaning
  )
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
      why = pixel_size_lib.why_unknown(images.metadata)
    # Pixels that are not square have no size that a run could keep.
    side = y if math.isclose(y, x, rel_tol=0.02) else 0.0
    if y and not side:
      why = f'its pixels are {y:g} x {x:g} nm, which is not square'
    warnings = [f'SLICES: {images.note}.'] if images.note else []
    if why and not data.pixel_size:
      warnings.append(
        f'PIXEL SIZE: {data.image} has none that can be used: {why}; '
        'predictions are not resampled unless data.pixel_size is set.'
      )
    return f'stack {data.image}', image, label, ' '.join(warnings), '', side
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
