"""`python -m skipnet_jax.predict`: files in, files out, and what it refuses."""

import json
import pathlib
import shutil

import made_runs
from made_volumes import write_ome
import numpy as np
from PIL import Image
import pytest
from skimage import transform
import tifffile

from skipnet_jax.data import volume
from skipnet_jax.prediction import blocks
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import trained
from skipnet_jax.scores import thinning


@pytest.fixture(scope='module')
def state():
  return made_runs.small_state(made_runs.small_config())[1]


@pytest.fixture(scope='module')
def run(tmp_path_factory, state):
  return made_runs.make_run(tmp_path_factory.mktemp('predict') / 'run', state)


def stack(path, *shape, **metadata):
  pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
  volume.write_stack(path, pixels, metadata)
  return pixels


def predict(command, run, source, *arguments):
  """Predicts `source` to out.tif beside it."""
  output = source.parent / 'out.tif'
  done = command(
    'predict',
    f'--workdir={run}',
    f'--input={source}',
    f'--output={output}',
    *arguments,
  )
  return done, output


def refused(done, output, *words):
  assert done.code == 2, done.err
  assert done.err.startswith('error: ')
  assert done.err.count('\n') == 1
  for word in words:
    assert word in done.err
  assert not [p.name for p in output.parent.iterdir() if '.part' in p.name]
  return done


def test_writes_what_the_network_says(command, run, tmp_path):
  source = tmp_path / 'in.tif'
  pixels = stack(
    source,
    3,
    50,
    71,
    resolution=(250, 250),
    resolutionunit=3,
    unit='micron',
    spacing=0.05,
    info='made by hand',
  )
  labels = tmp_path / 'labels.tif'
  done, output = predict(command, run, source, f'--segmentation={labels}')
  assert done.code == 0, done.err

  found = trained.open_run(run)
  predictor = run_predictor.make_predictor([found])
  tiling = predictor.tiling((50, 71))
  expected = np.stack([predictor(page, tiling)[0] for page in pixels])
  with volume.open_stack(output) as written:
    assert written.dtype == np.float32
    assert np.array_equal(written.read_all(), expected)
    assert written.metadata['axes'] == 'ZYX'
    assert written.metadata['resolution'] == pytest.approx((250, 250))
    assert written.metadata['unit'] == 'micron'
    assert written.metadata['spacing'] == pytest.approx(0.05)
    assert written.metadata['info'] == 'made by hand'
  with tifffile.TiffFile(output) as file:
    assert file.is_imagej
    assert file.imagej_metadata['slices'] == 3
  segments = tifffile.imread(labels)
  assert segments.dtype == np.uint16
  with tifffile.TiffFile(labels) as file:
    assert file.is_imagej
    assert file.imagej_metadata['unit'] == 'micron'
  for page, labelled in zip(expected, segments, strict=True):
    assert np.array_equal(labelled, thinning.thin_borders(page > 0.5))

  lines = done.out.splitlines()
  assert lines[0].startswith('Nothing is resampled: the pixel size that')
  assert lines[1].startswith(f'{output}: 3 x 50 x 71 float32, 1 inside')
  assert f'{labels}: uint16 labels of each slice, 0 on borders' in done.out
  assert (
    f'threshold 0.5 (the default, as {run} has no scores of this network)'
    in done.out
  )
  assert f'by {run}, trained on synthetic 6x64x64, best after epoch 1' in lines
  assert lines[-1].startswith('SYNTHETIC DATA: ')
  assert done.err == ''


@pytest.mark.parametrize(
  ('files', 'options', 'expected'),
  [
    ({'summary.json': 0.7}, (), 0.7),
    ({'summary.json': 0.7, 'scores.json': 0.3}, (), 0.3),
    ({'summary.json': 0.7}, ('--threshold=0.6',), 0.6),
    # Of an earlier checkpoint, and of another network.
    ({'summary.json': 0.7, 'scores.json': (0.3, {'best_epoch': 0})}, (), 0.7),
    ({'summary.json': (0.3, {'best_epoch': 0})}, (), 0.5),
    ({'scores.json': (0.3, {'network': 'f' * 16})}, (), 0.5),
  ],
)
def test_the_threshold_is_that_of_the_runs_scores(
  command, run, tmp_path, files, options, expected
):
  trained = tmp_path / 'run'
  shutil.copytree(run, trained)
  for name, threshold in files.items():
    value, more = threshold if isinstance(threshold, tuple) else (threshold, {})
    content = {'threshold_v_rand': value, **more}
    (trained / name).write_text(json.dumps(content))
  source, labels = tmp_path / 'in.tif', tmp_path / 'labels.tif'
  stack(source, 1, 32, 32)
  done, _ = predict(
    command, trained, source, f'--segmentation={labels}', *options
  )
  assert done.code == 0, done.err
  assert f'at threshold {expected} (' in done.out


@pytest.mark.parametrize('shape', [(1, 33, 20), (1, 1, 31), (2, 100, 37)])
def test_any_size_in_tiles(command, run, tmp_path, shape):
  source, std = tmp_path / 'in.tif', tmp_path / 'std.tif'
  stack(source, *shape)
  done, output = predict(
    command,
    run,
    source,
    '--tile=64',
    '--tta',
    '--mc_samples=2',
    f'--std_output={std}',
  )
  assert done.code == 0, done.err
  for path in (output, std):
    pixels = tifffile.imread(path).reshape(shape)
    assert pixels.dtype == np.float32
    assert 0 < pixels.max() <= 1
  assert ('Tiles of 64 pixels overlap' in done.out) == (max(shape) > 64)
  assert '16 prediction(s) averaged' in done.out


def test_the_chosen_channel_with_its_pixel_size(command, run, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32), np.uint8)
  source, alone = tmp_path / 'in.tif', tmp_path / 'alone.tif'
  tifffile.imwrite(
    source,
    pixels,
    ome=True,
    metadata={
      'axes': 'CZYX',
      'PhysicalSizeX': 4.0,
      'PhysicalSizeXUnit': 'nm',
      'PhysicalSizeY': 4.0,
      'PhysicalSizeYUnit': 'nm',
      'PhysicalSizeZ': 0.05,
    },
    photometric='minisblack',
  )
  refused(*predict(command, run, source), '2 channels', '--channel=1')
  refused(*predict(command, run, source, '--series=2'), '--series is 2')
  volume.write_stack(alone, pixels[1])
  done, output = predict(command, run, alone)
  assert done.code == 0, done.err
  expected = tifffile.imread(output)
  done, output = predict(command, run, source, '--channel=2', '--overwrite')
  assert done.code == 0, done.err
  np.testing.assert_array_equal(tifffile.imread(output), expected)
  with volume.open_stack(output) as written:
    found = written.metadata
  assert found.pop('resolution') == pytest.approx((0.25, 0.25))
  assert found.pop('spacing') == pytest.approx(50)
  assert found == {'axes': 'ZYX', 'resolutionunit': 1, 'unit': 'nm'}


def test_pixels_of_another_size(command, run, tmp_path):
  fine_run = shutil.copytree(run, tmp_path / 'run')
  content = json.loads((fine_run / 'config.json').read_text())
  content['dataset']['pixel_size'] = 4.0
  (fine_run / 'config.json').write_text(json.dumps(content))
  source, picture = tmp_path / 'in.png', tmp_path / 'cells.png'
  # Twice as many pixels on each side are what training would have had.
  coarse = np.random.default_rng(0).integers(0, 255, (40, 33), np.uint8)
  Image.fromarray(coarse).save(source)
  table = tmp_path / 'cells.csv'
  done, output = predict(
    command,
    fine_run,
    source,
    '--pixel_size=8',
    f'--overlay={picture}',
    f'--measure={table}',
    '--method=threshold',
  )
  assert done.code == 0, done.err
  assert 'a slice has 80 x 66 pixels instead of 40 x 33' in done.out
  predictor = run_predictor.make_predictor([trained.open_run(run)])
  fine = transform.resize(
    coarse.astype(np.float32), (80, 66), order=1, mode='symmetric'
  )
  fine = np.rint(fine).astype(np.uint8)
  expected, _ = predictor(fine, predictor.tiling((80, 66)))
  expected = transform.resize(
    expected, (40, 33), order=1, mode='symmetric', anti_aliasing=True
  )
  found = tifffile.imread(output)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  regions = thinning.thin_borders(found > 0.5)
  assert (
    (np.array(Image.open(picture))[..., 0] == 0xF0) >= (regions == 0)
  ).all()
  rows = table.read_text().splitlines()[1:]
  assert len(rows) == regions.max()
  assert [row.split(',')[3] for row in rows] == [
    str(64.0 * area) for area in np.bincount(regions.ravel())[1:]
  ]


def test_a_volume_has_the_bits_of_a_stack(command, run, tmp_path, monkeypatch):
  # Of this process it would be that of all tests before.
  monkeypatch.setattr(blocks, 'peak_memory', lambda: 0)
  volume_in, source = tmp_path / 'in.zarr', tmp_path / 'in.tif'
  pixels = stack(source, 3, 50, 140)
  write_ome(volume_in, pixels[None], axes='czyx', chunk=(1, 2, 32, 64))
  (volume_in / '0/c/0/1/0/2').unlink()
  pixels[2, :32, 128:] = 0
  volume.write_stack(source, pixels, overwrite=True)
  done, tiff = predict(command, run, source, '--tile=64', '--overlap=32')
  assert done.code == 0, done.err
  output, cells = tmp_path / 'out.zarr', tmp_path / 'cells.zarr'
  arguments = (
    *(f'--output={output}', f'--segmentation={cells}'),
    *('--tile=64', '--overlap=32', '--num_shards=2'),
  )
  # Slices 0 and 2 are the first one's.
  for shard in (1, 0):
    done, _ = predict(
      command, run, volume_in, *arguments, f'--shard_id={shard}'
    )
    assert done.code == 0, done.err
  assert f'{output}: 3 of 3 blocks of 1 slices are finished' in done.out
  assert 'chunks, which count as its fill value, in slices 2 (' in done.out
  assert f'{cells}: uint32 labels of each slice, 0 on borders' in done.out
  expected = tifffile.imread(tiff)
  with volume.open_stack(output) as written:
    np.testing.assert_array_equal(written.read_all(), expected)
  with volume.open_stack(cells, dtypes=('uint32',)) as written:
    for page, found in zip(expected, written, strict=True):
      np.testing.assert_array_equal(found, thinning.thin_borders(page > 0.5))
  # The same again predicts nothing; other flags are refused.
  done, _ = predict(command, run, volume_in, *arguments, '--shard_id=0')
  assert '3 of 3 blocks' in done.out

  def refuses(*given, words):
    done, _ = predict(command, run, volume_in, *given)
    refused(done, output, *words)

  refuses(*arguments, words=['--shard_id and --num_shards go together'])
  refuses(f'--output={output}', '--tta', words=['averaging', 'tile'])
  refuses(f'--output={output}', '--overwrite', words=['--overwrite goes'])
  refuses('--memory_gb=1', words=['--memory_gb goes with --output=NAME.zarr'])
  refuses('--time=2', words=['--time is 2'])
  refuses(
    *(f'--output={tmp_path}/new.zarr', '--memory_gb=0.1'),
    words=['--memory_gb is 0.1', 'GB', 'give --memory_gb='],
  )
  assert not (tmp_path / 'new.zarr').exists()


def test_a_folder_of_png_is_a_stack(command, run, tmp_path):
  folder = tmp_path / 'slices'
  folder.mkdir()
  for z in (9, 10):
    Image.fromarray(np.full((40, 32), z, np.uint8)).save(folder / f's{z}.png')
  done, output = predict(command, run, folder)
  assert done.code == 0, done.err
  assert tifffile.imread(output).shape == (2, 40, 32)


def test_several_runs_are_averaged(command, run, tmp_path):
  other = made_runs.make_run(tmp_path / 'other', seed=1)
  source, std = tmp_path / 'in.tif', tmp_path / 'std.tif'
  stack(source, 1, 32, 64)
  pages = []
  for chosen in (run, other, f'{run},{other}'):
    done, output = predict(command, chosen, source, '--overwrite')
    assert done.code == 0, done.err
    pages.append(tifffile.imread(output))
  first, second, both = pages
  assert np.abs(first - second).max() > 0.1
  np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)
  assert done.out.count(', trained on synthetic') == 2
  (other / 'calibration.json').touch()
  done, _ = predict(command, f'{run},{other}', source, '--overwrite')
  words = f'{other}/calibration.json is not used, as several runs are averaged'
  assert words in done.out
  done, output = predict(
    command, f'{run},{other}', source, '--overwrite', f'--std_output={std}'
  )
  np.testing.assert_allclose(
    tifffile.imread(std), np.abs(first - second) / 2, atol=1e-5
  )


def test_threshold_of_the_scores(command, run, tmp_path):
  copy = shutil.copytree(run, tmp_path / 'run')
  scores = {'threshold_v_rand': 0.3, 'plain': {'threshold_v_rand': 0.7}}
  (copy / 'scores.json').write_text(json.dumps(scores))
  source, labels = tmp_path / 'in.tif', tmp_path / 'l.tif'
  stack(source, 1, 32, 32)
  for arguments, threshold in (
    ([], 0.7),
    (['--tta'], 0.3),
    (['--threshold=0.9999999999999999'], 0.9999999999999999),
  ):
    done, output = predict(
      command,
      copy,
      source,
      '--overwrite',
      f'--segmentation={labels}',
      *arguments,
    )
    assert f'at threshold {threshold} (' in done.out
    # The last threshold of the scores is below 1, in float64.
    inside = tifffile.imread(output).astype(float) > threshold
    assert np.array_equal(
      tifffile.imread(labels), thinning.thin_borders(inside)
    )
  (copy / 'scores.json').write_text('{}')
  done, output = predict(command, copy, source, '--overwrite')
  refused(done, output, 'threshold_v_rand', '--threshold')


def test_refuses_before_it_compiles(command, run, tmp_path, monkeypatch):
  def never(*_):
    raise AssertionError('compiled')

  monkeypatch.setattr(inference, 'predict_tile', never)
  monkeypatch.setattr(inference.Predictor, 'receptive_field', never)
  source, output = tmp_path / 'in.tif', tmp_path / 'out.tif'
  stack(source, 2, 64, 96)
  output.write_bytes(b'mine')
  refused(*predict(command, run, source), 'out.tif', '--overwrite')
  refused(
    *predict(command, run, source, f'--segmentation={output}', '--overwrite'),
    'named twice',
  )
  again = f'--output={source}'
  refused(
    *predict(command, run, source, again, '--overwrite'), 'in.tif', 'reads'
  )
  assert output.read_bytes() == b'mine'
  output.unlink()

  def refuses(*arguments, words, source=source, run=run):
    refused(*predict(command, run, source, *arguments), *words)
    assert not output.exists()

  refuses('--tile=100', words=['--tile is 100', '96'])
  refuses('--tile=64', '--overlap=60', words=['--overlap is 60', '0 to 32'])
  refuses('--tile=64', '--overlap=-4', words=['--overlap is -4'])
  refuses('--mc_samples=-1', words=['--mc_samples is -1'])
  cells = f'--measure={tmp_path}/cells.csv'
  refuses('--threshold=1.5', cells, words=['--threshold is 1.5', '0..1'])
  refuses('--threshold=0.5', words=['--threshold goes with', '--overlay'])
  refuses('--pixel_size=0', words=['--pixel_size is 0', 'nanometres'])
  refuses('--pixel_size=nan', words=['--pixel_size is nan'])
  refuses('--pixel_size=big', words=['pixel_size'])
  refuses('--link', words=['--link', '--overlay'])
  both = f'--overlay={output}'
  refuses(both, words=['out.tif', 'named twice'])
  refuses(f'--overlay={tmp_path}/a.png', words=['a.png', 'in.tif has 2'])
  refuses(f'--measure={tmp_path}/a.xls', words=['a.xls', '.csv'])
  refuses('--std_output=s.tif', words=['--std_output', '--tta'])
  refuses(f'--output={tmp_path}/no/out.tif', words=['no/out.tif', 'folder'])
  refuses(f'--output={tmp_path}/out.png', words=['out.png', '.tif'])
  refuses('--mc_samples=x', words=['mc_samples'])
  refuses(words=['nothing.tif'], source=tmp_path / 'nothing.tif')
  refuses(words=['nowhere', '--workdir'], run=tmp_path / 'nowhere')
  refuses('out.tif', words=['Unknown argument'])

  rgb = tmp_path / 'rgb.tif'
  tifffile.imwrite(rgb, np.zeros((2, 8, 9, 3), np.uint8), photometric='rgb')
  refuses(words=['rgb.tif', '(y, x)'], source=rgb)
  short = tmp_path / 'short.tif'
  short.write_bytes(source.read_bytes()[:-200])
  refuses(words=['short.tif', 'cut short'], source=short)
  holes = np.zeros((3, 8, 8), np.float32)
  holes[2, 1, 4] = np.nan
  volume.write_stack(tmp_path / 'nan.tif', holes)
  usage = shutil.disk_usage('/')._replace(free=50_000)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda _: usage)
    refuses(
      f'--overlay={tmp_path}/a.tif',
      f'--segmentation={tmp_path}/b.tif',
      words=['5e-05 GB free', 'need 0.000111 GB', 'NAME.zarr'],
    )
    refuses('--tta', f'--std_output={tmp_path}/s.tif', words=['need 9.83e-05'])
  refuses(words=['nan.tif', 'slice 3', 'column 4'], source=tmp_path / 'nan.tif')


@pytest.mark.parametrize('flag', ['workdir', 'input', 'output'])
def test_refuses_a_missing_flag(command, flag):
  given = {'workdir': 'w', 'input': 'i.tif', 'output': 'o.tif'}
  del given[flag]
  done = command('predict', *(f'--{k}={v}' for k, v in given.items()))
  assert done.code == 2
  said = f'No --{flag} given; give one: '
  if flag == 'workdir':
    said = 'Give either --workdir, a run of your own, or --pretrained, '
  assert done.err.startswith(f'error: {said}')


def test_refuses_a_run_and_a_pretrained_network(command):
  given = (
    '--workdir=w',
    '--pretrained=em_membranes',
    '--input=i',
    '--output=o',
  )
  done = command('predict', *given)
  assert done.code == 2
  assert 'Give either --workdir' in done.err


def test_refuses_runs_that_do_not_fit(command, run, state, tmp_path):
  source = tmp_path / 'in.tif'
  stack(source, 1, 32, 32)

  def copy(name, **changes):
    to = pathlib.Path(shutil.copytree(run, tmp_path / name))
    content = json.loads((to / 'config.json').read_text())
    content['config']['model'] |= changes
    (to / 'config.json').write_text(json.dumps(content))
    return to

  wider = copy('wider', base_width=8)
  refused(
    *predict(command, wider, source),
    'wider',
    'config.json',
    'is float32 (32,), and float32 (64,) is needed',
  )
  deeper = copy('deeper', repetitions=[1, 1, 1, 3, 1, 1, 1])
  refused(
    *predict(command, deeper, source),
    'deeper',
    'params.across.block_3',
    'is missing',
  )
  refused(
    *predict(command, f'{run},{copy("dry", dropout=0.0)}', source),
    'model.dropout (0.3, now 0.0)',
  )
  refused(
    *predict(command, tmp_path / 'dry', source, '--mc_samples=3'),
    '--mc_samples is 3',
    'model.dropout is 0',
  )
  for parts in ('checkpoints/best', 'checkpoints'):
    shutil.rmtree(tmp_path / 'dry' / parts)
    done, output = predict(command, tmp_path / 'dry', source)
    refused(done, output, 'dry', 'no best checkpoint')
    assert not (tmp_path / 'dry' / parts).exists()
  torn = copy('torn')
  checkpoint.Checkpoints(torn).close()
  for path in torn.glob('checkpoints/*/4/state/**/*'):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:100])
  refused(*predict(command, torn, source), 'torn', 'damaged')
