"""Volumes in chunks as stacks, and how one that cannot be used is refused."""

import functools
import http.server
import json
import threading

from made_stacks import refuse
from made_volumes import make_pixels
from made_volumes import write_array
from made_volumes import write_group
from made_volumes import write_ome
import numpy as np
import pytest
import tensorstore as ts

from skipnet_jax.data import chunk_store
from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import pixel_size
from skipnet_jax.data import volume


def read(path, **choice):
  choice = volume.Choice(**{'prefix': '--', 'time': 0} | choice)
  with volume.open_stack(path, choice=choice) as stack:
    return stack.read_all(), stack.metadata


@pytest.mark.parametrize('version', ['0.4', '0.5'])
def test_level_channel_and_time_are_chosen(tmp_path, version):
  pixels = make_pixels(2, 3, 4, 10, 12)
  path = write_ome(
    tmp_path / 'a.zarr',
    *(pixels, pixels[..., ::2, ::2]),
    axes='tczyx',
    version=version,
    scale=(0.5, 1, 40, 4, 5),
    unit='nanometer',
    chunk=(1, 1, 2, 5, 5),
  )
  found, metadata = read(path, channel=2, time=2)
  np.testing.assert_array_equal(found, pixels[1, 1])
  assert metadata == {
    'axes': 'ZYX',
    'resolution': (1 / 5, 1 / 4),
    'resolutionunit': 1,
    'unit': 'nm',
    'spacing': 40.0,
  }
  assert pixel_size.of_metadata(metadata) == pytest.approx((4, 5))
  found, metadata = read(path, channel=3, time=1, level=1)
  np.testing.assert_array_equal(found, pixels[0, 2, :, ::2, ::2])
  assert pixel_size.of_metadata(metadata) == pytest.approx((8, 10))
  ask = functools.partial(volume.Choice, prefix='--', time=0)
  refuse(path, '3 channels', '--channel=1', choice=ask(time=1))
  refuse(path, '2 time points', '--time=1', choice=ask(channel=1))
  refuse(path, '2 time points', 'file of its own', choice=volume.Choice(0, 1))
  refuse(path, '--time is 3', choice=ask(time=3, channel=1))
  refuse(path, '--level is 2', '0 to 1', choice=ask(level=2))
  refuse(path, '--series is 2', choice=ask(series=2))


def test_boxes_and_slices_are_read_alone(tmp_path):
  pixels = make_pixels(7, 20, 30, dtype='uint16')
  path = write_ome(tmp_path / 'a.zarr', pixels, chunk=(3, 8, 16))
  with volume.open_stack(path) as stack:
    for z in (5, 0, 6, 2):
      np.testing.assert_array_equal(stack.read(z), pixels[z])
    box = range(2, 5), range(3, 17), range(10, 30)
    expected = pixels[2:5, 3:17, 10:30]
    np.testing.assert_array_equal(stack.read_part(*box), expected)
    assert (stack.dtype, stack.filled) == (np.uint16, set())
  volume.write_stack(tmp_path / 'a.tif', pixels)
  with volume.open_stack(tmp_path / 'a.tif') as stack:
    np.testing.assert_array_equal(stack.read_part(*box), expected)


def test_times_are_slices_only_without_z(tmp_path):
  pixels = make_pixels(4, 1, 6, 7)
  path = write_ome(tmp_path / 'a.zarr', pixels, axes='tzyx')
  found, metadata = read(path)
  np.testing.assert_array_equal(found, pixels[:, 0])
  assert metadata['axes'] == 'TYX'
  found, metadata = read(path, time=3)
  np.testing.assert_array_equal(found, pixels[2])
  assert metadata['axes'] == 'ZYX'
  flat = write_ome(tmp_path / 'b.zarr', pixels[0, 0], axes='yx')
  np.testing.assert_array_equal(read(flat)[0], pixels[0])


def test_transformations_of_all_levels_and_other_units(tmp_path):
  path = write_ome(
    tmp_path / 'a.zarr', make_pixels(2, 8, 8), scale=(40, 4, 4), unit='nm'
  )
  group = json.loads((path / 'zarr.json').read_text())
  (image,) = group['attributes']['ome']['multiscales']
  image['axes'][0]['unit'] = 'micrometer'
  image['coordinateTransformations'] = [
    {'type': 'scale', 'scale': [0.001, 2, 2]},
    {'type': 'translation', 'translation': [0.1, 0, 8]},
  ]
  write_group(path, group['attributes'])
  _, metadata = read(path)
  assert metadata['spacing'] == pytest.approx(40)
  assert metadata['resolution'] == (1 / 8, 1 / 8)
  assert metadata['origin'] == pytest.approx((100, 0, 8))
  image['axes'][0]['unit'] = 'second'
  write_group(path, group['attributes'])
  assert 'spacing' not in read(path)[1]


def test_an_origin_counts_where_it_is_stated(tmp_path):
  path = write_ome(tmp_path / 'a.zarr', make_pixels(2, 8, 8), scale=(40, 4, 4))
  assert 'origin' not in read(path)[1]
  group = json.loads((path / 'zarr.json').read_text())
  (image,) = group['attributes']['ome']['multiscales']
  steps = image['datasets'][0]['coordinateTransformations']
  steps.append({'type': 'translation', 'translation': [0, 0, 0]})
  write_group(path, group['attributes'])
  metadata = read(path)[1]
  assert metadata['origin'] == (0, 0, 0)
  settings = {'shape': (2, 8, 8), 'axes': 'ZYX'}
  ome_zarr_metadata.begin(tmp_path / 'b.zarr', settings, metadata, '0.5')
  group = json.loads((tmp_path / 'b.zarr/zarr.json').read_text())
  (image,) = group['attributes']['ome']['multiscales']
  (_, moved) = image['datasets'][0]['coordinateTransformations']
  assert moved == {'type': 'translation', 'translation': [0, 0, 0]}


def test_levels_go_from_fine_to_coarse(tmp_path):
  pixels = make_pixels(2, 8, 8)
  path = write_ome(tmp_path / 'a.zarr', pixels, pixels[:, ::2, ::2])
  group = json.loads((path / 'zarr.json').read_text())
  (image,) = group['attributes']['ome']['multiscales']
  image['datasets'].reverse()
  write_group(path, group['attributes'])
  refuse(path, 'levels not from fine to coarse')


def test_images_that_bio_formats_numbers(tmp_path):
  pixels = make_pixels(2, 1, 5, 8, 9)
  for series, version in enumerate(('0.4', '0.4')):
    write_ome(
      *(tmp_path / 'a.zarr' / str(series), pixels[series]),
      axes='czyx',
      version=version,
    )
  write_group(tmp_path / 'a.zarr', {'bioformats2raw.layout': 3}, 'zarr')
  found, _ = read(tmp_path / 'a.zarr', series=2)
  np.testing.assert_array_equal(found, pixels[1, 0])
  refuse(tmp_path / 'a.zarr', '2 images', 'of its own')


def write_n5(path, pixels, **attributes):
  z, y, x = pixels.shape
  store = ts.open(
    {
      'driver': 'n5',
      'kvstore': {'driver': 'file', 'path': f'{path}/'},
      'metadata': {
        'dimensions': [x, y, z],
        'blockSize': [5, 5, 2],
        'dataType': pixels.dtype.name,
        'compression': {'type': 'gzip'},
        **attributes,
      },
    },
    create=True,
  ).result()
  store[...] = pixels.T


def test_n5(tmp_path):
  pixels = make_pixels(5, 8, 9)
  sizes = {'units': ['nm'] * 3, 'resolution': [4, 5, 40]}
  write_n5(tmp_path / 'a/s0', pixels, axes=['x', 'y', 'z'], **sizes)
  write_n5(tmp_path / 'a/s1', pixels[:, ::2, ::2])
  (tmp_path / 'a/attributes.json').write_text('{"n5": "2.0.0"}')
  found, metadata = read(tmp_path / 'a')
  np.testing.assert_array_equal(found, pixels)
  assert pixel_size.of_metadata(metadata) == pytest.approx((5, 4))
  assert metadata['spacing'] == 40
  np.testing.assert_array_equal(
    read(tmp_path / 'a', level=1)[0], pixels[:, ::2, ::2]
  )
  np.testing.assert_array_equal(read(tmp_path / 'a/s0')[0], pixels)
  refuse(tmp_path / 'a', '--level is 2', choice=volume.Choice(level=2))


def test_pixel_sizes_of_n5_viewer(tmp_path):
  pixels = make_pixels(5, 8, 9)
  stated = {'pixelResolution': {'unit': 'nm', 'dimensions': [4, 5, 40]}}
  write_n5(tmp_path / 'a/s0', pixels, **stated)
  halved = pixels[:, ::2, ::2]
  factors = {'downsamplingFactors': [2, 2, 1]}
  write_n5(tmp_path / 'a/s1', halved, **stated, **factors)
  # Of the group, with all factors.
  (tmp_path / 'a/attributes.json').write_text('{"n5": "2.0.0"}')
  for level, want in ((0, (5, 4)), (1, (10, 8))):
    _, metadata = read(tmp_path / 'a', level=level)
    assert pixel_size.of_metadata(metadata) == pytest.approx(want)
    assert metadata['spacing'] == 40
  write_n5(tmp_path / 'b/s0', pixels)
  write_n5(tmp_path / 'b/s1', halved)
  group = stated | {'scales': [[1, 1, 1], [2, 2, 1]]}
  (tmp_path / 'b/attributes.json').write_text(json.dumps(group))
  for level, want in ((0, (5, 4)), (1, (10, 8))):
    _, metadata = read(tmp_path / 'b', level=level)
    assert pixel_size.of_metadata(metadata) == pytest.approx(want)
  for bad in ([4, 5, 40], {'unit': 'nm', 'dimensions': 'four'}):
    group['pixelResolution'] = bad
    (tmp_path / 'b/attributes.json').write_text(json.dumps(group))
    refuse(tmp_path / 'b', 'pixelResolution', 'cannot be read')
  group['pixelResolution'] = {'unit': 'nm', 'dimensions': [4, 4]}
  (tmp_path / 'b/attributes.json').write_text(json.dumps(group))
  refuse(tmp_path / 'b', 'has 3 axes, but a pixelResolution of 2')


def test_four_axes_without_names_are_not_guessed(tmp_path):
  path = tmp_path / 'a'
  store = ts.open(
    {
      'driver': 'n5',
      'kvstore': {'driver': 'file', 'path': f'{path}/'},
      'metadata': {
        **{'dimensions': [9, 8, 3, 1], 'blockSize': [9, 8, 3, 1]},
        **{'dataType': 'uint8', 'compression': {'type': 'gzip'}},
      },
    },
    create=True,
  ).result()
  store[...] = make_pixels(9, 8, 3, 1)
  refuse(path, '4 axes without names')


def test_neuroglancer(tmp_path):
  pixels = make_pixels(5, 8, 9)
  store = ts.open(
    {
      'driver': 'neuroglancer_precomputed',
      'kvstore': {'driver': 'file', 'path': f'{tmp_path}/'},
      'multiscale_metadata': {
        'type': 'image',
        'data_type': 'uint8',
        'num_channels': 1,
      },
      'scale_metadata': {
        'size': [9, 8, 5],
        'encoding': 'raw',
        'chunk_size': [4, 4, 2],
        'resolution': [4, 5, 40],
        'voxel_offset': [3, 2, 1],
      },
    },
    create=True,
  ).result()
  store[...] = pixels.T[..., None]
  found, metadata = read(tmp_path)
  np.testing.assert_array_equal(found, pixels)
  assert pixel_size.of_metadata(metadata) == pytest.approx((5, 4))
  assert metadata['origin'] == (40, 10, 12)


class Server(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass

  def do_GET(self):
    if self.path.startswith('/secret'):
      self.send_error(403)
    else:
      super().do_GET()


def test_a_url(tmp_path):
  pixels = make_pixels(3, 8, 9)
  write_ome(tmp_path / 'a.zarr', pixels)
  with http.server.ThreadingHTTPServer(
    ('127.0.0.1', 0), functools.partial(Server, directory=tmp_path)
  ) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/'
    found, _ = read(f'{url}a.zarr')
    refuse(f'{url}b.zarr', 'no multiscale metadata')
    refuse(f'{url}secret', 'the bucket refuses it', 'AWS_PROFILE')
    server.shutdown()
  np.testing.assert_array_equal(found, pixels)


def test_a_url_that_does_not_answer(monkeypatch):
  monkeypatch.setitem(chunk_store._RETRIES, 'max_retries', 1)
  monkeypatch.setitem(chunk_store._RETRIES, 'initial_delay', '10ms')
  refuse('http://127.0.0.1:1/a', 'check the address')


def test_missing_chunks_have_the_fill_value(tmp_path):
  pixels = make_pixels(6, 8, 8) | 1
  path = write_ome(tmp_path / 'a.zarr', pixels, chunk=(2, 8, 4))
  (path / '0/c/1/0/1').unlink()
  with volume.open_stack(path) as stack:
    found = stack.read_all()
    assert stack.filled == {2, 3}
  pixels[2:4, :, 4:] = 0
  np.testing.assert_array_equal(found, pixels)


def test_refuses_what_it_cannot_read(tmp_path):
  pixels = make_pixels(3, 8, 8)

  def changed(**fields):
    path = write_ome(tmp_path / 'a.zarr', pixels)
    group = json.loads((path / 'zarr.json').read_text())
    group['attributes']['ome']['multiscales'][0] |= fields
    write_group(path, group['attributes'])
    return path

  none = tmp_path / 'none.zarr'
  none.mkdir()
  refuse(none, 'no multiscale metadata', '0.4 or 0.5')
  write_group(none, {})
  refuse(none, 'no multiscale metadata')
  write_array(tmp_path / 'bare.zarr', pixels)
  refuse(tmp_path / 'bare.zarr', 'no multiscale metadata')
  axes = [{'name': a} for a in ('angle', 'y', 'x')]
  refuse(changed(axes=axes), "axis 'angle'", 't, c, z, y, x')
  refuse(changed(axes=[axes[1]] * 3), 'axes YYY')
  refuse(changed(datasets=[]), 'no levels')
  refuse(changed(datasets=[{'path': '0'}]), 'coordinateTransformations')
  turned = [{'type': 'rotation', 'rotation': []}]
  refuse(changed(coordinateTransformations=turned), "'rotation'")
  short = [{'type': 'scale', 'scale': [1, 1]}]
  refuse(changed(coordinateTransformations=short), 'cannot be read')
  path = changed()
  group = json.loads((path / 'zarr.json').read_text())
  group['attributes']['ome']['version'] = '0.6'
  write_group(path, group['attributes'])
  refuse(path, 'is OME-Zarr 0.6', '0.4 and 0.5')
  (path / 'zarr.json').write_text('{')
  refuse(path, 'damaged zarr.json')
  (changed() / '0/c/0/0/0').write_bytes(b'cut')
  refuse(path, 'cannot be read at slice 1 to 3', '0/c/0/0/0')
  (path / '0/zarr.json').unlink()
  refuse(path, 'cannot be opened at 0')
  refuse(write_ome(tmp_path / 'b.zarr', pixels.astype('int16')), 'int16')
  volume.write_stack(tmp_path / 'a.tif', pixels)
  refuse(tmp_path / 'a.tif', '--level', choice=volume.Choice(level=1))


@pytest.mark.zarr_peer
@pytest.mark.filterwarnings('ignore')
def test_what_ome_zarr_writes(tmp_path):
  from ome_zarr import writer

  pixels = make_pixels(2, 5, 64, 64)
  writer.write_image(
    pixels,
    str(tmp_path / 'a.zarr'),
    axes='czyx',
    scale_factors=[2],
    coordinate_transformations=None,
  )
  found, _ = read(tmp_path / 'a.zarr', channel=2)
  np.testing.assert_array_equal(found, pixels[1])
