"""The study behind the networks that ship, on small made tissues."""

import dataclasses
import json
import os

import conftest
import made_runs
import numpy as np
import pytest
import tifffile

from skipnet_jax import config as config_lib
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.prediction import fitted
from skipnet_jax.runs import pretrained
from skipnet_jax.studies import em_membranes
from skipnet_jax.studies import shipping
from skipnet_jax.studies import tissues as tissues_lib

EXPERIMENT = conftest.ROOT / 'experiments/em_membranes.py'


def make_tissue(name, count, side, pixel_size):
  """Squares between dark membranes that differ from slice to slice."""
  inside = np.ones((count, side, side), bool)
  for z, page in enumerate(inside):
    page[8 + z % 3 :: 10] = page[:, 8 + z % 3 :: 10] = False
  image = np.where(inside, 180, 40).astype(np.uint8)
  return tissues_lib.Tissue(name, image, inside, pixel_size)


@pytest.fixture(scope='module')
def tissues():
  return (
    make_tissue('isbi2012', 30, 40, 4.0),
    make_tissue('fibsem', 31, 20, 10.0),
  )


def test_pages_are_joined_at_one_pixel_size(tissues, tmp_path):
  tissues_lib.join(tissues, tmp_path)
  image, drawn = (
    tifffile.imread(tmp_path / f'{name}.tif') for name in ('image', 'labels')
  )
  # 20 pixels of 10 nm are 50 of 4 nm.
  assert image.shape == drawn.shape == (61, 50, 50)
  np.testing.assert_array_equal(image[3, 5:45, 5:45], tissues[0].image[3])
  np.testing.assert_array_equal(image[3, 4], image[3, 5])
  assert set(np.unique(drawn)) == {0, 255}
  share = tissues[1].inside.mean()
  assert (drawn[30:] > 0).mean() == pytest.approx(share, abs=0.05)


def test_the_experiment_is_the_last_fold_of_the_study(tissues, tmp_path):
  study = em_membranes.make(tissues, tmp_path, EXPERIMENT, [4, 0])
  for row in em_membranes.ROWS:
    alone = config_lib.load_experiment(EXPERIMENT, row)
    for field in ('train', 'valid'):
      assert study.runs[f'{row}_4'].data[field] == alone.data[field]
  first = study.runs['both_0'].data
  assert (first.train, first.valid) == ('6-29,37-60', '0-5,30-36')
  for tissue in tissues:
    held = [z for fold in range(5) for z in tissue.fold(fold)[1]]
    assert held == list(range(len(tissue.image)))


def test_the_baseline_finds_dark_membranes(tissues):
  for tissue in tissues:
    found = em_membranes.baseline(tissue, 4)
    assert found['v_rand'] > 0.99
    assert found['sigma'] <= 1
  # Where membranes are not dark, it finds nothing.
  flat = tissues_lib.Tissue(
    'isbi2012',
    np.random.default_rng(0).integers(0, 255, (30, 40, 40)).astype(np.uint8),
    tissues[0].inside,
    4.0,
  )
  assert em_membranes.baseline(flat, 4)['v_rand'] < 0.6


def test_scores_are_kept_and_tabulated(tissues, tmp_path, monkeypatch):
  study = em_membranes.make(tissues, tmp_path, EXPERIMENT, [4, 3], ['both'])
  for name in study.runs:
    (tmp_path / name).mkdir()
    (tmp_path / name / 'summary.json').write_text('{}')
    (tmp_path / name / 'environment.json').write_text('{"git": "abc"}')
  scored = []

  def score(run, tissue, slices):
    scored.append((run, tissue.name, slices))
    value = 0.9 if run.endswith('_4') else 0.8
    both = {'v_rand': value, 'v_info': value + 0.05}
    return {method: both for method in em_membranes.METHODS}

  monkeypatch.setattr(em_membranes, 'score', score)
  monkeypatch.setattr(em_membranes, 'fit', lambda *_: None)
  monkeypatch.setattr(em_membranes.trained, 'open_run', str)
  path = tmp_path / 'scores.json'
  for _ in range(2):  # The second time, nothing is scored again.
    found = em_membranes.measure(study, tmp_path, tissues, path, lambda _: None)
  assert len(scored) == 4
  assert scored[0][2] == tissues[0].fold(4)[1]
  kept = json.loads(path.read_text())
  assert found == kept['rows']
  assert kept['runs']['both_3']['git'] == 'abc'
  table = em_membranes.table(found)
  line = '| both | fibsem | multicut | 2 | 0.8500 (0.8000 to 0.9000) | 0.9000'
  assert line in table
  assert '| blurred image | isbi2012 | thresholds | 2 |' in table
  # A fold that one row lacks counts for none.
  del found['both']['fibsem']['multicut']['4']
  table = em_membranes.table(found)
  assert '| both | isbi2012 | multicut | 1 | 0.8000 (0.8000 to 0.8000)' in table
  assert '| blurred image | isbi2012 | thresholds | 1 |' in table
  del found['both']['fibsem']['multicut']['3']
  assert em_membranes.table(found) == 'No fold has scores of all rows yet.\n'


def test_a_scored_run_is_not_trained_again(tissues, tmp_path):
  study = em_membranes.make(tissues, tmp_path, EXPERIMENT, [4, 3], ['both'])
  path = tmp_path / 'scores.json'
  assert em_membranes.unscored(study, path).runs == study.runs
  known = {'config': config_identity.hash_of(study.runs['both_4'])}
  path.write_text(json.dumps({'runs': {'both_4': known}}))
  assert list(em_membranes.unscored(study, path).runs) == ['both_3']
  study.runs['both_4'].optim.learning_rate /= 2
  with pytest.raises(errors.InputError, match='scores of both_4 with config'):
    em_membranes.unscored(study, path)


def test_what_ships_is_a_run_with_its_fits(tmp_path, monkeypatch):
  made = []

  def fit(path, averaging, say):
    made.append((path.name, averaging.name))
    for name in ('calibration.json', 'edges.json'):
      (path / name).write_text('{}')

  monkeypatch.setattr(em_membranes, 'fit', fit)
  for _, row, _ in shipping.SHIPPED:
    made_runs.make_run(tmp_path / f'{row}_4')
  package = tmp_path / 'package'
  shipping.ship(tmp_path, 4, package, lambda _: None)
  names = [name for name, *_ in shipping.SHIPPED]
  assert pretrained.names(package) == sorted(names)
  assert ('both_4', fitted.Averaging(tta=True).name) in made
  run = pretrained.open_pretrained('em_membranes_cc_by', package)
  assert run.dataset['name'] == 'FIB-SEM sample 2'
  assert (run.path / 'edges.json').read_text() == '{}'
  card = json.loads((run.path / 'card.json').read_text())
  assert card['held_out'] == 'fold 4 of 5, counted from 0'


def test_files_of_others_are_not_replaced(tissues, tmp_path):
  (tmp_path / 'image.tif').write_bytes(b'mine')
  with pytest.raises(errors.InputError, match='it is not of these stacks'):
    tissues_lib.join(tissues, tmp_path)
  assert os.listdir(tmp_path) == ['image.tif']
  joined = tmp_path / 'joined'
  tissues_lib.join(tissues, joined)
  before = {path: path.stat().st_mtime_ns for path in joined.iterdir()}
  tissues_lib.join(tissues, joined)
  assert {p: p.stat().st_mtime_ns for p in joined.iterdir()} == before
  other = dataclasses.replace(tissues[1], inside=~tissues[1].inside)
  with pytest.raises(errors.InputError, match='choose another --workdir'):
    tissues_lib.join((tissues[0], other), joined)


def test_results_of_others_are_not_replaced(tmp_path):
  em_membranes.check_output(tmp_path / 'new')
  (tmp_path / 'scores.json').write_text('<<<<<<< mine')
  with pytest.raises(errors.InputError, match=r'scores\.json is no result'):
    em_membranes.check_output(tmp_path)
  (tmp_path / 'scores.json').write_text('{"runs": {}, "rows": {}}')
  em_membranes.check_output(tmp_path)
  (tmp_path / 'file').touch()
  with pytest.raises(errors.InputError, match='cannot be created'):
    em_membranes.check_output(tmp_path / 'file' / 'results')
