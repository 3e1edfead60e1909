"""Reads labelled TFDS data sets; imports tensorflow_datasets only when called.

It needs no TensorFlow.
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

  Every example needs an `image` with one channel and a `label` or
  `segmentation_mask` of the same size. If the data set is not in `data_dir`, it
  is prepared there as array_record. This package registers `isbi2012_em`.

  Raises:
    InputError: TFDS or the data set is missing, cannot be prepared or read
      without TensorFlow, or has other examples.
  """
  try:
    import tensorflow_datasets as tfds

    # The import registers the builder.
    from skipnet_jax.data import isbi2012_builder as _  # noqa: F401
  except ImportError as error:
    raise errors.InputError(
      f'tfds:{name} needs TensorFlow Datasets ({error}): '
      'pip install tensorflow-datasets array_record'
    ) from error
  try:
    builder = tfds.builder(name, data_dir=data_dir, **builder_kwargs)
    if not builder.is_prepared():
      builder.download_and_prepare(file_format='array_record')
    source = builder.as_data_source(split)
  except errors.InputError:
    raise
  except Exception as error:  # Builders raise many kinds of exceptions.
    reason = ' '.join(str(error).split()).partition(' Available datasets')[0]
    raise errors.InputError(
      f'tfds:{name}, split {split}, cannot be read from '
      f'{data_dir or "the default folder"} ({reason[:200]}): prepare it there '
      'with file_format="array_record".'
    ) from error
  features = builder.info.features
  keys = [key for key in _LABEL_KEYS if key in features]
  if 'image' not in features or not keys:
    raise errors.InputError(
      f'tfds:{name} has the features {sorted(features)}, but needs image and '
      f'{" or ".join(_LABEL_KEYS)}: choose another data set.'
    )
  images: list[np.ndarray] = []
  labels: list[np.ndarray] = []
  for example in source:
    stored = [np.asarray(example[key]) for key in ('image', keys[0])]
    # `[y, x, 1]` or `[y, x]`.
    image, label = (a[..., 0] if a.shape[2:] == (1,) else a for a in stored)
    images.append(image)
    labels.append(label)
    if not (image.ndim == 2 and image.shape == label.shape == images[0].shape):
      raise errors.InputError(
        f'tfds:{name} has image {stored[0].shape} and {keys[0]} '
        f'{stored[1].shape} in example {len(images) - 1}, but all examples '
        'must have equal sides and one channel: choose another data set.'
      )
  if not images:
    raise errors.InputError(
      f'tfds:{name} has no example in the split {split}: choose another.'
    )
  return np.stack(images), np.stack(labels)
