"""The map that moves a run's best threshold to 0.5, and who uses it."""

import json
import shutil

import made_runs
import numpy as np
import pytest
import tifffile

from skipnet_jax.data import volume
from skipnet_jax.prediction import calibration
from skipnet_jax.scores import pixels
from skipnet_jax.scores import scores


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return made_runs.make_run(tmp_path_factory.mktemp('calibration') / 'run')


@pytest.mark.parametrize(('log_odds', 'scale'), [(3.5, 1.0), (-2.0, 0.4)])
def test_the_order_of_pixels_stays(log_odds, scale):
  rng = np.random.default_rng(0)
  spread = 1 / (1 + np.exp(-rng.normal(1, 4, (2, 40, 50))))
  values = spread.astype(np.float32)
  values[0, 0, :4] = 0, 1e-12, 1 - 2**-24, 1
  mapped = calibration.Calibration(log_odds, scale)(values)
  assert mapped.dtype == np.float32
  assert mapped.shape == values.shape
  order = np.argsort(values, axis=None)
  assert (np.diff(mapped.ravel()[order]) >= 0).all()
  assert (mapped.min(), mapped.max()) == (0, 1)
  inside = rng.random(values.shape) < values
  before, after = (
    pixels.pixel_scores(each, inside)['average_precision']
    for each in (values, mapped)
  )
  assert after == pytest.approx(before, abs=1e-7)


def test_the_best_threshold_becomes_a_half():
  # Four cells, whose membranes have gaps of 0.95 and of 0.97.
  inside = np.ones((2, 40, 40), bool)
  inside[:, 19:21] = inside[:, :, 19:21] = False
  prediction = np.where(inside, 0.999, 0.1)
  prediction[:, 5:8, 19:21] = 0.95
  prediction[:, 19:21, 30:33] = 0.97
  found = calibration.fit(prediction, inside)
  assert 0.97 < found.threshold < 0.999
  before, after = (
    scores.score_stack(each, inside) for each in (prediction, found(prediction))
  )
  assert before['v_rand'] < 0.9 < 0.99 < after['v_rand']
  assert after['threshold_v_rand'] == 0.5
  # Thresholds that are nearly as good are on the scores' grid.
  low, high = found(np.array([0.95, 0.999]))
  assert 0.05 < low < 0.5 < high < 0.95


def test_evaluate_fits_it_and_both_commands_use_it(command, run, tmp_path):
  copy = shutil.copytree(run, tmp_path / 'run')
  arguments = 'evaluate', f'--workdir={copy}', '--overwrite'
  done = command(*arguments, '--calibration=fit')
  assert done.code == 0, done.err
  content = json.loads((copy / 'calibration.json').read_text())
  fit = content['fits']['plain']
  assert (
    f"plain: calibrated, so that the network's {fit['threshold']:.3f} is"
    in done.out
  )
  first = json.loads((copy / 'scores.json').read_text())
  assert first['calibration'] == {'plain': fit}
  done = command(*arguments)
  found = json.loads((copy / 'scores.json').read_text())
  assert found['per_threshold'] == first['per_threshold']
  assert found['calibration'] == first['calibration']

  source, output, labels = (tmp_path / f'{n}.tif' for n in ('i', 'o', 'l'))
  pages = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
  volume.write_stack(source, pages)

  def predict(*more):
    done = command(
      'predict',
      f'--workdir={copy}',
      f'--input={source}',
      f'--output={output}',
      f'--segmentation={labels}',
      '--overwrite',
      *more,
    )
    assert done.code == 0, done.err
    return tifffile.imread(output), done.out

  mapped, said = predict()
  plain, quiet = predict('--calibration=off')
  assert 'calibrated' not in quiet
  assert 'has no scores' in quiet
  assert f'({copy / "calibration.json"})' in said
  assert f'({copy / "scores.json"})' in said
  odds = fit['log_odds'], fit['scale']
  np.testing.assert_array_equal(mapped, calibration.Calibration(*odds)(plain))
  _, said = predict('--tta')
  assert '8 orientations: not calibrated' in said
  assert '--calibration=fit --tta' in said
  done = command(*arguments, '--calibration=off')
  found = json.loads((copy / 'scores.json').read_text())
  assert 'calibration' not in found
  assert found['per_threshold'] == first['uncalibrated']['per_threshold']
  average = found['pixel']['average_precision']
  assert first['pixel']['average_precision'] == pytest.approx(average, abs=1e-6)
  # Scores without calibration say nothing on calibrated probabilities.
  _, said = predict()
  assert 'threshold 0.5 (the best of the training slices' in said

  def refuses(text, *words):
    (copy / 'calibration.json').write_text(text)
    done = command(*arguments)
    assert (done.code, done.err.count('\n')) == (2, 1)
    assert f'evaluate --workdir={copy} --calibration=fit' in done.err
    for word in words:
      assert word in done.err

  refuses('{', 'is not JSON, or is damaged in line 1')
  other = json.dumps(content | {'network': '0', 'best_epoch': 7})
  refuses(other, 'another network', 'epoch 7', 'epoch 1')
  refuses(json.dumps(content | {'version': 0}), 'version 0')
  broken = {'plain': {'log_odds': 'x', 'scale': 1}}
  refuses(json.dumps(content | {'fits': broken}), 'no readable fit')
  broken = {'plain': {'log_odds': 1, 'scale': -1}}
  refuses(json.dumps(content | {'fits': broken}), 'unusable fit')

  (copy / 'calibration.json').unlink()
  (copy / 'calibration.json').mkdir()
  done = command(*arguments, '--calibration=fit')
  assert (done.code, done.err.count('\n')) == (2, 1)
  assert 'calibration.json is a folder' in done.err
