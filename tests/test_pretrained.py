"""Networks that ship: what a run becomes, and files that are refused."""

import json

import made_runs
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.runs import pretrained
from skipnet_jax.runs import trained

MOST_BYTES = 2_000_000


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('pretrained') / 'run'
  return trained.open_run(made_runs.make_run(path))


@pytest.fixture
def folder(run, tmp_path):
  """A folder with the run's network under the name 'mine'."""
  pretrained.export(run, tmp_path / 'mine', 'my tissue', {'seed': 3})
  return tmp_path


def test_the_network_is_that_of_the_run(run, folder):
  opened = pretrained.open_pretrained('mine', folder)
  assert opened.path == folder / 'mine'
  assert opened.dataset == run.dataset | {'name': 'my tissue'}
  assert opened.model == run.model
  assert opened.best_epoch == run.best_epoch
  # What was fitted to the run's predictions belongs to it too.
  assert trained.network_of(opened) == trained.network_of(run)
  assert json.loads((folder / 'mine/card.json').read_text())['seed'] == 3


def test_the_same_run_gives_the_same_bytes(run, folder, tmp_path):
  pretrained.export(run, tmp_path / 'again', 'my tissue', {})
  one, two = ((folder / n / 'weights.npz') for n in ('mine', 'again'))
  assert one.read_bytes() == two.read_bytes()


def spoil_weights(path):
  content = bytearray((path / 'weights.npz').read_bytes())
  content[len(content) // 2] ^= 1
  (path / 'weights.npz').write_bytes(content)


def change_card(path, **changes):
  card = json.loads((path / 'card.json').read_text())
  (path / 'card.json').write_text(json.dumps(card | changes))


def change_network(path):
  content = json.loads((path / 'config.json').read_text())
  content['config']['model']['base_width'] *= 2
  (path / 'config.json').write_text(json.dumps(content))


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (spoil_weights, r'weights\.npz is damaged, its SHA-256 is .*where card'),
    (lambda p: (p / 'weights.npz').unlink(), r'weights\.npz cannot be read'),
    (lambda p: change_card(p, version=2), r'of version 2, .* reads version 1'),
    (lambda p: (p / 'card.json').write_text('{'), r'card\.json is not JSON'),
    (lambda p: change_card(p, best_epoch=None), r'card\.json is damaged'),
    (change_network, r'weights\.npz is of another version of the network mine'),
  ],
)
def test_files_that_cannot_be_used_are_refused(folder, spoil, words):
  spoil(folder / 'mine')
  with pytest.raises(errors.InputError, match=f'{words}.*install skipnet_jax'):
    pretrained.open_pretrained('mine', folder)


def test_an_unknown_name_is_refused_with_the_nearest(folder):
  with pytest.raises(errors.InputError, match="'mina': did you mean 'mine'"):
    pretrained.open_pretrained('mina', folder)
  with pytest.raises(errors.InputError, match=r"'other': known: \['mine'\]"):
    pretrained.open_pretrained('other', folder)


@pytest.mark.parametrize('name', pretrained.names())
def test_what_ships_is_whole_and_small(name):
  run = pretrained.open_pretrained(name)
  files = list(run.path.iterdir())
  assert sum(file.stat().st_size for file in files) < MOST_BYTES
  assert run.pixel_size == 4
  texts = [file.read_text() for file in files if file.suffix == '.json']
  assert len(texts) == 4
  assert not any('"/' in text for text in texts)
  for averaging in (fitted.Averaging(), fitted.Averaging(tta=True)):
    found = calibration.of_run(run, averaging)
    assert found is not None
    assert 0 < found.threshold < 1
    for method in ('multicut', 'lifted_multicut'):
      edge_fit.of_run(run, averaging, method)
  # The smallest slice that the network takes; a cell and a dark line.
  image = np.full((32, 32), 200, np.uint8)
  image[:, 15:18] = 30
  from skipnet_jax.prediction import run_predictor

  inside = run_predictor.predict(run, image)
  assert inside[:, 16].mean() < inside[:, 6].mean()


def test_networks_ship():
  assert pretrained.names() == ['em_membranes', 'em_membranes_cc_by']


def test_a_fit_that_does_not_ship_is_not_asked_for():
  run = pretrained.open_pretrained('em_membranes')
  averaging = fitted.Averaging(mc_samples=2)
  words = 'fits for plain and 8 orientations, so leave out --mc_samples=2'
  with pytest.raises(errors.InputError, match=words):
    edge_fit.of_run(run, averaging, 'multicut')
  assert words in calibration.describe(run, averaging, None)
