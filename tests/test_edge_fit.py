"""`evaluate --segment`, `predict --method` and what a run keeps for them."""

import json
import shutil

import made_runs
import numpy as np
import pytest
from scipy import ndimage
import tifffile

from skipnet_jax.data import volume
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import inference
from skipnet_jax.prediction.cells import cells
from skipnet_jax.prediction.cells import edges as edges_lib
from skipnet_jax.prediction.cells import linking
from skipnet_jax.runs import trained
from skipnet_jax.studies import segmentation


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('edges') / 'run'
  return made_runs.make_run(path, **{'data.size': 96})


@pytest.fixture(scope='module')
def pictures(run):
  """What stands for the image and its prediction: blurred, noisy labels."""
  label = trained.load_data(trained.open_run(run)).label
  noise = np.random.default_rng(0).normal(0, 2, label.shape)
  blurred = ndimage.gaussian_filter(label + noise, (0, 1.5, 1.5))
  return np.round(255 * blurred.clip(0, 1)).astype(np.uint8)


@pytest.fixture
def made(run, pictures, tmp_path, monkeypatch):
  """A run whose network returns its image, which is in `pictures`.

  Nothing is compiled.
  """

  def grey(self, pages, tiling, advance=lambda: None):
    del self, tiling, advance
    return pages[0].astype(np.float32) / 255, np.zeros(pages[0].shape)

  def slices(self, images, size, tiling, advance):
    del size
    return (grey(self, pages, tiling, advance) for pages in images)

  load = trained.load_data

  def with_pictures(*arguments):
    data = load(*arguments)
    object.__setattr__(data, 'image', pictures)
    return data

  monkeypatch.setattr(inference.Predictor, '__call__', grey)
  monkeypatch.setattr(inference.Predictor, 'predict_slices', slices)
  monkeypatch.setattr(trained, 'load_data', with_pictures)
  return shutil.copytree(run, tmp_path / 'run')


def refused(done, *words):
  assert (done.code, done.err.count('\n')) == (2, 1), done.err
  for word in words:
    assert word in done.err


def test_a_superpixel_is_in_the_region_that_shares_most_pixels_with_it():
  # Two cells with a membrane between them, and five superpixels.
  inside = np.array([[True] * 4 + [False] + [True] * 5])
  labels = np.array([[0, 0, 0, 1, 1, 2, 3, 3, 3, 4]], np.int32)
  graph = edges_lib.build_graph(labels)
  left, right = 1, 2
  assert edge_fit.nearest_regions(graph, inside).tolist() == [
    *(left, left, right, right, right)
  ]
  # Half of a superpixel is not most of it.
  assert edge_fit.true_regions(graph, inside).tolist() == [
    *(left, 0, right, right, right)
  ]
  # One without a cell is a cell of its own.
  alone = edge_fit.nearest_regions(graph, inside & (labels != 2))
  assert alone.tolist() == [left, left, 2 + 1 + 2, right, right]


def test_evaluate_fits_edges_and_predict_uses_them(
  command, made, pictures, tmp_path
):
  evaluate = 'evaluate', f'--workdir={made}', '--overwrite'
  source, cut, labels = (tmp_path / f'{n}.tif' for n in ('i', 'c', 'l'))
  volume.write_stack(source, pictures)

  def predict(*more, run=made, files=(f'--segmentation={cut}',)):
    return command(
      'predict',
      f'--workdir={run}',
      f'--input={source}',
      f'--output={tmp_path / "o.tif"}',
      *files,
      '--overwrite',
      *more,
    )

  file = made / 'edges.json'
  needed = f'evaluate --workdir={made} --segment=multicut'
  refused(predict('--method=multicut'), f'{file} is missing', needed)
  done = command(*evaluate, '--segment=lifted_multicut')
  assert done.code == 0, done.err
  assert f'{file}: edges fitted to 4 training slices' in done.out
  assert (
    'training slices, each by a fit to others, multicut: V_rand' in done.out
  )
  assert 'there, lifted edges add ' in done.out
  kept = json.loads(file.read_text())
  first = json.loads((made / 'scores_lifted_multicut.json').read_text())
  assert first['segment'] == 'lifted_multicut'
  assert first['training'] == kept['fits']['plain']['training_scores']
  assert first['v_rand'] > first['plain']['v_rand']
  # One picture: all thresholds below 1 agree.
  assert len({row['v_rand'] for row in first['per_threshold'][:-1]}) == 1
  # The second method finds the fit there.
  content = file.read_bytes()
  done = command(*evaluate, '--segment=multicut')
  assert file.read_bytes() == content
  found = json.loads((made / 'scores_multicut.json').read_text())
  assert found['plain']['v_rand'] == first['plain']['v_rand']

  label = trained.load_data(trained.open_run(made)).label
  volume.write_stack(labels, label[4:].astype(np.uint8))
  for method, scores in (('lifted_multicut', first), ('multicut', found)):
    done = predict(f'--method={method}')
    assert done.code == 0, done.err
    assert (
      f'labels of each slice, 0 on borders, by {method} ({file})' in done.out
    )
    numbered = tifffile.imread(cut)
    assert numbered.dtype == np.uint16
    volume.write_stack(tmp_path / 'v.tif', numbered[4:], overwrite=True)
    done = command(
      'evaluate',
      f'--prediction={tmp_path / "v.tif"}',
      f'--labels={labels}',
      f'--output={tmp_path / "s.json"}',
      '--overwrite',
    )
    again = json.loads((tmp_path / 's.json').read_text())
    assert again['per_threshold'] == scores['per_threshold']

  multicut = '--method=multicut'
  done = predict(multicut, '--link')
  assert 'uint16 labels of cells through the slices' in done.out
  linker = linking.Linker()
  linked = [linker(page) for page in numbered]
  assert np.array_equal(tifffile.imread(cut), np.stack(linked))
  refused(predict('--link', files=()), '--link goes with')
  refused(predict(multicut, '--threshold=0.5'), '--threshold is 0.5')
  refused(predict(multicut, run=f'{made},{made}'), 'names 2')
  refused(
    predict(multicut, '--tta'), 'no fit for 8 orientations', f'{needed} --tta'
  )
  refused(predict(multicut, files=()), 'goes with --segmentation')
  other = kept | {'network': '0', 'best_epoch': 3}
  file.write_text(json.dumps(other))
  refused(predict(multicut), 'another network, of epoch 3', needed)
  # Fitted again.
  assert command(*evaluate, '--segment=multicut').code == 0
  assert json.loads(file.read_text())['network'] == kept['network']
  fit = json.loads(json.dumps(kept['fits']['plain']))
  fit['local']['features'].popitem()
  file.write_text(json.dumps(kept | {'fits': {'plain': fit}}))
  refused(predict(multicut), 'no readable fit (it has other features)', needed)
  fit = kept['fits']['plain'] | {'lifted': None}
  file.write_text(json.dumps(kept | {'fits': {'plain': fit}}))
  refused(predict('--method=lifted_multicut'), 'no fit for lifted edges')
  assert predict(multicut).code == 0


def test_a_study_scores_as_evaluate_does(command, made):
  found = {}
  for method in cells.METHODS:
    done = command(
      'evaluate',
      f'--workdir={made}',
      f'--segment={method}',
      '--calibration=fit',
      '--overwrite',
    )
    assert done.code == 0, done.err
    found[method] = json.loads((made / f'scores_{method}.json').read_text())
  kept = found['multicut']
  run = trained.open_run(made)
  data = trained.load_data(run)
  by_method = segmentation.score(run, data, fitted.Averaging())
  *methods, ceiling = segmentation.METHODS
  for name, row in zip(
    methods, (kept['uncalibrated'], kept['plain'], *found.values()), strict=True
  ):
    assert by_method[name] == pytest.approx(
      {key: row[key] for key in ('v_rand', 'v_info')}, abs=1e-6
    )
  for key, value in by_method[ceiling].items():
    assert 1 > value > by_method['multicut'][key]


def test_slices_without_cells(command, made, pictures, tmp_path, monkeypatch):
  pictures = np.full_like(pictures, 255)
  source = tmp_path / 'i.tif'
  volume.write_stack(source, pictures[:1])
  evaluate = 'evaluate', f'--workdir={made}', '--segment=multicut'
  assert command(*evaluate).code == 0
  done = command(
    'predict',
    f'--workdir={made}',
    f'--input={source}',
    f'--output={tmp_path / "o.tif"}',
    f'--segmentation={tmp_path / "c.tif"}',
    '--method=multicut',
  )
  assert done.code == 0, done.err
  assert 'only one region in slices 0 (counted from 0) by multicut' in done.out
  assert (tifffile.imread(tmp_path / 'c.tif') == 1).all()
  # Training slices of one superpixel each.
  load = trained.load_data
  monkeypatch.setattr(
    trained,
    'load_data',
    lambda *a: _replaced(load(*a), pictures),
  )
  (made / 'edges.json').unlink()
  refused(command(*evaluate, '--overwrite'), '0 of the 0 edges', 'train longer')
  assert not (made / 'edges.json').exists()
  run = trained.open_run(made)
  data = _replaced(trained.load_data(run), pictures)
  scores = segmentation.score(run, data, fitted.Averaging())
  assert [method for method, row in scores.items() if row is None] == [
    *cells.METHODS
  ]
  refused(command('evaluate', '--prediction=p.tif', *evaluate[2:]), '--segment')


def _replaced(data, image):
  object.__setattr__(data, 'image', image)
  return data
