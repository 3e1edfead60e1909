"""A whole run: what lies in its folder, and what it may be asked for."""

import json
import math

from conftest import numpy_draws
import jax
import numpy as np
from PIL import Image
import pytest
from test_resume import records

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.data import data_set
from skipnet_jax.training import loop


def test_the_folder_holds_what_the_readme_says(finished):
  folder, config, summary = finished
  assert {p.name for p in folder.iterdir()} == {
    '.lock',
    'checkpoints',
    'config.json',
    'environment.json',
    'gradient_flow.npz',
    'metrics.jsonl',
    'samples',
    'summary.json',
    'tensorboard',
  }
  content = json.loads((folder / 'config.json').read_text())
  assert content['hash'] == config_identity.hash_of(config)
  assert content['dataset']['name'] == 'synthetic 10x64x64'
  assert json.loads((folder / 'summary.json').read_text()) == summary
  assert list((folder / 'tensorboard').iterdir())
  steps = {
    kind: {p.name for p in (folder / 'checkpoints' / kind).iterdir()}
    for kind in ('latest', 'best')
  }
  assert steps['latest'] == {'10', '12'}
  assert max(steps['best'], key=int) == str(2 * summary['best_epoch'])
  assert len(steps['best']) <= 2


def test_the_records_are_finite_and_of_each_epoch(finished):
  folder, *_ = finished
  rows = records(folder)
  assert [(row['epoch'], row['step']) for row in rows] == [
    (e, 2 * e) for e in range(1, 7)
  ]
  for row in rows:
    assert all(math.isfinite(value) for value in row.values())
    assert row['learning_rate'] == pytest.approx(1e-3)
    assert row['valid_loss_with_l2'] > row['valid_loss'] == row['valid_bce']
    assert 0 <= row['valid_accuracy'] <= 1
  # Six epochs of a tiny network teach it something.
  assert rows[-1]['train_loss'] < rows[0]['train_loss']


def test_the_summary_is_of_the_best_epoch(finished):
  folder, _, summary = finished
  rows = records(folder)
  best = min(rows, key=lambda row: row['valid_loss'])
  assert summary['best_epoch'] == best['epoch']
  assert summary['best_val_loss'] == best['valid_loss']
  assert summary['train_loss_at_best'] == best['train_loss']
  assert summary['epochs'] == 6
  assert summary['experiment'] == 'long_short'
  assert summary['warning'].startswith('SYNTHETIC DATA')
  for score in ('v_rand', 'v_info'):
    assert 0 < summary[score] <= 1
  assert summary['images_per_second'] > 0
  assert 0 < summary['goodput'] < 1


def test_samples_show_image_label_and_prediction(finished):
  from skipnet_jax.data import synthetic

  folder, *_ = finished
  names = sorted(p.name for p in (folder / 'samples').iterdir())
  assert names == ['best_slice_008.png', 'best_slice_009.png']
  picture = np.asarray(Image.open(folder / 'samples' / names[0]))
  assert picture.shape == (64, 3 * 64 + 2 * 4)
  image, label = (s[8] for s in synthetic.load(slices=10, size=64))
  np.testing.assert_array_equal(picture[:, 68:132], label)
  correlation = np.corrcoef(picture[:, :64].ravel(), image.ravel())[0, 1]
  assert correlation > 0.95


def test_a_finished_run_is_only_summarised_again(finished, capsys):
  folder, config, summary = finished
  before = (folder / 'metrics.jsonl').read_text()
  assert loop.train_and_evaluate(config, folder) == summary
  out = capsys.readouterr().out
  assert 'Resuming after epoch 6.' in out
  assert 'Compiled' not in out
  assert (folder / 'metrics.jsonl').read_text() == before


def test_the_banner_says_what_is_trained_on_what(finished, capsys):
  folder, config, _ = finished
  loop.train_and_evaluate(config, folder)
  out = capsys.readouterr().out
  for words in (
    'long_short: fc_resnet, ',
    '20,677 parameters, float32',
    '8 slices to train, 2 to validate, examples 64x64, ',
    '% of the pixels inside cells',
    '1 x cpu, mode jit',
    'batch 4, bce, rmsprop',
    '2 steps an epoch, 6 epochs',
    f'config {config_identity.hash_of(config)}',
    'To beat: validation BCE 0.6',
    'SYNTHETIC DATA',
  ):
    assert words in out


def test_several_steps_in_a_call_are_the_same_steps(finished, smoke, tmp_path):
  folder, *_ = finished
  config = smoke({'train.epochs': 1, 'train.steps_per_call': 2})
  loop.train_and_evaluate(config, tmp_path)
  (row,) = records(tmp_path)
  for name, value in records(folder)[0].items():
    # RMSprop's first steps divide rounding by rounding.
    np.testing.assert_allclose(row[name], value, rtol=1e-3, err_msg=name)


def test_crops_dice_averages_and_accumulation_go_together(
  smoke, tmp_path, monkeypatch, capsys
):
  # At the start, in the banner, and after each epoch.
  found = iter(['', '', 'Chunks are gone.', 'Chunks are gone.'])
  monkeypatch.setattr(data_set.DataSet, 'lacking', lambda _: next(found))
  config = smoke(
    {
      'data.crop': 32,
      'train.loss': 'dice',
      'optim.ema': 0.9,
      'optim.accumulate': 2,
      'optim.schedule': 'cosine',
      'train.epochs': 2,
      'log.sample_every': 1,
    }
  )
  # optax's schedules and accumulation mix integers and floats.
  with jax.numpy_dtype_promotion('standard'), numpy_draws():
    summary = loop.train_and_evaluate(config, tmp_path)
  rows = records(tmp_path)
  for row in rows:
    assert -1 <= row['valid_loss'] < 0
    assert math.isfinite(row['valid_bce'])
  # Two updates, at the end of which a cosine has come down.
  assert rows[-1]['learning_rate'] == pytest.approx(0, abs=1e-9)
  assert 0 < summary['v_rand'] <= 1
  names = {p.name for p in (tmp_path / 'samples').iterdir()}
  assert {'epoch_0001_slice_008.png', 'epoch_0002_slice_009.png'} <= names
  assert capsys.readouterr().out.count('Chunks are gone.') == 1


@pytest.mark.parametrize('share', [0.25, 1e-9])
def test_a_loss_that_is_not_finite_ends_the_run(smoke, tmp_path, share):
  # From the device and, beyond a share of its memory, from the host.
  config = smoke(
    {
      'optim.name': 'sgd',
      'optim.learning_rate': 1e25,
      'data.device_share': share,
    }
  )
  with pytest.raises(errors.RunError) as error:
    loop.train_and_evaluate(config, tmp_path)
  sentence = str(error.value)
  # The first step's parameters are beyond float32's squares.
  assert 'not finite at step 1: the first layer whose output is' in sentence
  assert 'Lower optim.learning_rate' in sentence
  assert not (tmp_path / 'summary.json').exists()
