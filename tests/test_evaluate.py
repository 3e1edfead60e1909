"""`python -m skipnet_jax.evaluate`: a run or two files, and what it refuses."""

import json
import os

import made_runs
from made_volumes import write_ome
import numpy as np
from PIL import Image
import pytest
import scipy.ndimage
import tifffile

from skipnet_jax.data import ome_zarr_metadata
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.evaluation import scoring
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import trained
from skipnet_jax.scores import scores
from skipnet_jax.scores import thinning

CONTRACT = {
  *('v_rand', 'v_info', 'threshold_v_rand', 'threshold_v_info'),
  *('per_threshold', 'per_slice', 'pixel', 'seconds'),
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return made_runs.make_run(tmp_path_factory.mktemp('evaluate') / 'run')


@pytest.fixture
def pair():
  """A prediction and its labels, `[3, 40, 52]`."""
  rng = np.random.default_rng(3)
  field = scipy.ndimage.gaussian_filter(rng.normal(size=(3, 40, 52)), (0, 2, 2))
  inside = np.abs(field) > 0.05
  noisy = inside + rng.normal(0, 0.5, inside.shape)
  prediction = scipy.ndimage.gaussian_filter(noisy, (0, 1, 1)).clip(0, 1)
  return prediction.astype(np.float32), inside


@pytest.fixture
def score(command, tmp_path):
  """Writes a prediction and labels, and scores them."""

  def call(prediction, labels, *arguments):
    files = {'prediction': prediction, 'labels': labels}
    for name, content in files.items():
      files[name] = path = tmp_path / f'{name}.tif'
      if isinstance(content, np.ndarray):
        path.unlink(missing_ok=True)
        tifffile.imwrite(path, content, photometric='minisblack')
    return command(
      'evaluate',
      *(f'--{k}={v}' for k, v in files.items()),
      f'--output={tmp_path / "s.json"}',
      *arguments,
    )

  return call


def refused(done, *words):
  assert done.code == 2, done.err
  assert done.err.startswith('error: ')
  assert done.err.count('\n') == 1
  for word in words:
    assert word in done.err


def test_a_run_is_scored_as_its_training_did(command, finished, tmp_path):
  folder, _, summary = finished
  output = tmp_path / 's.json'
  done = command('evaluate', f'--workdir={folder}', f'--output={output}')
  assert done.code == 0, done.err
  found = json.loads(output.read_text())
  written = json.loads((folder / 'summary.json').read_text())
  for name in ('v_rand', 'v_info', 'dataset', 'best_epoch'):
    assert found[name] == summary[name] == written[name]


def test_scores_of_a_run(command, run, tmp_path):
  panels, output = tmp_path / 'panels', tmp_path / 's.json'
  done = command(
    'evaluate',
    f'--workdir={run}',
    '--mc_samples=3',
    '--tta',
    f'--panels={panels}',
    f'--output={output}',
  )
  assert done.code == 0, done.err
  found = json.loads(output.read_text())
  assert found.keys() >= CONTRACT | {'dataset', 'fingerprint', 'plain'}
  assert found['plain'].keys() == CONTRACT
  assert found['split'] == 'valid'
  assert [row['slice'] for row in found['per_slice']] == [4, 5]
  assert found['warning'].startswith('SYNTHETIC DATA')
  assert (found['mc_samples'], found['tta']) == (3, True)
  assert '3 samples x 8 orientations' in done.out
  assert '\nplain ' in done.out
  assert 'best V_rand' in done.out
  assert 'SYNTHETIC DATA' in done.err
  assert sorted(p.name for p in panels.iterdir()) == [
    'slice_004.png',
    'slice_005.png',
  ]
  with Image.open(tmp_path / 's.png') as curves:
    assert curves.size[0] > 500

  opened = trained.open_run(run)
  data = trained.load_data(opened)
  predictor = run_predictor.make_predictor([opened])
  tiling = predictor.tiling((64, 64))
  plain = np.stack([predictor(data.image[z], tiling)[0] for z in (4, 5)])
  expected = scores.for_json(scores.score_stack(plain, data.label[4:]))
  assert expected['per_threshold'] == found['plain']['per_threshold']
  averaged = run_predictor.make_predictor([opened], tta=True, mc_samples=3)
  page = averaged(data.image[4], tiling)[0]
  assert np.abs(page - plain[0]).max() > 1e-3

  done = command('evaluate', f'--workdir={run}', '--split=train')
  assert done.code == 0, done.err
  found = json.loads((run / 'scores_train.json').read_text())
  assert [row['slice'] for row in found['per_slice']] == [0, 1, 2, 3]
  assert 'plain' not in found


def test_refuses_a_run_before_it_compiles(command, run, tmp_path, monkeypatch):
  def never(*_):
    raise AssertionError('compiled')

  monkeypatch.setattr(inference, 'predict_tile', never)

  def refuses(*arguments, words):
    refused(command('evaluate', *arguments), *words)

  here = f'--workdir={run}'
  output = tmp_path / 's.json'
  given = f'--output={output}'
  output.write_text('mine')
  refuses(here, given, words=['s.json exists', '--overwrite'])
  output.rename(tmp_path / 's.png')
  refuses(here, given, words=['s.png exists'])
  (tmp_path / 's.png').unlink()
  (tmp_path / 'slice_004.png').write_text('mine')
  refuses(here, given, f'--panels={tmp_path}', words=['slice_004.png exists'])
  refuses(
    here, given, f'--panels={tmp_path}/slice_004.png', words=['name a folder']
  )
  below = f'--panels={tmp_path}/slice_004.png/below'
  refuses(here, given, below, words=['below of --panels cannot be made'])
  refuses(here, given, f'--panels={"x" * 300}', words=['is too long'])
  closed = tmp_path / 'closed'
  # Whoever is root may write anywhere.
  with monkeypatch.context() as patch:
    patch.setattr(os, 'access', lambda path, mode: path != closed)
    refuses(here, given, f'--panels={closed}', words=['--panels is not writ'])
  refuses(here, f'--output={"s" * 245}.json', words=['is too long'])
  refuses(here, '--output=s.txt', words=['.json'])
  refuses(here, '--output=no/s.json', words=['folder no'])
  refuses(here, given, '--split=test', words=["'test'", 'predict'])
  refuses(here, given, '--mc_samples=-2', words=['--mc_samples is -2'])
  refuses(here, '--prediction=p.tif', words=['either --workdir'])
  refuses(words=['either --workdir'])
  refuses(here, '--labels_kind=instances', words=['goes with --prediction'])
  refuses(here, '--labels=l.tif', words=['not a stack of your own'])
  refuses('--prediction=p.tif', words=['No --labels given'])
  refuses('--prediction=p.tif', '--labels=l.tif', words=['No --output given'])
  refuses(
    '--prediction=p.tif',
    '--labels=l.tif',
    given,
    '--tta',
    words=['--tta goes with --workdir'],
  )
  refuses(f'--workdir={tmp_path}', words=['config.json', '--workdir'])
  (tmp_path / 'config.json').write_text((run / 'config.json').read_text())
  refuses(f'--workdir={tmp_path}', words=['no best checkpoint'])
  content = json.loads((run / 'config.json').read_text())
  content['dataset']['fingerprint'] = '0-0'
  (tmp_path / 'config.json').write_text(json.dumps(content))
  (tmp_path / 'checkpoints').symlink_to(run / 'checkpoints')
  refuses(f'--workdir={tmp_path}', words=['trained on', 'SKIPNET_DATA_DIR'])
  content['config']['model']['base_width'] = 8
  (tmp_path / 'config.json').write_text(json.dumps(content))
  refuses(f'--workdir={tmp_path}', words=['is of another model'])


@pytest.mark.parametrize('slices', [3, 1])
def test_two_files(score, pair, tmp_path, slices):
  prediction, inside = (each[:slices] for each in pair)
  panels = tmp_path / 'panels'
  labels = inside.astype(np.uint8) * 255
  done = score(prediction, labels, f'--panels={panels}')
  assert done.code == 0, done.err
  assert done.err == ''
  found = json.loads((tmp_path / 's.json').read_text())
  expected = scores.for_json(scores.score_stack(prediction, inside))
  for name in CONTRACT - {'seconds'}:
    assert found[name] == expected[name]
  assert found['prediction'] == str(tmp_path / 'prediction.tif')
  assert found['labels'] == str(tmp_path / 'labels.tif')
  assert found['shape'] == [slices, 40, 52]
  assert len(list(panels.iterdir())) == slices
  assert f'{found["v_rand"]:.4f}' in done.out

  volume.write_stack(tmp_path / 'image.tif', labels)
  image = f'--image={tmp_path / "image.tif"}'
  before = (panels / 'slice_000.png').read_bytes()
  done = score(prediction, labels, f'--panels={panels}', image, '--overwrite')
  assert done.code == 0, done.err
  shown = (panels / 'slice_000.png').read_bytes()
  assert shown != before
  tifffile.imwrite(
    tmp_path / 'image.tif',
    np.stack([labels, 255 - labels]),
    photometric='minisblack',
    metadata={'axes': 'CZYX'},
  )
  files = prediction, labels, f'--panels={panels}', image, '--overwrite'
  refused(score(*files), '2 channels', '--channel=1')
  assert score(*files, '--channel=2').code == 0
  assert (panels / 'slice_000.png').read_bytes() != shown
  assert score(*files, '--channel=1').code == 0
  assert (panels / 'slice_000.png').read_bytes() == shown


@pytest.mark.parametrize('shape', [(1024, 1000), (333, 517)])
def test_odd_sizes_go_through_unchanged(command, run, tmp_path, shape):
  rng = np.random.default_rng(0)
  paths = {n: tmp_path / f'{n}.tif' for n in ('image', 'labels', 'p')}
  volume.write_stack(
    paths['image'], rng.integers(0, 255, (1, *shape)).astype(np.uint8)
  )
  blurred = scipy.ndimage.gaussian_filter(rng.normal(size=shape), 8)
  inside = np.abs(blurred) > 0.01
  volume.write_stack(paths['labels'], inside[None].astype(np.uint8))
  done = command(
    'predict',
    f'--workdir={run}',
    f'--input={paths["image"]}',
    f'--output={paths["p"]}',
    '--tile=512',
  )
  assert done.code == 0, done.err
  assert tifffile.imread(paths['p']).shape == shape
  done = command(
    'evaluate',
    f'--prediction={paths["p"]}',
    f'--labels={paths["labels"]}',
    f'--output={tmp_path / "s.json"}',
  )
  assert done.code == 0, done.err


def test_instance_labels(score, pair, tmp_path):
  prediction, inside = pair
  cells = np.zeros(inside.shape, np.uint16)
  cells[:, :, :20], cells[:, :, 20:], cells[:, 5] = 7, 300, 0
  refused(
    score(prediction, cells),
    'labels.tif has 3 values (0, 7, 300)',
    '--labels_kind=instances',
  )
  done = score(prediction, cells, '--labels_kind=instances')
  assert done.code == 0, done.err
  found = json.loads((tmp_path / 's.json').read_text())
  assert found['labels_kind'] == 'instances'
  truth = cells > 0
  truth[:, :, 19:21] = False
  expected = scores.for_json(scores.score_stack(prediction, truth))
  assert found['per_threshold'] == expected['per_threshold']
  again = '--labels_kind=instances', '--overwrite'
  refused(score(prediction, cells * 0, *again), 'labels.tif', 'whole numbers')
  refused(score(prediction, cells - np.float32(0.5), *again), '--labels_kind')
  refused(score(prediction, cells, *again, '--labels_inverted'), 'leave one')
  refused(
    score(prediction, cells, '--labels_kind=a', '--overwrite'), "'a'", 'binary'
  )


def test_a_segmentation_scores_as_its_probabilities(score, pair, tmp_path):
  prediction, inside = pair
  regions = np.stack([thinning.thin_borders(p > 0.5) for p in prediction])
  expected = scores.score_stack(prediction, inside, [0.5])
  done = score(regions.astype(np.uint32), inside.astype(np.uint8))
  assert done.code == 0, done.err
  found = json.loads((tmp_path / 's.json').read_text())
  assert found['prediction_kind'] == 'instances'
  assert found['v_rand'] == pytest.approx(expected['v_rand'], abs=1e-12)
  assert found['v_info'] == pytest.approx(expected['v_info'], abs=1e-12)
  assert found['threshold_v_rand'] == 0.5
  # In 8 bits, or as float, it might be a picture of probabilities.
  short = regions.astype(np.float32), inside.astype(np.uint8), '--overwrite'
  refused(score(*short), 'prediction.tif', '--prediction_kind=instances')
  done = score(*short, '--prediction_kind=instances')
  assert done.code == 0, done.err
  again = json.loads((tmp_path / 's.json').read_text())
  assert again['per_threshold'] == found['per_threshold']
  refused(score(*short, '--prediction_kind=a'), "'a'", 'probability')


def test_slices_without_a_membrane_are_left_out(score, pair, tmp_path):
  prediction, inside = pair
  expected = scores.for_json(scores.score_stack(prediction[1:], inside[1:]))
  inside[0] = True
  done = score(prediction, inside.astype(np.uint8))
  assert 'no membrane in slices 0 (counted from 0)' in done.err
  found = json.loads((tmp_path / 's.json').read_text())
  assert found['per_threshold'] == expected['per_threshold']
  assert [row['slice'] for row in found['per_slice']] == [1, 2]


def test_inverted_labels_are_warned_of_and_turned(score, pair, tmp_path):
  # Every cell is a square, and the membranes are lines around them.
  side = np.arange(48) % 16 < 14
  inside = np.repeat((side[:, None] & side)[None], 2, 0)
  prediction, labels = inside.astype(np.float32), (~inside).astype(np.uint8)
  done = score(prediction, labels)
  assert 'labels.tif looks inverted' in done.err
  assert '--labels_inverted=True' in done.err
  done = score(prediction, labels, '--labels_inverted', '--overwrite')
  assert (done.code, done.err) == (0, '')
  found = json.loads((tmp_path / 's.json').read_text())
  assert found['labels_inverted']
  assert found['v_rand'] == found['pixel']['accuracy'] == 1


def test_a_run_finds_its_stack_again_by_flags(command, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  inside = np.arange(64) % 16 < 14
  pixels = np.repeat((inside[:, None] & inside)[None], 3, 0).astype(np.uint8)
  here, there = ({k: tmp_path / f'{k}{i}.tif' for k in 'ab'} for i in (0, 1))
  for path in here.values():
    volume.write_stack(path, pixels)
  stack = {'data.source': 'stack', 'data.image': f'~/{here["a"].name}'}
  stack |= {'data.label': str(here['b']), 'data.valid': '2'}
  run = made_runs.make_run(tmp_path / 'run', **stack)
  for old, new in zip(here.values(), there.values(), strict=True):
    old.rename(new)
  moved = (
    'evaluate',
    f'--workdir={run}',
    f'--image={there["a"]}',
    f'--labels={there["b"]}',
  )
  refused(command(*moved[:2]), str(here['a']), 'not there', '--image')
  done = command(*moved)
  assert done.code == 0, done.err
  # In the last slice alone.
  pixels[2] = 1 - pixels[2]
  volume.write_stack(there['b'], pixels, overwrite=True)
  refused(command(*moved, '--overwrite'), 'other labels')


def test_labels_of_other_types(pair, tmp_path):
  prediction, inside = pair
  volume.write_stack(tmp_path / 'p.tif', prediction)
  for dtype in ('uint8', 'int16', 'uint32', 'int64', 'float32'):
    path = tmp_path / f'{dtype}.tif'
    tifffile.imwrite(path, inside.astype(dtype), photometric='minisblack')
    _, read, _ = scoring.read_pair(tmp_path / 'p.tif', path)
    assert np.array_equal(read, inside)


def test_refuses_bad_files(score, pair, tmp_path):
  prediction, inside = pair
  labels = inside.astype(np.uint8)
  refused(
    score(prediction, labels[:2]),
    'prediction.tif has shape (3, 40, 52)',
    'labels.tif has shape (2, 40, 52)',
  )
  refused(
    score(prediction * 2, labels), 'prediction.tif', 'from 0.0 to 2.0', '0..1'
  )
  refused(score(prediction - 0.5, labels), 'prediction.tif', '-0.5', '0..1')
  refused(
    score((prediction * 255).astype(np.uint8), labels),
    'prediction.tif',
    'uint8',
    '255',
  )
  holes = prediction.copy()
  holes[1, 2, 3] = np.nan
  refused(score(holes, labels), 'prediction.tif', 'slice 2', 'nan')
  refused(score(prediction, labels * 0), 'labels.tif', 'only one value')
  rgb = np.zeros((3, 40, 52, 3), np.uint8)
  done = score(prediction, labels)
  assert done.code == 0
  tifffile.imwrite(tmp_path / 'prediction.tif', rgb, photometric='rgb')
  refused(score(None, None, '--overwrite'), 'prediction.tif', '(y, x)')
  score(prediction, labels, '--overwrite')
  refused(score(None, None), 's.json exists', '--overwrite')
  whole = (tmp_path / 'labels.tif').read_bytes()
  (tmp_path / 'labels.tif').write_bytes(whole[:-50])
  refused(score(None, None, '--overwrite'), 'labels.tif', 'cut short')
  (tmp_path / 'labels.tif').unlink()
  refused(score(None, None, '--overwrite'), 'labels.tif')
  panels = '--overwrite', f'--panels={tmp_path}/panels'
  refused(
    score(prediction, labels, *panels, f'--image={tmp_path}/none.tif'),
    'none.tif',
  )
  volume.write_stack(tmp_path / 'image.tif', labels[:, :8])
  refused(
    score(prediction, labels, *panels, f'--image={tmp_path}/image.tif'),
    'image.tif has shape (3, 8, 52)',
    '(3, 40, 52)',
  )


def test_a_channel_goes_with_an_image(score, pair):
  prediction, inside = pair
  labels = inside.astype(np.uint8)
  refused(score(prediction, labels, '--channel=1'), 'go with --image')


def test_warns_of_an_inverted_prediction(score, pair, tmp_path):
  prediction, inside = pair
  done = score(1 - prediction, inside.astype(np.uint8))
  assert done.code == 0
  assert 'looks inverted' in done.err
  found = json.loads((tmp_path / 's.json').read_text())
  assert 'prediction.tif: the prediction looks inverted' in found['warning']


def test_files_of_a_run_and_of_a_volume_are_not_replaced(
  command, run, pair, tmp_path
):
  for name in ('summary.json', 'environment.json', 'calibration.json'):
    (run / 'calibration.json').touch()
    done = command(
      'evaluate', f'--workdir={run}', f'--output={run / name}', '--overwrite'
    )
    refused(done, name, 'reads')
  (run / 'calibration.json').unlink()
  _, inside = pair
  labels = tmp_path / 'labels.tif'
  volume.write_stack(labels, inside.astype(np.uint8))
  place = write_ome(
    tmp_path / 'v.zarr', inside.astype(np.uint32), chunk=(1, 40, 52)
  )
  done = command(
    'evaluate',
    f'--prediction={place}',
    f'--labels={labels}',
    f'--output={place}/a.json',
    '--overwrite',
  )
  refused(done, 'v.zarr', 'input')
  (place / 'deep').mkdir()
  done = command(
    'evaluate',
    f'--prediction={place}',
    f'--labels={labels}',
    f'--output={place}/deep/a.json',
  )
  refused(done, 'lie in the volume', 'v.zarr')


def test_a_prediction_that_is_not_finished(command, pair, tmp_path):
  prediction, inside = pair
  labels = tmp_path / 'labels.tif'
  volume.write_stack(labels, inside.astype(np.uint8))
  place = tmp_path / 'v.zarr'
  settings = {
    'shape': prediction.shape,
    'block': [1, 256, 256],
    'axes': 'ZYX',
    'holds': 'probabilities',
  }
  ome_zarr_metadata.begin(place, settings, {}, '0.5', False)
  writer = ome_zarr_writer.VolumeWriter(place, np.float32)
  (block,) = writer.blocks()
  for z, page in enumerate(prediction):
    if z != 1:
      writer.write(z, block, page[None])

  def score():
    return command(
      'evaluate',
      f'--prediction={place}',
      f'--labels={labels}',
      f'--output={tmp_path / "s.json"}',
    )

  refused(score(), 'lacks blocks in slices 1 ', 'not finished')
  writer.write(1, block, prediction[1:2])
  assert score().code == 0


def test_pictures_of_another_evaluation_are_named(score, pair, tmp_path):
  prediction, inside = pair
  panels = f'--panels={tmp_path / "p"}'
  assert score(prediction, inside, panels).code == 0
  done = score(prediction[:2], inside[:2], panels, '--overwrite')
  assert done.code == 0, done.err
  assert 'p: slice_002.png are of another evaluation' in done.out
