"""Data sets by name."""

import pathlib
import re
import shutil

import made_volumes
import numpy as np
from PIL import Image
import pytest
import tifffile

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import border_weight
from skipnet_jax.data import isbi2012
from skipnet_jax.data import labels
from skipnet_jax.data import pipeline
from skipnet_jax.data import sources
from skipnet_jax.data import stack_reader
from skipnet_jax.data import volume


def config_of(**fields):
  config = config_lib.get_default()
  config.data.update(fields)
  return config


def test_synthetic_is_named_and_warned_of():
  data = sources.load(
    config_of(source='synthetic', slices=4, size=64, valid='3')
  )
  assert data.image.shape == data.label.shape == (4, 64, 64)
  assert data.name == 'synthetic 4x64x64'
  assert data.warning.startswith('SYNTHETIC DATA')
  assert data.label.dtype == bool


def test_a_folder_without_the_stacks_is_named(monkeypatch, tmp_path):
  def download(_):
    raise errors.InputError('no network')

  monkeypatch.setattr(isbi2012, 'download', download)
  monkeypatch.setenv('SKIPNET_CACHE_DIR', str(tmp_path))
  monkeypatch.setenv('SKIPNET_DATA_DIR', '/no/b')
  monkeypatch.setenv('HOME', '/no')
  fields = {'dir': '~/a', 'slices': 4, 'size': 64, 'valid': '3'}
  data = sources.load(config_of(source='auto', **fields))
  assert data.warning.startswith(
    'SYNTHETIC DATA: the ISBI 2012 stacks were not found in /no/a or /no/b, so'
  )
  assert data.remedy == 'no network'
  monkeypatch.delenv('SKIPNET_DATA_DIR')
  with pytest.raises(errors.InputError, match='not found in /no/a: no network'):
    sources.load(config_of(source='isbi2012', **fields))


def write_stack(folder, image, label):
  tifffile.imwrite(folder / 'image.tif', image, photometric='minisblack')
  tifffile.imwrite(folder / 'label.tif', label, photometric='minisblack')
  return {
    'source': 'stack',
    'image': str(folder / 'image.tif'),
    'label': str(folder / 'label.tif'),
  }


def test_a_stack_of_ones_own(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 2**16, (4, 40, 60)).astype(np.uint16)
  label = (rng.random(image.shape) < 0.7).astype(np.uint8) * 7
  fields = write_stack(tmp_path, image, label)
  data = sources.load(config_of(**fields, valid='0'))
  np.testing.assert_array_equal(data.image, image)
  np.testing.assert_array_equal(data.label, label == 7)
  assert isinstance(data.image, stack_reader.SlicesOnDisk)
  assert not data.warning
  monkeypatch.setenv('HOME', str(tmp_path))
  home = fields | {'image': '~/image.tif', 'label': '~/label.tif'}
  at_home = sources.load(config_of(**home, valid='0'))
  np.testing.assert_array_equal(at_home.label, data.label)
  cropped = sources.load(config_of(**fields, valid='0', size=32))
  np.testing.assert_array_equal(cropped.image, image[:, 4:36, 14:46])
  assert 'centre 32x32' in cropped.name
  assert cropped.fingerprint() != data.fingerprint()


@pytest.fixture
def volumes(tmp_path):
  """A labelled stack of cells as TIFF, and the fields of it in chunks."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 2**16, (5, 40, 60)).astype(np.uint16)
  label = np.kron(rng.integers(0, 3, (5, 5, 6)), np.ones((1, 8, 10)))
  fields = write_stack(tmp_path, image, label.astype(np.uint16))
  chunk = 2, 16, 32
  made_volumes.write_ome(tmp_path / 'image.zarr', image, chunk=chunk)
  path = made_volumes.write_ome(
    tmp_path / 'label.zarr', label.astype(np.uint16), chunk=chunk
  )
  return fields, fields | {
    'image': str(tmp_path / 'image.zarr'),
    'label': str(path),
  }


@pytest.mark.parametrize('kind', ['binary', 'inverted', 'instances'])
@pytest.mark.parametrize('size', [0, 32])
def test_a_volume_in_chunks_trains_as_the_same_pixels(volumes, kind, size):
  options = {'valid': '0', 'size': size}
  options['label_kind'] = 'instances' if kind == 'instances' else 'binary'
  options['label_inverted'] = kind == 'inverted'
  if kind != 'instances':
    for fields in volumes:
      with volume.open_stack(fields['label'], dtypes=labels.DTYPES) as stack:
        two = np.minimum(stack.read_all(), 1)
      if fields['label'].endswith('.tif'):
        volume.write_stack(fields['label'], two, overwrite=True)
      else:
        made_volumes.write_ome(
          pathlib.Path(fields['label']), two, chunk=(1, 40, 60)
        )
  whole, chunked = (
    sources.load(config_of(**fields, **options)) for fields in volumes
  )
  for stack in (chunked.image, chunked.label):
    assert isinstance(stack, stack_reader.SlicesOnDisk)
  np.testing.assert_array_equal(chunked.label, whole.label)
  assert chunked.fingerprint() == whole.fingerprint()
  assert chunked.inside_share() == whole.inside_share()
  assert chunked.constant_bce([0, 3]) == whole.constant_bce([0, 3])
  assert chunked.drawn(range(5)) == whole.drawn(range(5))
  config = config_of(**volumes[0], **options)
  config.model = models.model_config('fcn_lstm')
  config.data.crop = 16
  pipe = pipeline.make_pipeline(config, whole, 1)
  plan = {
    'index': np.array([0, 4, 2]),
    'offset': np.array([[0, 0], [16, 9], [7, 16]]),
  }
  batches = [
    pipe.read_host(pipeline.host_arrays(data), plan)
    for data in (whole, chunked)
  ]
  for name, expected in batches[0].items():
    assert batches[1][name].dtype == expected.dtype
    np.testing.assert_array_equal(batches[1][name], expected)


def test_labels_in_chunks_that_do_not_fit_are_refused(volumes):
  _, fields = volumes
  path = pathlib.Path(fields['label'])

  def refused(**options):
    with pytest.raises(errors.InputError) as error:
      sources.load(config_of(**fields, **options, valid='0'))
    assert '\n' not in str(error.value)
    return str(error.value)

  assert re.search(
    r'slice 0 of .*label\.zarr has 3 values \(0, 1, 2\)', refused()
  )
  pixels = np.zeros((5, 40, 60), np.uint8)
  made_volumes.write_ome(path, pixels)
  assert 'only one value (0) in the whole stack' in refused()
  assert 'from 0 to 0, but instances' in refused(label_kind='instances')
  for z, value in enumerate((7, 0, 9)):
    pixels[z, 3] = value
  made_volumes.write_ome(path, pixels)
  message = refused()
  assert 'slices 0 to 2, has 3 values (0, 7, 9)' in message
  assert '60 of its 7200 pixels have neither 0 nor 9' in message
  pixels[:] = 1
  made_volumes.write_ome(path, pixels)
  assert 'has no membrane' in refused(label_kind='instances')
  made_volumes.write_ome(path, pixels[:, :20])
  assert 'has shape (5, 20, 60) but its image has (5, 40, 60)' in refused()
  made_volumes.write_ome(path, pixels, axes='zqx')
  assert "has an axis 'q'" in refused()


def test_missing_chunks_are_named(volumes):
  _, fields = volumes
  shutil.rmtree(pathlib.Path(fields['image'], '0/c/1'))
  fields |= {'label_kind': 'instances', 'valid': '2', 'train': '0,1'}
  data = sources.load(config_of(**fields))
  assert data.lacking() == ''
  pipeline.host_arrays(data)
  assert data.lacking() == (
    f'{fields["image"]} lacks chunks, which count as its fill value, in slices '
    '2 (counted from 0).'
  )


def cells_apart(slices):
  """`[z, 48, 48]` bool: nine squares, with two pixels between them."""
  side = np.arange(48) % 16 < 14
  return np.repeat((side[:, None] & side)[None], slices, 0)


def test_labels_are_read_as_the_config_says(tmp_path):
  inside = cells_apart(3)
  image = np.zeros(inside.shape, np.uint8)
  numbers = np.where(inside, np.indices(inside.shape).sum(0) // 16 + 1, 0)
  fields = write_stack(tmp_path, image, numbers)
  with pytest.raises(errors.InputError, match='label_kind=instances'):
    sources.load(config_of(**fields, valid='0'))
  data = sources.load(config_of(**fields, valid='0', label_kind='instances'))
  assert 0 < np.mean(inside & ~data.label) < 0.2
  for dtype in ('int8', 'int16', 'int32', 'uint32', 'int64', 'float64'):
    fields = write_stack(tmp_path, image, (~inside).astype(dtype))
    turned = config_of(**fields, valid='0', label_inverted=True)
    data = sources.load(turned)
    np.testing.assert_array_equal(data.label, inside)
    assert data.inside_share() == pytest.approx(inside.mean())
    assert not data.warning
  warning = sources.load(config_of(**fields, valid='0')).warning
  assert 'label.tif looks inverted' in warning
  assert 'data.label_inverted=True' in warning


def test_slices_without_a_membrane_are_named_and_never_alone(tmp_path):
  inside = cells_apart(6)
  inside[:3] = True
  image = np.zeros(inside.shape, np.uint8)
  fields = write_stack(tmp_path, image, inside.astype(np.uint8))
  data = sources.load(config_of(**fields, valid='2,5'))
  assert 'training slices 0-1 and validation slices 2' in data.warning
  assert data.drawn(data.valid) == [5]
  for valid, words in (('0-2', 'data.valid .* 0-2'), ('3-5', 'data.train .*')):
    with pytest.raises(errors.InputError, match=words):
      sources.load(config_of(**fields, valid=valid))


def test_a_stack_is_known_again_where_it_moved_but_not_where_it_changed(
  tmp_path,
):
  label = cells_apart(4)
  image = np.arange(label.size, dtype=np.uint16).reshape(label.shape)
  data = sources.load(
    config_of(**write_stack(tmp_path, image, label.astype(np.uint8)), valid='3')
  )
  there = tmp_path / 'there'
  there.mkdir()

  def changes(image, label, **fields):
    fields |= write_stack(there, image, label.astype(np.int16))
    return sources.load(config_of(**fields, valid='3')).change_since(kept)

  kept = data.identity()
  assert changes(image, label) == ''
  assert changes(image, 255 * label.astype(int)) == ''
  assert changes(image, ~label, label_inverted=True) == ''
  label[1:] = ~label[1:]
  assert changes(image, label) == 'labels'
  image[3, 40, 40] += 1
  assert changes(image, label) == 'pixels and labels'


def test_a_channel_of_ones_own_stack(tmp_path):
  image = np.random.default_rng(0).integers(0, 255, (2, 4, 40, 60), np.uint8)
  fields = write_stack(tmp_path, image[0], image[0] // 128)
  path = fields['image']
  options = {'photometric': 'minisblack', 'metadata': {'axes': 'CZYX'}}
  tifffile.imwrite(path, image, **options)
  with pytest.raises(errors.InputError, match=r'data\.channel=1 to'):
    sources.load(config_of(**fields, valid='0'))
  data = sources.load(config_of(**fields, valid='0', channel=2))
  np.testing.assert_array_equal(data.image, image[1])
  tifffile.imwrite(fields['label'], image // 128, **options)
  with pytest.raises(errors.InputError, match='2 channels; save the one'):
    sources.load(config_of(**fields, valid='0', channel=2))


def test_the_pixel_size_of_a_stack(tmp_path):
  label = cells_apart(4)
  fields = write_stack(tmp_path, label.astype(np.uint8), label.astype(np.uint8))

  def found(x, y, **more):
    metadata = {'axes': 'ZYX', 'PhysicalSizeX': x, 'PhysicalSizeY': y}
    tifffile.imwrite(
      fields['image'],
      label.astype(np.uint8),
      ome=True,
      photometric='minisblack',
      metadata=metadata,
    )
    data = sources.load(config_of(**fields, valid='3', **more))
    return data.identity()['pixel_size']

  assert found(0.0046, 0.0046) == pytest.approx(4.6)  # Micrometres.
  assert found(0.0046, 0.0092) == 0
  assert found(0.0046, 0.0046, pixel_size=8.0) == 8


def test_folders_of_other_slices_are_refused(tmp_path):
  fields = {'source': 'stack', 'valid': '0'}
  for name, first in (('image', 0), ('label', 1)):
    fields[name] = str(tmp_path / name)
    (tmp_path / name).mkdir()
    for z in range(3):
      page = np.eye(8, dtype=np.uint8) * 9
      Image.fromarray(page).save(tmp_path / name / f'{z + first}.png')
  with pytest.raises(errors.InputError, match=r'slice 1 is 0\.png in .*1\.png'):
    sources.load(config_of(**fields))


def test_weights_of_borders_are_those_of_the_config(tmp_path):
  label = np.full((2, 32, 40), 255, np.uint8)
  label[:, :, 18:22] = 0
  fields = write_stack(tmp_path, label, label) | {'valid': '0'}
  data = sources.load(config_of(**fields, border_weight=4.0, border_sigma=2.0))
  inside = (label > 0).mean()
  expected = border_weight.border_weight(label > 0, 4.0, 2.0, inside)
  np.testing.assert_array_equal(data.weight, expected)
  # Slices that nobody has drawn do not count.
  more = np.concatenate([label, np.zeros((9, 32, 40), np.uint8)])
  fields = write_stack(tmp_path, more, more) | {'valid': '0', 'train': '1-10'}
  again = sources.load(config_of(**fields, border_weight=4.0, border_sigma=2.0))
  np.testing.assert_array_equal(again.weight[:2], expected)


def test_a_range_needs_integers(tmp_path):
  label = np.eye(32, dtype=np.uint8)[None].repeat(2, 0)
  fields = {'valid': '0', 'normalise': 'range'}
  grey = write_stack(tmp_path, label, label)
  assert sources.load(config_of(**grey, **fields)).normalise == 'range'
  floats = write_stack(tmp_path, label.astype(np.float32), label)
  with pytest.raises(
    errors.InputError, match=r'dtype float32.*normalise=slice'
  ):
    sources.load(config_of(**floats, **fields))


def test_a_centre_crop_larger_than_the_slices_is_refused(tmp_path):
  stack = np.zeros((2, 40, 60), np.uint8)
  label = stack.copy()
  label[0] = 255
  fields = write_stack(tmp_path, stack, label)
  with pytest.raises(errors.InputError, match=r'data.size is 64.*40x60'):
    sources.load(config_of(**fields, valid='0', size=64))


def test_auto_falls_back_with_the_reason(monkeypatch):
  monkeypatch.setattr(isbi2012, 'find', lambda _: None)

  def refuse(*_, **__):
    raise isbi2012.DownloadError('no network here')

  monkeypatch.setattr(isbi2012, 'download', refuse)
  fields = {'slices': 4, 'size': 64, 'valid': '0'}
  data = sources.load(config_of(source='auto', **fields))
  assert data.name.startswith('synthetic')
  assert data.remedy == 'no network here'
  assert data.warning.startswith('SYNTHETIC DATA: the ISBI')
  with pytest.raises(errors.InputError, match='no network here'):
    sources.load(config_of(source='isbi2012', **fields))


@pytest.mark.real_data
def test_the_challenge_is_found():
  data = sources.load(config_of(source='auto'))
  assert data.name == 'isbi2012'
  assert data.image.shape == (30, 512, 512)
  assert data.label.mean() == pytest.approx(0.78, abs=0.01)
  assert not data.warning


def test_a_pixel_size_that_cannot_be_used_is_warned_of(tmp_path):
  label = np.full((2, 32, 40), 255, np.uint8)
  label[:, :, 18:22] = 0
  fields = write_stack(tmp_path, label, label) | {'valid': '0'}
  assert not sources.load(config_of(**fields)).warning
  for resolution, unit, words in (
    ((0.25, 0.125), 'nm', '8 x 4 nm, which is not square'),
    ((1.0, 1.0), 'parsec', "'parsec' is not known"),
  ):
    metadata = {'resolution': resolution, 'resolutionunit': 1, 'unit': unit}
    volume.write_stack(fields['image'], label, metadata, overwrite=True)
    assert words in sources.load(config_of(**fields)).warning
    given = sources.load(config_of(**fields, pixel_size=4.0))
    assert (given.warning, given.pixel_size) == ('', 4.0)


def test_image_and_labels_of_other_pixels_are_refused(tmp_path):
  label = np.full((2, 32, 40), 255, np.uint8)
  label[:, :, 18:22] = 0
  fields = write_stack(tmp_path, label, label) | {'valid': '0'}
  for name, per_nm in (('image', 0.25), ('label', 0.125)):
    metadata = {'resolution': (per_nm,) * 2, 'resolutionunit': 1, 'unit': 'nm'}
    volume.write_stack(fields[name], label, metadata, overwrite=True)
  with pytest.raises(errors.InputError, match=r'4 x 4 nm, but .* of 8 x 8 nm'):
    sources.load(config_of(**fields))
