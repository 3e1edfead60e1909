"""Prediction of volumes in blocks: equal, resumed, shared, within a memory."""

import dataclasses
import fcntl
import os
import pathlib
import shutil

from fake_predictor import Fake
from fake_predictor import predict
from fake_predictor import read
from made_volumes import make_pixels
from made_volumes import write_ome
import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import normalisation
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import cell_volumes
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction import stacks
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.prediction import volumes
from skipnet_jax.prediction.cells import linking


@pytest.mark.parametrize(
  ('version', 'slices', 'normalise', 'network'),
  [
    ('0.5', 3, 'slice', (100, 150)),
    ('0.4', 1, 'slice', (100, 150)),
    ('0.5', 3, 'local', (100, 150)),
    ('0.5', 3, 'slice', (140, 120)),
    ('0.5', 1, 'local', (70, 90)),
  ],
)
def test_blocks_equal_the_stack_bit_for_bit(
  small_blocks, tmp_path, zarr_source, slices, version, normalise, network
):
  grid = pixel_grid.Grid((100, 150), network)
  with volume.open_stack(zarr_source) as opened:
    stacks.predict_stack(
      Fake(slices=slices, normalise=normalise),
      opened,
      tmp_path / 'out.tif',
      std_output=tmp_path / 'std.tif',
      grid=grid,
      calibration=np.sqrt,
    )
  whole = (3, 128, 160), (1, 128, 160)
  for block in whole if normalise == 'local' else (*whole, (2, 64, 96)):
    small_blocks(*block)
    out, std = (tmp_path / f'{name}{block[0]}.zarr' for name in 'os')
    line = predict(
      *(Fake(slices=slices, normalise=normalise), zarr_source, out),
      std_output=std,
      grid=grid,
      calibration=np.sqrt,
      version=version,
    )
    count = -(-5 // block[0])
    assert f'{count} of {count} blocks of {block[0]} slices' in line
    for path, tiff in ((out, 'out.tif'), (std, 'std.tif')):
      expected = tifffile.imread(tmp_path / tiff)
      np.testing.assert_array_equal(read(path), expected)


def test_levels_and_their_metadata(small_blocks, tmp_path, zarr_source):
  predict(Fake(), zarr_source, tmp_path / 'out.zarr')
  fine = read(tmp_path / 'out.zarr')
  for level, sides in ((1, (50, 75)), (2, (25, 38))):
    path = tmp_path / 'out.zarr'
    with volume.open_stack(path, choice=volume.Choice(level=level)) as stack:
      coarse, metadata = stack.read_all(), stack.metadata
    assert coarse.shape == (5, *sides)
    fine = np.pad(fine, [(0, 0), *((0, n % 2) for n in fine.shape[1:])], 'edge')
    fine = fine.reshape(5, sides[0], 2, sides[1], 2).mean((2, 4))
    np.testing.assert_allclose(coarse, fine, atol=1e-6)
    fine = coarse
    factor = 2**level
    assert metadata['unit'] == 'nm'
    assert metadata['spacing'] == 40
    per = 1 / (4.6 * factor), 1 / (4 * factor)
    assert metadata['resolution'] == pytest.approx(per)
    middle = [(factor - 1) / 2 * s for s in (4, 4.6)]
    assert metadata['origin'] == pytest.approx((0, *middle))


def test_cells_are_those_of_whole_slices(small_blocks, tmp_path, zarr_source):
  by = segmenters.ByThreshold(0.4)
  predict(
    *(Fake(), zarr_source, tmp_path / 'out.zarr'),
    cells=cell_files.CellFiles(tmp_path / 'cells.zarr', segmenter=by),
  )
  found, inside = read(tmp_path / 'cells.zarr'), read(tmp_path / 'out.zarr')
  for labels, page in zip(found, inside, strict=True):
    np.testing.assert_array_equal(labels, by(page, page, _grid(page)))
  np.testing.assert_array_equal(
    read(tmp_path / 'cells.zarr', 1), found[:, ::2, ::2]
  )


def cells_of(folder, suffix, **options):
  return cell_files.CellFiles(
    *(folder / f'{name}{suffix}' for name in ('cells', 'overlay')),
    folder / f'cells{suffix}.csv',
    segmenter=segmenters.ByThreshold(0.4),
    pixel_size=(4.0, 4.6),
    **options,
  )


@pytest.mark.parametrize('link', [True, False])
def test_cells_are_those_of_the_stack(
  small_blocks, tmp_path, zarr_source, link, monkeypatch
):
  with volume.open_stack(zarr_source) as opened:
    stacks.predict_stack(
      *(Fake(), opened, tmp_path / 'out.tif'),
      cells=cells_of(tmp_path, '.tif', link=link),
    )
  version, output = '0.4' if link else '0.5', tmp_path / 'out.zarr'
  options = {
    'version': version,
    'cells': cells_of(tmp_path, '.zarr', link=link),
  }
  shards = volumes.Shards(1, 3)
  line = predict(Fake(), zarr_source, output, shards=shards, **options)
  assert line.endswith('linked and measured when all are')

  class Dying(linking.Linker):
    count = 0

    def __call__(self, labels):
      Dying.count += 1
      if Dying.count == 4:
        raise KeyboardInterrupt
      return super().__call__(labels)

  def die(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(cell_volumes.linking, 'Linker', Dying)
    patch.setattr(cell_volumes, 'measure', die)
    with pytest.raises(KeyboardInterrupt):
      predict(Fake(), zarr_source, output, **options)
  again = Fake()
  predict(again, zarr_source, output, **options)
  assert not again.tiles
  assert not (tmp_path / 'cells.zarr/unlinked').exists()
  expected = tifffile.imread(tmp_path / 'cells.tif')
  found = read(tmp_path / 'cells.zarr')
  np.testing.assert_array_equal(found, expected)
  assert found[0].max() > 2
  np.testing.assert_array_equal(
    read(tmp_path / 'cells.zarr', 1), found[:, ::2, ::2]
  )
  for channel in range(3):
    choice = volume.Choice(channel=channel + 1)
    with volume.open_stack(tmp_path / 'overlay.zarr', choice=choice) as stack:
      drawn = stack.read_all()
    expected = tifffile.imread(tmp_path / 'overlay.tif')[..., channel]
    np.testing.assert_array_equal(drawn, expected)
  table = tmp_path / 'cells.zarr.csv'
  assert table.read_text() == (tmp_path / 'cells.tif.csv').read_text()
  # The same command again leaves the table; another one is not replaced.
  predict(Fake(), zarr_source, output, **options)
  table.write_text('mine')
  with pytest.raises(errors.InputError, match=r'csv exists and has other'):
    predict(Fake(), zarr_source, output, **options)


def _grid(page):
  return pixel_grid.Grid(page.shape, page.shape)


def files_of(path):
  return {
    str(p.relative_to(path)): p.read_bytes()
    for p in sorted(path.rglob('*'))
    if p.is_file()
  }


def test_a_volume_is_resumed_bit_for_bit(small_blocks, tmp_path, zarr_source):
  small_blocks(2, 64, 96)
  whole = Fake()
  (tmp_path / 'whole').mkdir()
  predict(whole, zarr_source, tmp_path / 'whole/out.zarr')
  expected = files_of(tmp_path / 'whole/out.zarr')

  class Dying(Fake):
    def _averages(self, tiles, advance):
      for average in super()._averages(tiles, advance):
        if self.tiles == 20:
          raise KeyboardInterrupt
        yield average

  output = tmp_path / 'out.zarr'
  dying = Dying()
  with pytest.raises(KeyboardInterrupt):
    predict(dying, zarr_source, output)
  left = files_of(output)
  assert 0 < sum(name.startswith('0/c/') for name in left) < 12
  # A half written file has another name.
  (output / '0/c/2').mkdir(parents=True, exist_ok=True)
  (output / '0/c/2/0').mkdir()
  (output / '0/c/2/0/0.__lock').write_bytes(b'half')
  again = Fake()
  line = predict(again, zarr_source, output)
  assert '3 of 3' in line
  assert again.tiles < whole.tiles
  found = files_of(output)
  found.pop('0/c/2/0/0.__lock', None)
  assert found == expected
  # All is there: nothing is predicted, and one lost file is made again.
  lost = output / '1/c/1/0/0'
  lost.unlink()
  last = Fake()
  predict(last, zarr_source, output)
  assert last.tiles == 0
  assert lost.read_bytes() == expected['1/c/1/0/0']


def test_statistics_are_kept(small_blocks, tmp_path, zarr_source, monkeypatch):
  output = tmp_path / 'out.zarr'
  predict(Fake(slices=3), zarr_source, output, shards=volumes.Shards(0, 3))
  with monkeypatch.context() as patch:
    patch.setattr(normalisation, 'read_statistics', None)
    (output / '0/c/0/0/0').unlink()
    # Slice 2 belongs to another process, which has not begun.
    with pytest.raises(TypeError):
      predict(Fake(slices=3), zarr_source, output)
  predict(Fake(slices=3), zarr_source, output)
  shutil.rmtree(output / '0/c')
  monkeypatch.setattr(normalisation, 'read_statistics', None)
  predict(Fake(slices=3), zarr_source, output)


def test_statistics_have_the_bits_of_whole_slices(tmp_path, monkeypatch):
  monkeypatch.setattr(normalisation, '_BAND', 1000)
  monkeypatch.setattr(normalisation, '_READ', 3000)
  pixels = make_pixels(5, 100, 150).astype(np.float32) ** 2 / 7
  path = write_ome(tmp_path / 'in.zarr', pixels, chunk=(2, 30, 64))
  expected = normalisation.statistics(pixels)
  with volume.open_stack(path) as stack:
    found = normalisation.read_statistics(stack, range(1, 5))
  np.testing.assert_array_equal(found[:, 0], expected['mean'][1:])
  np.testing.assert_array_equal(found[:, 1], expected['std'][1:])
  np.testing.assert_allclose(
    expected['std'], pixels.std((1, 2), dtype=np.float64), rtol=1e-6
  )
  pixels[3, 77, 9] = np.nan
  write_ome(path, pixels, chunk=(2, 30, 64))
  with (
    volume.open_stack(path) as stack,
    pytest.raises(errors.InputError, match=r'slice 4 .* row 77, column 9'),
  ):
    normalisation.read_statistics(stack, range(5))


def test_processes_share_a_volume(small_blocks, tmp_path, zarr_source):
  output = tmp_path / 'out.zarr'
  lines = [
    predict(Fake(), zarr_source, output, shards=volumes.Shards(i, 2))
    for i in (0, 1)
  ]
  assert '2 of 3 blocks' in lines[0]
  assert '3 of 3 blocks' in lines[1]
  predict(Fake(), zarr_source, tmp_path / 'alone.zarr')
  assert files_of(output).keys() == files_of(tmp_path / 'alone.zarr').keys()
  np.testing.assert_array_equal(read(output), read(tmp_path / 'alone.zarr'))


def test_a_slab_has_one_process(small_blocks, tmp_path, zarr_source):
  output, said = tmp_path / 'out.zarr', []
  predict(Fake(), zarr_source, output, shards=volumes.Shards(2, 3))
  slab = output / '0/c/1'
  slab.mkdir()
  held = os.open(slab, os.O_RDONLY)
  fcntl.flock(held, fcntl.LOCK_EX)
  line = predict(Fake(), zarr_source, output, log=said.append)
  assert '2 of 3' in line
  assert 'Slices 2-3' in said[-1]
  os.close(held)
  assert '3 of 3' in predict(Fake(), zarr_source, output)


def test_another_process_may_begin_first(
  small_blocks, tmp_path, zarr_source, monkeypatch
):
  output = tmp_path / 'out.zarr'

  def late(*_):
    small_blocks(2, 64, 96)
    predict(Fake(), zarr_source, output, shards=volumes.Shards(0, 3))
    return [1, 128, 160]

  monkeypatch.setattr(blocks, 'choose', late)
  line = predict(Fake(), zarr_source, output, shards=volumes.Shards(1, 3))
  assert '2 of 3 blocks of 2 slices' in line


@pytest.mark.zarr_peer
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('version', ['0.5', '0.4'])
def test_other_libraries_read_and_check_it(
  small_blocks, tmp_path, zarr_source, version
):
  from ome_zarr import io
  from ome_zarr import reader
  import ome_zarr_models
  import zarr

  output = tmp_path / 'out.zarr'
  cells = cells_of(tmp_path, '.zarr', link=True)
  predict(Fake(), zarr_source, output, version=version, cells=cells)
  drawn = zarr.open_group(tmp_path / 'overlay.zarr', mode='r')
  image = ome_zarr_models.open_ome_zarr(drawn)
  assert type(image).__name__ == 'Image'
  assert drawn['0'].shape == (3, 5, 100, 150)
  group = zarr.open_group(output, mode='r')
  image = ome_zarr_models.open_ome_zarr(group)
  assert type(image).__name__ == 'Image'
  (nodes, *_) = reader.Reader(io.parse_url(str(output)))()
  for level in range(3):
    expected = read(output, level)
    np.testing.assert_array_equal(group[str(level)][:], expected)
    np.testing.assert_array_equal(np.asarray(nodes.data[level]), expected)
  if version == '0.5':
    assert group['0'].shards == (2, 128, 160)
    assert group['0'].chunks == (2, 32, 32)
    assert group['0'].metadata.dimension_names == ('z', 'y', 'x')


def test_a_tiff_becomes_a_volume(small_blocks, tmp_path):
  pixels = make_pixels(3, 50, 60)
  volume.write_stack(
    *(tmp_path / 'in.tif', pixels),
    {'unit': 'µm', 'resolution': (250, 200), 'spacing': 0.05},
  )
  predict(Fake(normalise='range'), tmp_path / 'in.tif', tmp_path / 'o.zarr')
  with volume.open_stack(tmp_path / 'o.zarr') as stack:
    assert stack.metadata['resolution'] == pytest.approx((250, 200))
    assert stack.metadata['unit'] == 'µm'
    assert stack.metadata['spacing'] == pytest.approx(0.05)
  assert not (pathlib.Path(tmp_path) / 'o.zarr/normalisation').exists()


def test_the_block_is_chosen_from_the_memory():
  tiling = tiling_lib.Tiling((1024, 1024), 512, 200)
  grid = pixel_grid.Grid((4096, 5000), (4096, 5000))
  demand = blocks.Demand((320, 4096, 5000), 1, 1, tiling, grid)
  small = dataclasses.replace(demand, shape=(32, 500, 500))
  found = {}
  for memory in (0.8, 1, 2, 4, 64):
    used = 4 * 10**8
    block = blocks.choose(demand, memory * 1e9, used, 1)
    assert used + demand.bytes_of(block) <= memory * 1e9
    found[memory] = block
  assert found == {
    0.8: [2, 2048, 2560],
    1: [4, 2048, 2560],
    2: [2, 4096, 5120],
    4: [2, 4096, 5120],
    64: [2, 4096, 5120],
  }
  # Each of several processes has eight blocks of slices, if there are so many.
  for count, depth in ((1, 4), (2, 2), (4, 1), (32, 1)):
    assert blocks.choose(small, 64e9, 0, count)[0] == depth
  local = dataclasses.replace(demand, local=True)
  with pytest.raises(errors.InputError, match='local needs whole slices'):
    blocks.choose(local, 1.5e9, 0, 1)
  cells = dataclasses.replace(demand, cells='multicut')
  with pytest.raises(errors.InputError, match='leave out --segmentation'):
    blocks.choose(cells, 1.5e9, 0, 1)
  with pytest.raises(errors.InputError, match=r'is 0\.1, but a block'):
    blocks.choose(demand, 1e8, 0, 1)


def test_a_name_may_end_in_a_slash(small_blocks, tmp_path, zarr_source):
  predict(Fake(), zarr_source, f'{tmp_path}/out.zarr/')
  assert (tmp_path / 'out.zarr/zarr.json').exists()
