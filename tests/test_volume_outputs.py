"""Volumes that are refused, and what tells one prediction from another."""

import json
import os
import shutil
import types

from fake_predictor import Fake
from fake_predictor import predict
from made_volumes import make_pixels
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import pixel_grid
from skipnet_jax.prediction import segmenters
from skipnet_jax.prediction import stacks
from skipnet_jax.prediction import volume_outputs
from skipnet_jax.prediction import volumes


def test_refusals(small_blocks, tmp_path, zarr_source, monkeypatch):
  output = tmp_path / 'out.zarr'

  def refused(*words, path=output, **options):
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(errors.InputError) as caught:
      predict(Fake(), zarr_source, path, **options)
    for word in words:
      assert word in str(caught.value)
    assert '\n' not in str(caught.value)
    assert sorted(tmp_path.rglob('*')) == before

  shards = volumes.Shards
  refused('--num_shards is 6', 'at most 5', shards=shards(0, 6))
  refused('named twice', std_output=output)
  refused('lies in another', path=zarr_source / 'out.zarr')
  refused('named twice', path=zarr_source)
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
  cells = files(tmp_path / 'c.zarr', measure=zarr_source / 'c.csv')
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
  predict(Fake(), zarr_source, output, shards=shards(0, 3))
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda _: full)
    warned = []
    # Three of five slices are missing, at all levels.
    predict(Fake(), zarr_source, output, shards=shards(1, 3), log=warned.append)
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


def test_cells_are_not_found_in_parts_of_a_slice(
  small_blocks, tmp_path, zarr_source
):
  small_blocks(2, 64, 96)
  output = tmp_path / 'out.zarr'
  predict(Fake(), zarr_source, output)
  cells = cell_files.CellFiles(tmp_path / 'cells.zarr')
  with pytest.raises(errors.InputError, match=r'64 x 96 .* slices, 100 x 150'):
    predict(Fake(), zarr_source, output, cells=cells)
  assert not (tmp_path / 'cells.zarr').exists()


def test_another_process_may_begin_in_parts_of_a_slice(
  small_blocks, tmp_path, zarr_source, monkeypatch
):
  output = tmp_path / 'out.zarr'

  def late(*_):
    small_blocks(2, 64, 96)
    predict(Fake(), zarr_source, output)
    return [2, 128, 160]

  monkeypatch.setattr(blocks, 'choose', late)
  cells = cell_files.CellFiles(tmp_path / 'cells.zarr')
  with pytest.raises(errors.InputError, match='begun in blocks of 64 x 96'):
    predict(Fake(), zarr_source, output, cells=cells)


def test_a_changed_input_is_another_one(tmp_path, zarr_source):
  def state(path):
    with volume.open_stack(path) as opened:
      given = volume_outputs.settings_of(
        opened, volume.Choice(), [], fitted.Averaging(), None
      )
    return given['input_modified']

  tiff = tmp_path / 'in.tif'
  volume.write_stack(tiff, make_pixels(3, 40, 40))
  folder = tmp_path / 'slices'
  folder.mkdir()
  for z in range(2):
    volume.write_stack(folder / f'z{z}.tif', make_pixels(1, 40, 40))
  described = [*zarr_source.glob('*/.zarray'), *zarr_source.glob('*/zarr.json')]
  parts = {*zarr_source.glob('0/**/*')} - {*described}
  chunk = max(path for path in parts if path.is_file())
  for path, changed in (
    (tiff, tiff),
    (folder, folder / 'z1.tif'),
    (zarr_source, described[0]),
    (zarr_source, chunk),
  ):
    before = state(path)
    assert state(path) == before != ''
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert state(path) != before


def test_settings_tell_segmenters_apart(small_blocks, tmp_path, zarr_source):
  output, labels = tmp_path / 'out.zarr', tmp_path / 'cells.zarr'

  def predict_cells(threshold, origin=''):
    segmenter = segmenters.ByThreshold(threshold, origin)
    cells = cell_files.CellFiles(labels, segmenter=segmenter)
    return predict(Fake(), zarr_source, output, cells=cells)

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


def test_no_tiff_is_written_into_a_volume(zarr_source):
  with (
    volume.open_stack(zarr_source) as opened,
    pytest.raises(errors.InputError, match=r'lie in the volume .*in\.zarr'),
  ):
    stacks.predict_stack(Fake(), opened, zarr_source / '0' / 'out.tif')
