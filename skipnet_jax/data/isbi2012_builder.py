"""TFDS builder of the ISBI 2012 stacks; it needs no TensorFlow.

    builder = Isbi2012Em(data_dir=..., file_format='array_record')
    builder.download_and_prepare()
    source = builder.as_data_source('train')

The configuration `labelled` (default) has the split train with image, label and
slice; `unlabelled` has the split test with image and slice, because the
challenge does not publish labels of its test slices.
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from skipnet_jax import errors
from skipnet_jax.data import isbi2012


class Isbi2012Em(tfds.core.GeneratorBasedBuilder):
  """Image and label `[512, 512, 1] uint8` (label 255 inside), slice `int64`.

  Args:
    source: folder of the stacks; by default that of `isbi2012.find`.
    shape: (z, y, x) of the stacks.
    sha256: of the decoded pixels by file name.
    **kwargs: those of TFDS, such as `data_dir`, `config` and `file_format`.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS declares it so)
    tfds.core.BuilderConfig(name='labelled', description='training slices'),
    tfds.core.BuilderConfig(name='unlabelled', description='test slices'),
  ]
  # Otherwise TFDS needs importlib_resources, which it does not install.
  code_path = pathlib.Path(__file__)

  def __init__(
    self,
    *,
    source: str | os.PathLike | None = None,
    shape: tuple[int, int, int] = isbi2012.SHAPE,
    sha256: Mapping[str, str] = isbi2012.SHA256,
    **kwargs: Any,
  ):
    self._source, self._shape, self._sha256 = source, shape, sha256
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # Not Image, which TFDS cannot encode without TensorFlow.
    pixels = tfds.features.Tensor(shape=(*self._shape[1:], 1), dtype=np.uint8)
    features = {'image': pixels, 'slice': tfds.features.Scalar(np.int64)}
    if self.builder_config.name == 'labelled':
      features['label'] = pixels
    return tfds.core.DatasetInfo(
      builder=self,
      description=isbi2012.__doc__,
      features=tfds.features.FeaturesDict(features),
      homepage=isbi2012.URL,
      disable_shuffling=True,  # Keeps the order of the slices.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # TFDS does not download the stacks.
    folder = self._source or isbi2012.find()
    if folder is None:
      raise errors.InputError(
        'The ISBI 2012 stacks were not found: run tools/fetch_isbi.py or set '
        'SKIPNET_DATA_DIR to the folder with train-volume.tif.'
      )
    split = 'train' if self.builder_config.name == 'labelled' else 'test'
    image, label = isbi2012.load(folder, split, sha256=self._sha256)
    return {split: self._generate_examples(image, label)}

  def _generate_examples(
    self, image: np.ndarray, label: np.ndarray | None
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for z, page in enumerate(image):
      example = {'image': page[..., None], 'slice': z}
      if label is not None:
        example['label'] = label[z][..., None]
      yield z, example
