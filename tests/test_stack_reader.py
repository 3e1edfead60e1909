"""A stack that stays on the disk: indexed like an array, however it changes."""

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

from made_stacks import make_pixels
from made_stacks import write_tiff
from made_volumes import write_ome
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.data import normalisation
from skipnet_jax.data import pipeline
from skipnet_jax.data import volume


@pytest.fixture(params=['<', '>', 'zarr'])
def on_disk(tmp_path, request):
  array = make_pixels('uint16', (6, 40, 48))
  path = tmp_path / 'a.tif'
  if request.param == 'zarr':
    path = write_ome(tmp_path / 'a.zarr', array, chunk=(4, 16, 32))
  else:
    write_tiff(path, array, byteorder=request.param)
  with volume.open_stack(path) as stack:
    return array, stack.on_disk()


def test_it_is_indexed_like_an_array(on_disk):
  array, stack = on_disk
  assert (stack.shape, stack.dtype) == (array.shape, array.dtype)
  assert (stack.ndim, stack.nbytes, len(stack)) == (3, array.nbytes, 6)
  for key in (
    2,
    -1,
    np.int32(3),
    [0, 5],
    np.array([[1, 2], [3, 0]]),
    slice(None),
    slice(1, 5, 2),
    (3, slice(5, 9), slice(20, 48)),
    (slice(None), slice(8, 24), slice(None, 30)),
    ([4, 4], slice(-3, None)),
  ):
    found = stack[key]
    assert found.shape == array[key].shape
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(found), array[key])
  cropped = stack[:, 4:20, 6:16]
  np.testing.assert_array_equal(cropped[2, 3:5, 1:4], array[2, 7:9, 7:10])
  np.testing.assert_array_equal(list(cropped), array[:, 4:20, 6:16])
  for wrong in (6, -7, (0, slice(None, None, 2))):
    with pytest.raises(IndexError):
      stack[wrong]


def test_statistics_and_windows_are_those_in_memory(on_disk):
  array, stack = on_disk
  found, expected = map(normalisation.statistics, on_disk[::-1])
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name])
  (whole,) = pipeline.in_memory({'image': stack}).values()
  assert isinstance(whole, np.ndarray)
  np.testing.assert_array_equal(whole, array)


@pytest.mark.parametrize('how', ['shorter', 'rewritten', 'replaced', 'removed'])
@pytest.mark.parametrize('options', [{}, {'compression': 'zlib'}])
def test_a_file_that_changes_while_it_is_read(tmp_path, how, options):
  path, other = tmp_path / 'a.tif', tmp_path / 'b.tif'
  write_tiff(path, make_pixels(), **options)
  with volume.open_stack(path) as stack:
    np.testing.assert_array_equal(stack.read(0), make_pixels()[0])
    if how == 'shorter':
      os.truncate(path, 100)
    elif how == 'removed':
      path.unlink()
    else:
      shutil.copy(write_tiff(other, make_pixels()[::-1], **options), path)
      if how == 'replaced':
        other.replace(path)
    with pytest.raises(errors.InputError, match=r'a\.tif .*read') as caught:
      stack.read(1)
    assert '\n' not in str(caught.value)


def test_a_stack_that_is_cut_short_ends_no_process(tmp_path):
  path = tmp_path / 'a.tif'
  write_tiff(path, np.ones((4, 512, 512), np.uint8))
  code = """
    import os, sys
    import numpy as np
    from skipnet_jax import errors
    from skipnet_jax.data import volume
    with volume.open_stack(sys.argv[1]) as stack:
      image = stack.on_disk()
    image[3]
    os.truncate(sys.argv[1], 1000)
    try:
      np.asarray(image)
    except errors.InputError as error:
      print(error)
  """
  run = [sys.executable, '-c', textwrap.dedent(code), str(path)]
  done = subprocess.run(run, capture_output=True, text=True, check=True)
  assert 'was changed while it was being read' in done.stdout


@pytest.mark.parametrize('kind', ['tif', 'zarr'])
def test_reading_leaves_the_rest_on_the_disk(tmp_path, kind):
  path = tmp_path / f'a.{kind}'
  if kind == 'zarr':
    pages = np.arange(64, dtype=np.uint8)[:, None, None]
    pixels = np.broadcast_to(pages, (64, 1024, 1024))
    write_ome(path, pixels, chunk=(2, 1024, 1024))
  else:
    with volume.StackWriter(path, (64, 1024, 1024), 'uint8') as writer:
      for z in range(64):
        writer.write(np.full((1024, 1024), z, np.uint8))
  status = pathlib.Path('/proc/self/statm')
  with volume.open_stack(path) as stack:
    image = stack.on_disk()
  before = int(status.read_text().split()[1])
  assert [int(page[5, 5]) for page in image] == list(range(64))
  grown = int(status.read_text().split()[1]) - before
  assert grown * os.sysconf('SC_PAGE_SIZE') < 16 * 2**20
