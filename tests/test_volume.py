import io
import os
import pathlib
import subprocess
import sys
import textwrap
import tracemalloc

from made_stacks import make_pixels
from made_stacks import refuse
from made_stacks import write_tiff
import numpy as np
from PIL import Image
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import volume


def _pillow_tiff(path, array, compression) -> pathlib.Path:
  first, *rest = (Image.fromarray(page) for page in array)
  first.save(path, save_all=True, append_images=rest, compression=compression)
  return path


@pytest.mark.parametrize('dtype', volume.IMAGE_DTYPES)
@pytest.mark.parametrize(
  ('options', 'left_on_disk'),
  [
    ({}, True),
    ({'imagej': True, 'metadata': {'axes': 'ZYX'}}, True),
    ({'bigtiff': True}, True),
    ({'byteorder': '>'}, True),
    ({'rowsperstrip': 7}, True),
    ({'tile': (16, 16)}, False),
    ({'compression': 'zlib'}, False),
    ({'compression': 'zlib', 'tile': (16, 32), 'byteorder': '>'}, False),
    ({'metadata': None}, True),
    ({'ome': True, 'metadata': {'axes': 'ZYX'}}, True),
  ],
)
def test_kinds_of_tiff_read_back_equal(tmp_path, dtype, options, left_on_disk):
  array = make_pixels(dtype)
  path = write_tiff(tmp_path / 'a.tif', array, **options)
  with volume.open_stack(path) as stack:
    assert (stack.shape, stack.dtype) == (array.shape, array.dtype)
    assert stack.dtype.isnative
    np.testing.assert_array_equal(stack.read_all(), array)
    np.testing.assert_array_equal(stack.read(3), array[3])
    assert [page.sum() for page in stack] == [page.sum() for page in array]
    view = stack.on_disk()
    assert (view is not None) == left_on_disk
    if left_on_disk:
      np.testing.assert_array_equal(view, array)
    with pytest.raises(IndexError):
      stack.read(5)


def test_one_page_and_one_directory_for_many_slices(tmp_path):
  array = make_pixels('uint16')
  with volume.open_stack(write_tiff(tmp_path / 'one.tif', array[0])) as stack:
    assert stack.shape == (1, 40, 48)
    np.testing.assert_array_equal(stack.read_all(), array[:1])
  for options in ({}, {'imagej': True, 'metadata': {'axes': 'ZYX'}}):
    path = tmp_path / f'virtual{len(options)}.tif'
    with tifffile.TiffWriter(path, imagej='imagej' in options) as writer:
      kept = {k: v for k, v in options.items() if k != 'imagej'}
      writer.write(array, truncate=True, photometric='minisblack', **kept)
    assert path.stat().st_size < array.nbytes + 4096
    with volume.open_stack(path) as stack:
      np.testing.assert_array_equal(stack.read_all(), array)
      np.testing.assert_array_equal(stack.on_disk(), array)
    cut = tmp_path / 'cut.tif'
    cut.write_bytes(path.read_bytes()[:-1000])
    refuse(cut, 'cut short' if options else '')


def test_packbits_and_lzw_by_an_independent_writer(tmp_path):
  array = make_pixels() // 64 * 64
  path = _pillow_tiff(tmp_path / 'p.tif', array, 'packbits')
  with volume.open_stack(path) as stack:
    np.testing.assert_array_equal(stack.read_all(), array)
  path = _pillow_tiff(tmp_path / 'l.tif', array, 'tiff_lzw')
  try:
    import imagecodecs  # noqa: F401
  except ImportError:
    refuse(path, 'LZW', 'pip install imagecodecs')
  else:
    with volume.open_stack(path) as stack:
      np.testing.assert_array_equal(stack.read_all(), array)
  refuse(_pillow_tiff(tmp_path / 'j.tif', array, 'jpeg'), 'JPEG', 'save it')


def test_folder_of_slices_in_natural_order(tmp_path):
  for kind, dtype in (('png', 'uint8'), ('png', 'uint16'), ('tif', 'float32')):
    array = make_pixels(dtype, (12, 9, 11))
    folder = tmp_path / f'{kind}-{dtype}'
    folder.mkdir()
    for z, page in enumerate(array):
      Image.fromarray(page).save(folder / f'slice_{z}.{kind}')
    (folder / 'notes.txt').write_text('not a slice')
    (folder / '.hidden.png').write_text('not a slice')
    with volume.open_stack(folder) as stack:
      assert (stack.shape, stack.dtype) == (array.shape, array.dtype)
      np.testing.assert_array_equal(stack.read_all(), array)
      assert stack.on_disk() is None


def test_bad_folders(tmp_path):
  refuse(tmp_path, 'no PNG or TIFF')
  grey = Image.fromarray(make_pixels()[0])
  grey.save(tmp_path / 'a_1.png')
  small = Image.fromarray(make_pixels()[0, :8])
  small.save(tmp_path / 'a_2.png')
  refuse(tmp_path, 'a_2.png', '(8, 48)', '(40, 48)')
  for mode in ('RGB', 'P', 'LA'):
    grey.convert(mode).save(tmp_path / 'a_2.png')
    refuse(tmp_path, 'a_2.png', f'mode {mode}', 'convert')
  good = (tmp_path / 'a_1.png').read_bytes()
  for bad in (good[:200], b'', b'abc', good[:60] + b'\xff' * 40 + good[100:]):
    (tmp_path / 'a_2.png').write_bytes(bad)
    refuse(tmp_path, 'a_2.png')
  (tmp_path / 'a_2.png').unlink()
  write_tiff(tmp_path / 'a_2.tif', make_pixels())
  refuse(tmp_path, 'PNG and TIFF')
  (tmp_path / 'a_1.png').unlink()
  refuse(tmp_path, '5 slices')


def test_memory_of_reading_does_not_grow_with_slices(tmp_path):
  path = tmp_path / 'a.tif'
  for options in ({}, {'compression': 'zlib'}):
    peaks = []
    for slices in (20, 200):
      write_tiff(path, np.full((slices, 256, 256), 7, 'u1'), **options)
      tracemalloc.start()
      with volume.open_stack(path) as stack:
        assert sum(int(page[0, 0]) for page in stack) == 7 * slices
      peaks.append(tracemalloc.get_traced_memory()[1])
      tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**18


def test_nonfinite_pixels_are_named():
  array = make_pixels('float32')
  volume.check_finite(array, 'a.tif')
  volume.check_finite(make_pixels(), 'a.tif')
  for value in (np.nan, np.inf):
    array[2, 3, 4] = value
    with pytest.raises(errors.InputError, match=r'a\.tif has 1 .* slice 3 .*'):
      volume.check_finite(array, 'a.tif')
  with pytest.raises(errors.InputError, match='row 3, column 4'):
    volume.check_finite(array[2], 'a.tif')
  with pytest.raises(errors.InputError, match=r'slice 13 .* row 23, column 34'):
    volume.check_finite(array, 'a.tif', 10, 20, 30)


@pytest.mark.parametrize('dtype', ['float32', 'uint8', 'uint32'])
@pytest.mark.parametrize(
  'shape', [(1, 1, 5), (2, 1, 9), (3, 1, 4), (1, 2, 2), (3, 3, 3), (2, 4, 3)]
)
def test_the_smallest_stacks_read_back_equal(tmp_path, dtype, shape):
  array = make_pixels('uint8', shape).astype(dtype)
  volume.write_stack(tmp_path / 'a.tif', array)
  with volume.open_stack(tmp_path / 'a.tif', dtypes=[dtype]) as stack:
    np.testing.assert_array_equal(stack.read_all(), array)


def test_slices_one_pixel_wide_are_not_written(tmp_path):
  # tifffile would take x for the colours, and read (1, 5, 1) as (1, 1, 5).
  for shape in ((1, 5, 1), (3, 1, 1), (2, 9, 1)):
    with pytest.raises(errors.InputError, match=r'a\.tif: .* one pixel wide'):
      volume.write_stack(tmp_path / 'a.tif', make_pixels('uint8', shape))
  assert not os.listdir(tmp_path)


def _tags(path) -> dict:
  with tifffile.TiffFile(path) as tiff:
    return tiff.imagej_metadata or {}


@pytest.mark.parametrize('dtype', ['float32', 'uint8', 'uint16', 'uint32'])
def test_written_stacks_open_elsewhere_with_their_metadata(tmp_path, dtype):
  array = make_pixels(dtype)
  metadata = {
    'axes': 'ZYX',
    'resolution': (0.25, 0.5),
    'resolutionunit': 3,
    'unit': 'µm',
    'spacing': 50.0,
    'info': 'larva',
  }
  path = tmp_path / 'a.tif'
  volume.write_stack(path, array, metadata)
  assert os.listdir(tmp_path) == ['a.tif']
  np.testing.assert_array_equal(tifffile.imread(path), array)
  with Image.open(path) as image:
    assert image.n_frames == 5
    image.seek(4)
    if dtype in ('uint8', 'float32'):
      np.testing.assert_array_equal(np.array(image), array[4])
  if dtype != 'uint32':
    found = _tags(path)
    assert found['images'] == found['slices'] == 5
    assert (found['spacing'], found['unit']) == (50.0, '\\u00B5m')
    assert found['Info'] == 'larva'
  types = ('uint8', 'uint16', 'uint32', 'float32')
  with volume.open_stack(path, dtypes=types) as stack:
    assert stack.metadata == metadata | {'unit': '\\u00B5m'}
    volume.write_stack(tmp_path / 'b.tiff', stack.read_all(), stack.metadata)
  with volume.open_stack(tmp_path / 'b.tiff', dtypes=types) as again:
    assert again.metadata == stack.metadata
    np.testing.assert_array_equal(again.on_disk(), array)


@pytest.mark.parametrize('z', [1, 3, 4])
def test_axes_are_kept_and_three_slices_are_no_colours(tmp_path, z):
  array = make_pixels(shape=(z, 8, 9))
  volume.write_stack(tmp_path / 'a.tif', array, {'axes': 'TYX'})
  assert _tags(tmp_path / 'a.tif').get('frames', 1) == z
  with volume.open_stack(tmp_path / 'a.tif') as stack:
    assert stack.metadata['axes'] == ('TYX' if z > 1 else 'ZYX')
    np.testing.assert_array_equal(stack.read_all(), array)


def test_large_stacks_become_bigtiff(tmp_path, monkeypatch):
  monkeypatch.setattr(volume, '_CLASSIC_LIMIT', 1000)
  array = make_pixels('float32')
  metadata = {'axes': 'ZYX', 'unit': 'nm', 'spacing': 50.0}
  volume.write_stack(tmp_path / 'a.tif', array, metadata)
  with tifffile.TiffFile(tmp_path / 'a.tif') as tiff:
    assert tiff.is_bigtiff
    np.testing.assert_array_equal(tiff.asarray(), array)
  with volume.open_stack(tmp_path / 'a.tif') as stack:
    assert metadata.items() <= stack.metadata.items()


def _written(path, shape, pages) -> None:
  with volume.StackWriter(path, shape, 'uint8', overwrite=True) as writer:
    for page in pages:
      writer.write(page)


def test_writer_refuses_and_leaves_nothing_half(tmp_path):
  array = make_pixels()
  path = tmp_path / 'a.tif'
  path.write_text('mine')
  with pytest.raises(errors.InputError, match=r'exists.*--overwrite'):
    volume.write_stack(path, array)
  for name, words in [
    ('a.png', 'must end in .tif or .tiff'),
    ('no/such/a.tif', 'no/such does not exist'),
    ('a.tif/b.tif', 'does not exist'),
    (f'{"x" * 300}.tif', 'is too long: choose a shorter one'),
  ]:
    with pytest.raises(errors.InputError, match=words):
      volume.write_stack(tmp_path / name, array)
  (tmp_path / 'd.tif').mkdir()
  with pytest.raises(errors.InputError, match='is a folder'):
    volume.write_stack(tmp_path / 'd.tif', array, overwrite=True)
  for given, kind, words in [
    (array[:1], ValueError, 'got 1 of its 5 slices'),
    (array[:, :3], ValueError, 'takes slices'),
    ([*array, array[0]], ValueError, 'already has'),
    (map(array.__getitem__, (0, 99)), IndexError, 'out of bounds'),
  ]:
    with pytest.raises(kind, match=words):
      _written(path, array.shape, given)
  with pytest.raises(ValueError, match='int64'):
    volume.StackWriter(path, array.shape, 'i8')
  assert path.read_text() == 'mine'
  assert sorted(os.listdir(tmp_path)) == ['a.tif', 'd.tif']
  volume.write_stack(path, array, overwrite=True)
  np.testing.assert_array_equal(tifffile.imread(path), array)


def test_a_full_disk_is_named_and_leaves_no_part(tmp_path):
  code = """
    import resource, signal, sys
    import numpy as np
    from skipnet_jax.data import volume
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    try:
      volume.write_stack(sys.argv[1], np.zeros((9, 64, 64), 'u1'))
    except OSError as error:
      print(error.filename, error.strerror)
  """
  run = [sys.executable, '-c', textwrap.dedent(code), str(tmp_path / 'a.tif')]
  done = subprocess.run(run, capture_output=True, text=True, check=True)
  assert done.stdout == f'{tmp_path / "a.tif"} File too large\n'
  assert done.stderr == ''
  assert os.listdir(tmp_path) == []


def test_png(tmp_path):
  for shape in ((8, 9), (8, 9, 3)):
    array = make_pixels(shape=shape)
    for _ in range(2):
      volume.write_png(tmp_path / 'a.png', array)
    with Image.open(tmp_path / 'a.png') as image:
      np.testing.assert_array_equal(np.array(image), array)
  assert os.listdir(tmp_path) == ['a.png']
  with pytest.raises(ValueError, match='uint8'):
    volume.write_png(tmp_path / 'a.png', array.astype('f4'))
  with pytest.raises(errors.InputError, match=r'\.png'):
    volume.write_png(tmp_path / 'a.jpg', array)


@pytest.mark.real_data
def test_the_real_stacks_are_left_on_disk(tmp_path):
  folder = os.environ['SKIPNET_DATA_DIR']
  (path,) = pathlib.Path(folder).glob('**/train-labels.tif')
  with volume.open_stack(path) as stack:
    inside = np.asarray(stack.on_disk()) == 255
  np.testing.assert_array_equal(inside, tifffile.imread(path) == 255)
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, inside.astype('u1'), compression='zlib')
  (tmp_path / 'zip.tif').write_bytes(buffer.getvalue())
  with volume.open_stack(tmp_path / 'zip.tif') as stack:
    assert stack.on_disk() is None
    np.testing.assert_array_equal(stack.read_all(), inside)
