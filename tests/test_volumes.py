"""Prediction of volumes in blocks: equal, resumed, shared, within a memory."""

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import types

from made_volumes import make_pixels
from made_volumes import write_ome
import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import normalisation
from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import cell_volumes
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction import stacks
from skipnet_jax.prediction import tiling as tiling_lib
from skipnet_jax.prediction import volumes
from skipnet_jax.prediction.cells import linking


class Fake(inference.Predictor):
  """Predicts what depends on all pixels of a tile, and on the order of slices.

  Args:
    tile: side of a tile.
    slices: of the input.
    normalise: see `Predictor`.
  """

  def __init__(self, tile=64, slices=1, normalise='slice'):
    self._tile, self.slices, self.normalise = tile, slices, normalise
    self._variables, self._keys, self._turns = [0], [0], 1
    self.multiple, self.tiles = 32, 0

  def tiling(self, size, *_):
    sides = [min(self._tile, tiling_lib.round_up(n, 32)) for n in size]
    return tiling_lib.Tiling(tuple(sides), self._tile // 2, 8)

  def compile(self, tiling):
    pass

  def _averages(self, tiles, advance):
    for tile in tiles:
      self.tiles += 1
      advance()
      mixed = tile @ np.arange(1, self.slices + 1, dtype=np.float32)
      mean = np.cumsum(mixed, 1) + np.cumsum(mixed[::-1], 0)
      yield 1 / (1 + np.exp(-mean / 8)), np.abs(mixed)


@pytest.fixture
def small_blocks(monkeypatch):
  """Volumes of small chunks and blocks; chooses those of the next volume."""
  monkeypatch.setattr(ome_zarr_writer, 'CHUNK', 32)
  monkeypatch.setattr(ome_zarr_metadata, 'COARSEST', 40)
  monkeypatch.setattr(blocks, 'peak_memory', lambda: 0)

  def choose(*block):
    monkeypatch.setattr(blocks, 'choose', lambda *_: list(block))

  choose(2, 128, 160)
  return choose


def settings(source):
  choice = volume.Choice()
  return {
    'input': str(source.path),
    'level': choice.level,
  }


def predict(predictor, path, output, **options):
  with volume.open_stack(path) as source:
    given = settings(source)
    return volumes.predict_volume(predictor, source, output, given, **options)


def read(path, level=0):
  with volume.open_stack(
    path,
    dtypes=('float32', 'uint32'),
    choice=volume.Choice(level=level),
  ) as stack:
    assert not stack.filled
    return stack.read_all()


@pytest.fixture
def source(tmp_path):
  pixels = make_pixels(5, 100, 150, dtype='uint16')
  return write_ome(
    *(tmp_path / 'in.zarr', pixels),
    scale=(40, 4, 4.6),
    unit='nanometer',
    chunk=(2, 40, 50),
  )


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
  small_blocks, tmp_path, source, slices, version, normalise, network
):
  grid = pixel_grid.Grid((100, 150), network)
  with volume.open_stack(source) as opened:
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
      *(Fake(slices=slices, normalise=normalise), source, out),
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


def test_levels_and_their_metadata(small_blocks, tmp_path, source):
  predict(Fake(), source, tmp_path / 'out.zarr')
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


def test_cells_are_those_of_whole_slices(small_blocks, tmp_path, source):
  by = segmenters.ByThreshold(0.4)
  predict(
    *(Fake(), source, tmp_path / 'out.zarr'),
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
  small_blocks, tmp_path, source, link, monkeypatch
):
  with volume.open_stack(source) as opened:
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
  line = predict(Fake(), source, output, shards=shards, **options)
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
      predict(Fake(), source, output, **options)
  again = Fake()
  predict(again, source, output, **options)
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
  predict(Fake(), source, output, **options)
  table.write_text('mine')
  with pytest.raises(errors.InputError, match=r'csv exists and has other'):
    predict(Fake(), source, output, **options)


def _grid(page):
  return pixel_grid.Grid(page.shape, page.shape)


def files_of(path):
  return {
    str(p.relative_to(path)): p.read_bytes()
    for p in sorted(path.rglob('*'))
    if p.is_file()
  }


def test_a_volume_is_resumed_bit_for_bit(small_blocks, tmp_path, source):
  small_blocks(2, 64, 96)
  whole = Fake()
  (tmp_path / 'whole').mkdir()
  predict(whole, source, tmp_path / 'whole/out.zarr')
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
    predict(dying, source, output)
  left = files_of(output)
  assert 0 < sum(name.startswith('0/c/') for name in left) < 12
  # A half written file has another name.
  (output / '0/c/2').mkdir(parents=True, exist_ok=True)
  (output / '0/c/2/0').mkdir()
  (output / '0/c/2/0/0.__lock').write_bytes(b'half')
  again = Fake()
  line = predict(again, source, output)
  assert '3 of 3' in line
  assert again.tiles < whole.tiles
  found = files_of(output)
  found.pop('0/c/2/0/0.__lock', None)
  assert found == expected
  # All is there: nothing is predicted, and one lost file is made again.
  lost = output / '1/c/1/0/0'
  lost.unlink()
  last = Fake()
  predict(last, source, output)
  assert last.tiles == 0
  assert lost.read_bytes() == expected['1/c/1/0/0']


def test_statistics_are_kept(small_blocks, tmp_path, source, monkeypatch):
  output = tmp_path / 'out.zarr'
  predict(Fake(slices=3), source, output, shards=volumes.Shards(0, 3))
  with monkeypatch.context() as patch:
    patch.setattr(normalisation, 'read_statistics', None)
    (output / '0/c/0/0/0').unlink()
    # Slice 2 belongs to another process, which has not begun.
    with pytest.raises(TypeError):
      predict(Fake(slices=3), source, output)
  predict(Fake(slices=3), source, output)
  shutil.rmtree(output / '0/c')
  monkeypatch.setattr(normalisation, 'read_statistics', None)
  predict(Fake(slices=3), source, output)


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


def test_processes_share_a_volume(small_blocks, tmp_path, source):
  output = tmp_path / 'out.zarr'
  lines = [
    predict(Fake(), source, output, shards=volumes.Shards(i, 2)) for i in (0, 1)
  ]
  assert '2 of 3 blocks' in lines[0]
  assert '3 of 3 blocks' in lines[1]
  predict(Fake(), source, tmp_path / 'alone.zarr')
  assert files_of(output).keys() == files_of(tmp_path / 'alone.zarr').keys()
  np.testing.assert_array_equal(read(output), read(tmp_path / 'alone.zarr'))


def test_a_slab_has_one_process(small_blocks, tmp_path, source):
  output, said = tmp_path / 'out.zarr', []
  predict(Fake(), source, output, shards=volumes.Shards(2, 3))
  slab = output / '0/c/1'
  slab.mkdir()
  held = os.open(slab, os.O_RDONLY)
  fcntl.flock(held, fcntl.LOCK_EX)
  line = predict(Fake(), source, output, log=said.append)
  assert '2 of 3' in line
  assert 'Slices 2-3' in said[-1]
  os.close(held)
  assert '3 of 3' in predict(Fake(), source, output)


def test_another_process_may_begin_first(
  small_blocks, tmp_path, source, monkeypatch
):
  output = tmp_path / 'out.zarr'

  def late(*_):
    small_blocks(2, 64, 96)
    predict(Fake(), source, output, shards=volumes.Shards(0, 3))
    return [1, 128, 160]

  monkeypatch.setattr(blocks, 'choose', late)
  line = predict(Fake(), source, output, shards=volumes.Shards(1, 3))
  assert '2 of 3 blocks of 2 slices' in line


def test_refusals(small_blocks, tmp_path, source, monkeypatch):
  output = tmp_path / 'out.zarr'

  def refused(*words, path=output, **options):
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(errors.InputError) as caught:
      predict(Fake(), source, path, **options)
    for word in words:
      assert word in str(caught.value)
    assert '\n' not in str(caught.value)
    assert sorted(tmp_path.rglob('*')) == before

  shards = volumes.Shards
  refused('--num_shards is 6', 'at most 5', shards=shards(0, 6))
  refused('named twice', std_output=output)
  refused('lies in another', path=source / 'out.zarr')
  refused('named twice', path=source)
  refused('no folder', path=tmp_path / 'no folder/out.zarr')
  files = cell_files.CellFiles
  cells = files(tmp_path / 'cells.tif')
  refused('a local or shared folder', cells=cells)
  cells = files(overlay=tmp_path / 'cells.zarr', measure=tmp_path / 'cells.csv')
  refused('name a --segmentation', cells=cells)
  cells = files(tmp_path / 'c.zarr', measure=tmp_path / 'nowhere' / 'c.csv')
  refused('nowhere does not exist', cells=cells)
  cells = files(tmp_path / 'c.zarr', measure=tmp_path / ('c' * 300 + '.csv'))
  refused('is too long', cells=cells)
  cells = files(tmp_path / 'c.zarr', measure=source / 'c.csv')
  refused('lies in another', cells=cells)
  (tmp_path / 'mine.csv').touch()
  cells = files(tmp_path / 'cells.zarr', measure=tmp_path / 'mine.csv')
  refused('mine.csv exists', cells=cells)
  cells = files(tmp_path / 'cells.zarr', measure=tmp_path / 'mine.txt')
  refused('must end in .csv', cells=cells)
  refused('write s3://b/out.zarr: with', path='s3://b/out.zarr')
  other = tmp_path / 'other.zarr'
  other.mkdir()
  (other / 'mine').touch()
  refused('other.zarr exists', path=other)
  for bad in ((2, 2), (-1, 2), (0, 0)):
    with pytest.raises(errors.InputError, match='--shard_id is'):
      shards(*bad)
  with pytest.raises(errors.InputError, match='--memory_gb is nan'):
    shards(memory_gb=float('nan'))
  with monkeypatch.context() as patch:
    full = types.SimpleNamespace(free=3000)
    patch.setattr(shutil, 'disk_usage', lambda _: full)
    refused('has 3e-06 GB free', 'about 0.00028 GB (0.0004 GB before')
  predict(Fake(), source, output, shards=shards(0, 3))
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda _: full)
    warned = []
    # Three of five slices are missing, at all levels.
    predict(Fake(), source, output, shards=shards(1, 3), log=warned.append)
    assert 'about 0.000165 GB (0.000236 GB before compression). If' in warned[0]
    for path in (output / '0/c/1', output / '1/c/1', output / '2/c/1'):
      shutil.rmtree(path)
  refused('other settings', 'tile (0, now 32)', tile=32)
  refused('other settings', "ome_zarr ('0.5', now '0.4')", version='0.4')
  refused('--num_shards is 4', 'at most 3', shards=shards(0, 4))
  refused('--memory_gb is', 'block of 2', shards=shards(1, 3, 1e-6))
  content = json.loads((output / 'zarr.json').read_text())
  content['attributes']['skipnet_jax']['shape'] = [5, 100, 151]
  (output / 'zarr.json').write_text(json.dumps(content))
  refused('shape ([5, 100, 151], now [5, 100, 150])')
  volume.write_stack(tmp_path / 'in.tif', make_pixels(1, 40, 40))
  with pytest.raises(errors.InputError, match='needs 3 at a time'):
    predict(Fake(slices=3), tmp_path / 'in.tif', tmp_path / 'b.zarr')


@pytest.mark.zarr_peer
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('version', ['0.5', '0.4'])
def test_other_libraries_read_and_check_it(
  small_blocks, tmp_path, source, version
):
  from ome_zarr import io
  from ome_zarr import reader
  import ome_zarr_models
  import zarr

  output = tmp_path / 'out.zarr'
  cells = cells_of(tmp_path, '.zarr', link=True)
  predict(Fake(), source, output, version=version, cells=cells)
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


def test_cells_are_not_found_in_parts_of_a_slice(
  small_blocks, tmp_path, source
):
  small_blocks(2, 64, 96)
  output = tmp_path / 'out.zarr'
  predict(Fake(), source, output)
  cells = cell_files.CellFiles(tmp_path / 'cells.zarr')
  with pytest.raises(errors.InputError, match=r'64 x 96 .* slices, 100 x 150'):
    predict(Fake(), source, output, cells=cells)
  assert not (tmp_path / 'cells.zarr').exists()


def test_another_process_may_begin_in_parts_of_a_slice(
  small_blocks, tmp_path, source, monkeypatch
):
  output = tmp_path / 'out.zarr'

  def late(*_):
    small_blocks(2, 64, 96)
    predict(Fake(), source, output)
    return [2, 128, 160]

  monkeypatch.setattr(blocks, 'choose', late)
  cells = cell_files.CellFiles(tmp_path / 'cells.zarr')
  with pytest.raises(errors.InputError, match='begun in blocks of 64 x 96'):
    predict(Fake(), source, output, cells=cells)


def test_a_changed_input_is_another_one(tmp_path, source):
  def state(path):
    with volume.open_stack(path) as opened:
      given = volumes.settings_of(
        opened, volume.Choice(), [], fitted.Averaging(), None
      )
    return given['input_modified']

  tiff = tmp_path / 'in.tif'
  volume.write_stack(tiff, make_pixels(3, 40, 40))
  folder = tmp_path / 'slices'
  folder.mkdir()
  for z in range(2):
    volume.write_stack(folder / f'z{z}.tif', make_pixels(1, 40, 40))
  described = [*source.glob('*/.zarray'), *source.glob('*/zarr.json')]
  for path, changed in (
    (tiff, tiff),
    (folder, folder / 'z1.tif'),
    (source, described[0]),
  ):
    before = state(path)
    assert state(path) == before != ''
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert state(path) != before


def test_settings_tell_segmenters_apart(small_blocks, tmp_path, source):
  output, labels = tmp_path / 'out.zarr', tmp_path / 'cells.zarr'

  def predict_cells(threshold, origin=''):
    segmenter = segmenters.ByThreshold(threshold, origin)
    cells = cell_files.CellFiles(labels, segmenter=segmenter)
    return predict(Fake(), source, output, cells=cells)

  predict_cells(0.9996, 'runs/a/scores.json')
  # Where the threshold comes from does not matter.
  predict_cells(0.9996, '/home/runs/a/scores.json')
  with pytest.raises(errors.InputError, match='other settings'):
    predict_cells(0.99999)
  assert segmenters.ByThreshold(0.99999).how == 'at threshold 0.99999'
  assert segmenters.ByThreshold(0.87654).how == 'at threshold 0.877'


@pytest.mark.parametrize('network', [(100, 150), (140, 120)])
def test_pixels_that_are_not_finite_are_named(small_blocks, tmp_path, network):
  pixels = make_pixels(6, 100, 150).astype(np.float32)
  pixels[4, 70, 80] = np.nan
  volume.write_stack(tmp_path / 'in.tif', pixels)
  grid = pixel_grid.Grid((100, 150), network)
  for normalise in ('local', 'slice'):
    with pytest.raises(
      errors.InputError, match=r'in\.tif has 1 .* slice 5 .* row 70, column 80'
    ):
      predict(
        Fake(normalise=normalise),
        tmp_path / 'in.tif',
        tmp_path / f'{normalise}.zarr',
        grid=grid,
      )


def test_a_name_may_end_in_a_slash(small_blocks, tmp_path, source):
  predict(Fake(), source, f'{tmp_path}/out.zarr/')
  assert (tmp_path / 'out.zarr/zarr.json').exists()


def test_no_tiff_is_written_into_a_volume(source):
  with (
    volume.open_stack(source) as opened,
    pytest.raises(errors.InputError, match=r'lie in the volume .*in\.zarr'),
  ):
    stacks.predict_stack(Fake(), opened, source / '0' / 'out.tif')
