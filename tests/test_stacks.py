"""Streaming of a stack: what is in memory, and when files appear."""

import tracemalloc

import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import normalisation
from skipnet_jax.data import volume
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import stacks
from skipnet_jax.prediction import tiling as tiling_lib


class Grey:
  """Predicts the image itself."""

  count = slices = 1
  normalise = 'slice'

  def tiling(self, size, *_):
    return tiling_lib.Tiling(size)

  def predict_slices(self, images, size, tiling, advance):
    for (page,) in images:
      advance()
      yield page.astype(np.float32) / 255, np.zeros(size, np.float32)


def test_labels_widen_where_a_slice_has_more_than_65535(tmp_path):
  pixels = np.full((4, 520, 520), 255, np.uint8)
  pixels[:2, :, 260] = 0
  pixels[2, 1::2] = pixels[2, :, 1::2] = 0
  volume.write_stack(tmp_path / 'in.tif', pixels)
  found = {}
  for count in (2, 4):
    volume.write_stack(tmp_path / 'in.tif', pixels[:count], overwrite=True)
    labels = tmp_path / f'{count}.tif'
    with volume.open_stack(tmp_path / 'in.tif') as reader:
      output = tmp_path / f'out{count}.tif'
      cells = cell_files.CellFiles(labels)
      stacks.predict_stack(Grey(), reader, output, cells=cells)
    found[count] = tifffile.imread(labels)
    assert f'{found[count].dtype} labels' in cells.describe()[0]
  assert [f.dtype.name for f in found.values()] == ['uint16', 'uint32']
  np.testing.assert_array_equal(found[4][:2], found[2])
  assert [page.max() for page in found[4]] == [2, 2, 260**2, 1]
  assert len(list(tmp_path.iterdir())) == 5


def test_memory_does_not_grow_with_the_slices(tmp_path):
  peaks = []
  for slices in (5, 50):
    source = tmp_path / f'{slices}.tif'
    with volume.StackWriter(source, (slices, 512, 512), 'uint8') as writer:
      for z in range(slices):
        writer.write(np.full((512, 512), z, np.uint8))
    tracemalloc.start()
    cells = cell_files.CellFiles(
      tmp_path / f'l{slices}.tif',
      tmp_path / f'o{slices}.tif',
      tmp_path / f'c{slices}.csv',
    )
    with volume.open_stack(source) as reader:
      stacks.predict_stack(
        Grey(),
        reader,
        tmp_path / f'p{slices}.tif',
        std_output=tmp_path / f's{slices}.tif',
        cells=cells,
      )
    line = cells.describe()[-1]
    assert f'one region in slices 0-{slices - 1} (counted' in line
    assert 'at threshold 0.5: try another' in line
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert tifffile.imread(tmp_path / 'p50.tif')[49, 5, 5] == np.float32(49 / 255)
  assert peaks[1] < 1.1 * peaks[0]


def test_floats_have_no_range_to_normalise_by(tmp_path):
  volume.write_stack(tmp_path / 'in.tif', np.zeros((2, 32, 32), np.float32))
  predictor = Grey()
  predictor.normalise = 'range'
  with (
    volume.open_stack(tmp_path / 'in.tif') as reader,
    pytest.raises(errors.InputError, match=r'in\.tif has dtype float32'),
  ):
    stacks.predict_stack(predictor, reader, tmp_path / 'out.tif')
  assert [p.name for p in tmp_path.iterdir()] == ['in.tif']


@pytest.mark.parametrize(
  ('method', 'dtype', 'ok'),
  [
    *(('range', 'uint8', True), ('range', 'uint16', False)),
    *(('slice', 'uint16', True), ('local', 'float32', True)),
  ],
)
def test_a_range_is_that_of_the_training(method, dtype, ok):
  if ok:
    normalisation.check(method, dtype, 'in.tif', 'uint8')
    # Older runs keep no type.
    normalisation.check(method, dtype, 'in.tif')
  else:
    with pytest.raises(errors.InputError, match=r'in\.tif has dtype uint16'):
      normalisation.check(method, dtype, 'in.tif', 'uint8')


def test_files_appear_only_when_all_is_done(tmp_path):
  class Broken:
    count = slices = 1
    normalise = 'slice'

    def tiling(self, size, *_):
      return tiling_lib.Tiling(size)

    def predict_slices(self, *_):
      raise KeyboardInterrupt

  volume.write_stack(tmp_path / 'in.tif', np.zeros((2, 32, 32), np.uint8))
  with (
    volume.open_stack(tmp_path / 'in.tif') as reader,
    pytest.raises(KeyboardInterrupt),
  ):
    stacks.predict_stack(Broken(), reader, tmp_path / 'out.tif')
  assert [p.name for p in tmp_path.iterdir()] == ['in.tif']
