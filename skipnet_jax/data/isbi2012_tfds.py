"""Reads TFDS data sets that have labels.

It imports tensorflow_datasets, and the builder beside it, only when a function
here is called. Nothing here needs TensorFlow.
"""

import os
from typing import Any

import numpy as np

from skipnet_jax import errors

_LABEL_KEYS = ('label', 'segmentation_mask')


def load_tfds(
  name: str,
  data_dir: str | os.PathLike | None = None,
  split: str = 'train',
  **builder_kwargs: Any,
) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels, both `[z, y, x]`, of a TFDS data set.

  Every example needs an `image` of one channel and a `label` or
  `segmentation_mask` of the same sides. A set that is not prepared in
  `data_dir` is prepared there as array_record. `isbi2012_em` is this
  package's own.

  Raises:
    InputError: TFDS or the set is missing, cannot be prepared or read without
      TensorFlow, or has examples of another kind.
  """
  try:
    import tensorflow_datasets as tfds

    # Defining the builder registers its name.
    from skipnet_jax.data import isbi2012_builder as _  # noqa: F401
  except ImportError as error:
    raise errors.InputError(
      f'tfds:{name} needs TensorFlow Datasets ({error}); '
      'pip install tensorflow-datasets array_record'
    ) from error
  try:
    builder = tfds.builder(name, data_dir=data_dir, **builder_kwargs)
    if not builder.is_prepared():
      builder.download_and_prepare(file_format='array_record')
    source = builder.as_data_source(split)
  except errors.InputError:
    raise
  except Exception as error:  # each builder fails in its own ways
    reason = ' '.join(str(error).split()).partition(' Available datasets')[0]
    raise errors.InputError(
      f'tfds:{name}, split {split}, cannot be read from '
      f'{data_dir or "the default folder"} ({reason[:200]}); prepare it there '
      'with file_format="array_record"'
    ) from error
  features = builder.info.features
  keys = [key for key in _LABEL_KEYS if key in features]
  if 'image' not in features or not keys:
    raise errors.InputError(
      f'tfds:{name} has the features {sorted(features)}; needed are image and '
      f'{" or ".join(_LABEL_KEYS)}'
    )
  images: list[np.ndarray] = []
  labels: list[np.ndarray] = []
  for example in source:
    image, label = _plane(example['image']), _plane(example[keys[0]])
    if (
      image is None
      or label is None
      or not (image.shape == label.shape == (images or [image])[0].shape)
    ):
      raise errors.InputError(
        f'tfds:{name} has image {np.shape(example["image"])} and {keys[0]} '
        f'{np.shape(example[keys[0]])} in example {len(images)}; needed are '
        'equal sides throughout and one channel'
      )
    images.append(image)
    labels.append(label)
  if not images:
    raise errors.InputError(f'tfds:{name} has no example in split {split}')
  return np.stack(images), np.stack(labels)


def _plane(pixels: Any) -> np.ndarray | None:
  """`[y, x]` of `[y, x]` or `[y, x, 1]`, else None."""
  pixels = np.asarray(pixels)
  if pixels.ndim == 3 and pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  return pixels if pixels.ndim == 2 else None
