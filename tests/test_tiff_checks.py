import os
import random
import resource
import struct
import subprocess
import sys
import textwrap

from made_stacks import make_pixels
from made_stacks import refuse
from made_stacks import write_tiff
import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import volume


@pytest.mark.parametrize(
  ('array', 'options', 'words'),
  [
    (np.zeros((5, 8, 9, 3), 'u1'), {'photometric': 'rgb'}, ['(8, 9, 3)']),
    (
      np.zeros((3, 8, 9), 'u1'),
      {'photometric': 'rgb', 'planarconfig': 'separate'},
      ['(3, 8, 9)', 'grey'],
    ),
    (np.zeros((5, 8, 9), 'c8'), {}, ['complex64', 'float32']),
    (np.zeros((5, 8, 9), bool), {}, ['bool', 'convert']),
    (np.zeros((5, 8, 9), 'f2'), {}, ['float16', 'convert']),
    (np.zeros((5, 8, 9), 'f8'), {}, ['float64', 'convert']),
    (np.zeros((5, 8, 9), 'i4'), {}, ['int32', 'convert']),
    (np.zeros((5, 8, 9), 'i1'), {}, ['int8', 'convert']),
    (np.zeros((5, 8, 9), 'u1'), {'photometric': 'miniswhite'}, ['MINISWHITE']),
    (
      np.zeros((8, 9), 'u1'),
      {'photometric': 'palette', 'colormap': np.zeros((3, 256), 'u2')},
      ['PALETTE', 'convert'],
    ),
    (np.zeros((5, 8, 9), 'u1'), {'compression': 'lzma'}, ['LZMA', 'ZIP']),
    (
      np.zeros((8, 9), 'u1'),
      {'extratags': [(274, 'H', 1, 3, True)]},
      ['Orientation 3', 'turned'],
    ),
  ],
)
def test_refused_kinds_of_pixels(tmp_path, array, options, words):
  refuse(write_tiff(tmp_path / 'a.tif', array, **options), *words)


def test_label_images_may_ask_for_other_types(tmp_path):
  array = make_pixels('uint32')
  path = write_tiff(tmp_path / 'a.tif', array)
  refuse(path, 'uint32')
  with volume.open_stack(path, dtypes=('uint16', 'uint32')) as stack:
    np.testing.assert_array_equal(stack.read_all(), array)


def test_unequal_pages(tmp_path):
  with tifffile.TiffWriter(tmp_path / 'a.tif') as writer:
    writer.write(make_pixels()[0])
    writer.write(make_pixels()[0, :20])
  refuse(tmp_path / 'a.tif', '2 images', '40 x X 48', '20 x X 48')


def test_files_that_are_no_stack(tmp_path):
  refuse(tmp_path / 'nosuch.tif', 'no stack', 'expected')
  refuse(tmp_path / ('x' * 300))
  for data, words in [
    (b'', ['is empty']),
    (b'\x89PNG\r\n\x1a\n', ['not a TIFF']),
    (b'II*\0', ['cut short']),
    (b'II*\0\0\0\0\0', ['zero pages']),
    (b'II*\0\x08\0\0\0\0\0\x08\0\0\0', ['circle']),
    (b'MM\0*\0\xff\0\0', ['cut short']),
  ]:
    (tmp_path / 'a.tif').write_bytes(data)
    refuse(tmp_path / 'a.tif', *words)
  fifo = tmp_path / 'fifo.tif'
  os.mkfifo(fifo)
  refuse(fifo, 'a pipe')


def _patched(path, code, value, bits='I') -> None:
  """Sets a tag of the first page."""
  with tifffile.TiffFile(path) as tiff:
    at = tiff.pages[0].tags[code].valueoffset
  data = bytearray(path.read_bytes())
  struct.pack_into(f'<{bits}', data, at, value)
  path.write_bytes(data)


def test_a_page_with_many_images_below_it(tmp_path):
  path = tmp_path / 'a.tif'
  many = (65000, 'I', 100, (8,) * 100, True)
  write_tiff(path, make_pixels(), extratags=[many])
  with volume.open_stack(path) as stack:
    assert len(stack) == 5
  codes = [struct.pack('<HHI', code, 4, 100) for code in (65000, 330)]
  assert path.read_bytes().count(codes[0]) == 1
  path.write_bytes(path.read_bytes().replace(*codes))
  refuse(path, 'page 1 has 100 images below it, at most 64')


@pytest.mark.parametrize('big', [False, True])
# Where the strips are, and the name of the program.
@pytest.mark.parametrize(('code', 'most'), [(273, 2**20), (305, 2**24)])
def test_a_tag_with_millions_of_values(tmp_path, code, most, big):
  path = write_tiff(tmp_path / 'a.tif', make_pixels(), bigtiff=big)
  with tifffile.TiffFile(path) as tiff:
    at = tiff.pages[0].tags[code].offset
  with path.open('r+b') as file:
    file.seek(at + 4)
    file.write(struct.pack('<Q' if big else '<I', most + 1))
    file.truncate(2**25)
  refuse(path, f'page 1 has {most + 1} values in tag {code}, at most {most}')


def test_declared_far_larger_than_stored(tmp_path):
  path = tmp_path / 'a.tif'
  for options in ({}, {'compression': 'zlib'}, {'tile': (16, 16)}):
    write_tiff(path, make_pixels(shape=(1, 40, 48)), **options)
    _patched(path, 257, 2**31 - 1)
    assert len(refuse(path, str(2**31 - 1))) < 400
  write_tiff(path, make_pixels(), imagej=True, metadata={'axes': 'ZYX'})
  data = path.read_bytes()
  path.write_bytes(data.replace(b'images=5\nslices=5', b'images=9\nslices=9'))
  refuse(path, 'slices=9', '5 pages')
  # 100 MB out of a hundred stored bytes.
  write_tiff(path, np.zeros((1, 64, 64), 'u1'), compression='zlib')
  for code in (256, 257):
    _patched(path, code, 10_000)
  _patched(path, 278, 10_000)
  refuse(path, 'declares 100000000 bytes')


def test_bomb_inside_a_small_slice_stays_small(tmp_path):
  path = tmp_path / 'a.tif'
  noise = make_pixels(shape=(1, 600, 600))
  for array, words in [
    (np.zeros((1, 9000, 9000), 'u1'), 'decompresses to more than 67108864'),
    (noise, 'stores'),
  ]:
    rows = array.shape[1]
    options = {'compression': 'zlib', 'metadata': None}
    write_tiff(path, array, rowsperstrip=rows, **options)
    for code in (257, 278):
      _patched(path, code, 40)
    refuse(path, words)


def test_truncated_files_are_refused_whole(tmp_path):
  array = make_pixels()
  cut = tmp_path / 'cut.tif'
  for name, options in [
    ('plain', {}),
    ('pages', {'metadata': None}),
    ('imagej', {'imagej': True, 'metadata': {'axes': 'ZYX'}}),
    ('zip', {'compression': 'zlib'}),
    ('tile', {'tile': (16, 16)}),
  ]:
    data = write_tiff(tmp_path / f'{name}.tif', array, **options).read_bytes()
    for size in (4, 100, len(data) // 3, len(data) // 2, len(data) - 20):
      cut.write_bytes(data[:size])
      refuse(cut)


def test_flipped_bytes_never_give_a_traceback(tmp_path):
  chance = random.Random(0)
  array = make_pixels(shape=(3, 24, 24))
  path = tmp_path / 'a.tif'
  originals = [
    write_tiff(path, array, **options).read_bytes()
    for options in (
      {'imagej': True, 'metadata': {'axes': 'ZYX', 'spacing': 2.0}},
      {'bigtiff': True},
      {'compression': 'zlib', 'tile': (16, 16)},
      {'ome': True, 'metadata': {'axes': 'ZYX'}},
    )
  ]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  refused = 0
  for _ in range(2000):
    data = bytearray(chance.choice(originals))
    for _ in range(chance.choice((1, 1, 3, 9))):
      span = chance.choice((400, len(data)))
      data[chance.randrange(span)] = chance.choice((0, 1, 127, 255))
    path.write_bytes(data)
    try:
      with volume.open_stack(path) as stack:
        assert all(page.shape == stack.shape[1:] for page in stack)
    except errors.InputError:
      refused += 1
  assert 200 < refused < 2000
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 200 * 1024  # KiB


def test_nothing_of_tifffile_reaches_the_terminal(tmp_path):
  path = tmp_path / 'a.tif'
  data = write_tiff(path, make_pixels(), metadata=None).read_bytes()
  path.write_bytes(data[:-20] + b'\xff' * 20)
  code = f"""
    import logging
    logging.basicConfig()
    from skipnet_jax import errors
    from skipnet_jax.data import volume
    try:
      volume.open_stack({str(path)!r})
    except errors.InputError as error:
      print('refused')
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert (done.stdout, done.stderr) == ('refused\n', '')
