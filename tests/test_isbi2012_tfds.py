import hashlib
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import isbi2012
from skipnet_jax.data import isbi2012_tfds

SHAPE = (4, 16, 24)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """Folder of tiny stacks, the stacks, and what the builder is told of them."""
  rng = np.random.default_rng(0)
  folder = tmp_path_factory.mktemp('stacks')
  stacks = {
    'train-volume.tif': rng.integers(0, 256, SHAPE).astype('u1'),
    'train-labels.tif': rng.integers(0, 2, SHAPE).astype('u1') * 255,
    'test-volume.tif': rng.integers(0, 256, SHAPE).astype('u1'),
  }
  for name, array in stacks.items():
    tifffile.imwrite(folder / name, array, photometric='minisblack')
  sha256 = {
    name: hashlib.sha256(array.tobytes()).hexdigest()
    for name, array in stacks.items()
  }
  return stacks, {'source': folder, 'shape': SHAPE, 'sha256': sha256}


def test_reads_back_equal_in_the_order_of_the_stack(tiny, tmp_path):
  stacks, options = tiny
  for _ in range(2):  # prepared, then read from where it was prepared
    image, label = isbi2012_tfds.load_tfds('isbi2012_em', tmp_path, **options)
    np.testing.assert_array_equal(image, stacks['train-volume.tif'])
    np.testing.assert_array_equal(label, stacks['train-labels.tif'])
  builder = tfds.builder('isbi2012_em', data_dir=tmp_path, **options)
  assert builder.info.file_format.value == 'array_record'
  source = builder.as_data_source('train')
  assert len(source) == 4
  for z, example in enumerate(source):
    assert set(example) == {'image', 'label', 'slice'}
    assert example['slice'] == z
    assert example['image'].shape == example['label'].shape == (16, 24, 1)
    assert example['image'].dtype == example['label'].dtype == np.uint8


def test_test_slices_have_no_label_rather_than_an_empty_one(tiny, tmp_path):
  stacks, options = tiny
  name = 'isbi2012_em/unlabelled'
  with pytest.raises(errors.InputError, match=r"'image', 'slice'.*label or"):
    isbi2012_tfds.load_tfds(name, tmp_path, 'test', **options)
  builder = tfds.builder(name, data_dir=tmp_path, **options)
  pages = [e['image'][..., 0] for e in builder.as_data_source('test')]
  np.testing.assert_array_equal(pages, stacks['test-volume.tif'])
  with pytest.raises(errors.InputError, match="Unknown split 'train'"):
    isbi2012_tfds.load_tfds(name, tmp_path, 'train', **options)


def test_other_pixels_are_refused(tiny, tmp_path):
  _, options = tiny
  options = {k: options[k] for k in ('source', 'shape')}
  with pytest.raises(errors.InputError, match='200da3d452d7'):
    isbi2012_tfds.load_tfds('isbi2012_em', tmp_path, **options)


def test_missing_stacks_are_named(tmp_path, monkeypatch):
  monkeypatch.delenv('SKIPNET_DATA_DIR', raising=False)
  monkeypatch.setenv('SKIPNET_CACHE_DIR', str(tmp_path))
  with pytest.raises(errors.InputError, match=r'fetch_isbi\.py or set SKIPNET'):
    isbi2012_tfds.load_tfds('isbi2012_em', tmp_path)


class _Pairs(tfds.core.GeneratorBasedBuilder):
  """Two examples of image and mask, of the given shapes."""

  VERSION = tfds.core.Version('1.0.0')
  KEY, IMAGE, MASK = 'segmentation_mask', (8, 9), (8, 9)

  def _info(self):
    features = {
      'image': tfds.features.Tensor(shape=self.IMAGE, dtype=np.float32),
      self.KEY: tfds.features.Tensor(shape=self.MASK, dtype=np.uint8),
    }
    features = tfds.features.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for z in range(2):
      image = np.full(self.IMAGE, z, np.float32)
      yield z, {'image': image, self.KEY: np.full(self.MASK, z, np.uint8)}


class PairsPlain(_Pairs):
  """`[y, x]` without a channel."""


class PairsChannel(_Pairs):
  """`[y, x, 1]` for the image alone."""

  IMAGE = (8, 9, 1)


class PairsColour(_Pairs):
  """A colour image."""

  IMAGE = (8, 9, 3)


class PairsUnequal(_Pairs):
  """A mask of other sides."""

  MASK = (8, 8)


class PairsKey(_Pairs):
  """A mask under another name."""

  KEY = 'outline'


def test_any_data_set_with_masks(tmp_path):
  for name in ('pairs_plain', 'pairs_channel'):
    image, label = isbi2012_tfds.load_tfds(name, tmp_path)
    assert image.shape == label.shape == (2, 8, 9)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, label)
  for name, words in [
    ('pairs_colour', r'\(8, 9, 3\).*one channel'),
    ('pairs_unequal', r'\(8, 9\) and segmentation_mask \(8, 8\).*equal sides'),
    ('pairs_key', r"\['image', 'outline'\].*segmentation_mask"),
    ('pairs_none', 'tfds:pairs_none.* not found'),
    ('../x', r'tfds:\.\./x'),
  ]:
    with pytest.raises(errors.InputError, match=words) as caught:
      isbi2012_tfds.load_tfds(name, tmp_path)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_sets_in_another_format_are_refused(tmp_path):
  isbi2012_tfds.load_tfds('pairs_plain', tmp_path)
  info = tmp_path / 'pairs_plain' / '1.0.0' / 'dataset_info.json'
  text = info.read_text()
  assert '"array_record"' in text
  info.write_text(text.replace('"array_record"', '"tfrecord"'))
  with pytest.raises(errors.InputError, match=r'TFRECORD.*prepare it there'):
    isbi2012_tfds.load_tfds('pairs_plain', tmp_path)


def _fresh(code: str, **environment: str) -> str:
  root = str(pathlib.Path(__file__).parents[1])
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': root} | environment,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_tensorflow_is_never_imported_and_tfds_only_when_asked(tiny, tmp_path):
  _, options = tiny
  options = options | {'source': str(options['source'])}
  code = f"""
    import sys
    import skipnet_jax.data
    from skipnet_jax.data import isbi2012_tfds, isbi2012, volume
    for name in ('tensorflow_datasets', 'tensorflow', 'jax'):
      assert name not in sys.modules, name
    options = {options!r}
    image, label = isbi2012_tfds.load_tfds(
        'isbi2012_em', {str(tmp_path)!r}, **options)
    assert 'tensorflow_datasets' in sys.modules
    assert 'tensorflow' not in sys.modules
    print(image.shape)
  """
  assert _fresh(code).splitlines()[-1] == '(4, 16, 24)'


def test_without_tfds_the_remedy_is_named():
  code = """
    import sys
    sys.modules['tensorflow_datasets'] = None
    from skipnet_jax import errors
    from skipnet_jax.data import isbi2012_tfds
    try:
      isbi2012_tfds.load_tfds('isbi2012_em')
    except errors.InputError as error:
      print(error)
  """
  assert 'pip install tensorflow-datasets' in _fresh(code)


@pytest.mark.real_data
def test_the_real_stacks(tmp_path):
  image, label = isbi2012_tfds.load_tfds('isbi2012_em', tmp_path)
  folder = isbi2012.find()
  np.testing.assert_array_equal(
    image, tifffile.imread(folder / 'train-volume.tif')
  )
  np.testing.assert_array_equal(
    label, tifffile.imread(folder / 'train-labels.tif')
  )
  builder = tfds.builder('isbi2012_em/unlabelled', data_dir=tmp_path)
  builder.download_and_prepare(file_format='array_record')
  pages = [e['image'][..., 0] for e in builder.as_data_source('test')]
  np.testing.assert_array_equal(
    pages, tifffile.imread(folder / 'test-volume.tif')
  )
