"""A file is read as what it says it is, or refused in one sentence."""

import time

from conftest import tool
from made_stacks import make_pixels
from made_stacks import refuse
from made_stacks import write_tiff
import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import volume

inputs = tool('hostile_inputs')
meanings = tool('hostile_meanings')


def test_ten_slices_are_read_in_order_and_all_else_is_refused(tmp_path):
  faults = []
  for name, (path, wanted) in meanings.meanings(tmp_path).items():
    begin, sentence = time.perf_counter(), ''
    try:
      with volume.open_stack(path) as stack:
        found = np.array_equal(stack.read_all(), inputs.pixels())
    except errors.InputError as e:
      found, sentence = False, str(e)
    seconds = time.perf_counter() - begin
    one = '\n' not in sentence and len(sentence) < 500
    if found != (wanted == inputs.SOUND) or seconds > 1 or not one:
      faults.append((name, sentence, seconds))
  assert not faults


def test_pages_written_one_by_one_are_one_stack(tmp_path):
  path = tmp_path / 'a.tif'
  with tifffile.TiffWriter(path) as writer:
    for page in make_pixels():
      writer.write(page, photometric='minisblack')
  with volume.open_stack(path) as stack:
    np.testing.assert_array_equal(stack.read_all(), make_pixels())
  tifffile.imwrite(path, make_pixels()[0, :9], append=True)
  refuse(path, '6 images')


def choose(series=0, channel=0):
  return {'choice': volume.Choice(series, channel, '--')}


def test_one_of_several_images_is_chosen(tmp_path):
  path, _ = meanings.meanings(tmp_path)['two images of OME']
  refuse(path, '2 images (1 is', 'Z 7 x Y 64', 'file of its own')
  refuse(path, 'choose one by --series=1 to --series=2', **choose())
  refuse(path, '--series is 3: choose', **choose(3))
  for series, count in ((1, 10), (2, 7)):
    with volume.open_stack(path, **choose(series)) as stack:
      np.testing.assert_array_equal(stack.read_all(), inputs.pixels()[:count])


@pytest.mark.parametrize(
  ('axes', 'options'),
  [
    ('CZ', {}),
    ('ZC', {}),
    ('CZ', {'ome': True}),
    ('ZC', {'ome': True}),
    ('ZC', {'imagej': True}),
    ('ZC', {'imagej': True, 'truncate': True}),
    ('ZC', {'compression': 'zlib'}),
  ],
)
def test_one_of_several_channels_is_chosen(tmp_path, axes, options):
  array = make_pixels('uint16', (4, 3, 8, 9))
  stored = array if axes == 'ZC' else np.ascontiguousarray(array.swapaxes(0, 1))
  metadata = {'axes': f'{axes}YX'}
  path = write_tiff(tmp_path / 'a.tif', stored, metadata=metadata, **options)
  refuse(path, '3 channels', 'choose one by --channel=1 to', **choose())
  refuse(path, '--channel is 4: choose', **choose(channel=4))
  for channel in (1, 2, 3):
    with volume.open_stack(path, **choose(channel=channel)) as stack:
      assert stack.shape == (4, 8, 9)
      assert stack.metadata['axes'] == 'ZYX'
      np.testing.assert_array_equal(stack.read_all(), array[:, channel - 1])


def test_a_channel_of_a_folder_of_slices(tmp_path):
  array = make_pixels(shape=(3, 2, 8, 9))
  for z, planes in enumerate(array):
    path = tmp_path / f'{z}.tif'
    write_tiff(path, planes, metadata={'axes': 'CYX'})
  refuse(tmp_path / '0.tif', '2 channels')
  with volume.open_stack(tmp_path, **choose(channel=2)) as stack:
    np.testing.assert_array_equal(stack.read_all(), array[:, 1])


@pytest.mark.parametrize('kind', ['channel', 'series'])
def test_a_choice_where_there_is_none(tmp_path, kind):
  path = write_tiff(tmp_path / 'a.tif', make_pixels())
  with volume.open_stack(path, **choose(**{kind: 1})) as stack:
    np.testing.assert_array_equal(stack.read_all(), make_pixels())
  refuse(
    path, f'--{kind} is 2: choose one by --{kind}=1', **choose(**{kind: 2})
  )


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ({}, {}),
    ({'PhysicalSizeX': 4, 'PhysicalSizeXUnit': 'nm'}, {}),
    (
      {
        **{'PhysicalSizeX': 4, 'PhysicalSizeXUnit': 'nm'},
        **{'PhysicalSizeY': 0.005},
        **{'PhysicalSizeZ': 500, 'PhysicalSizeZUnit': 'Å'},
      },
      {'resolution': (0.25, 0.2), 'unit': 'nm', 'spacing': 50},
    ),
    (
      {'PhysicalSizeX': 0.5, 'PhysicalSizeY': 0.5},
      {'resolution': (2, 2), 'unit': 'µm'},
    ),
    (
      {'PhysicalSizeX': 2, 'PhysicalSizeY': 2, 'PhysicalSizeXUnit': 'parsec'},
      {},
    ),
  ],
)
def test_the_pixel_size_of_ome(tmp_path, sizes, expected):
  metadata = {'axes': 'ZYX'} | sizes
  path = write_tiff(
    tmp_path / 'a.tif', make_pixels(), ome=True, metadata=metadata
  )
  with volume.open_stack(path) as stack:
    found = dict(stack.metadata)
  if expected:
    assert found.pop('resolution') == pytest.approx(expected['resolution'])
    assert found.pop('unit') == expected['unit']
    assert found.pop('resolutionunit') == 1
    assert found.pop('spacing', 0) == pytest.approx(expected.get('spacing', 0))
  assert not {'unit', 'spacing'} & found.keys()


def test_a_header_is_read_in_a_second(tmp_path):
  many = ''.join(
    f'<TiffData FirstZ="{z}" IFD="{z}"/>' + '<Plane A="1" B="2"/>' * 3000
    for z in range(10)
  )
  for inner in ('<TiffData/>' * 100_000, many * 6, 'a' * 10**7):
    path = tmp_path / 'a.tif'
    text = meanings.ome_xml(inner).encode()
    write_tiff(path, inputs.pixels(), metadata=None, description=text)
    begin = time.process_time()
    refuse(path)
    assert time.process_time() - begin < 1
