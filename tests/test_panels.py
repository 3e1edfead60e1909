"""Figures: every pixel is there, in the colour that the legend gives it."""

import subprocess
import sys

from matplotlib import colors
import numpy as np
import pytest

from skipnet_jax import plots
from skipnet_jax.evaluation import panels
from skipnet_jax.scores import scores

RED_OF = {
  name: np.round(255 * np.array(colors.to_rgb(colour))).astype(np.uint8)
  for name, colour in (
    ('split', panels.SPLIT),
    ('merge', panels.MERGE),
    ('both', panels.BOTH),
  )
}


@pytest.fixture
def cells():
  """Two cells side by side, of which the prediction splits or merges."""
  inside = np.ones((30, 40), bool)
  inside[:, 20] = False
  return inside


def count(picture, name):
  if picture.dtype != np.uint8:
    picture = np.round(255 * picture).astype(np.uint8)
  return np.count_nonzero((picture == RED_OF[name]).all(-1))


def test_marks_splits_and_merges(cells):
  split = cells.copy()
  split[10] = False
  drawn, split_share, merge_share = panels.error_map(
    split.astype(float), cells, 0.5
  )
  # The smaller ten of thirty rows and the dam, in both cells.
  assert count(drawn, 'split') == 39 * 11
  assert count(drawn, 'merge') == count(drawn, 'both') == 0
  assert split_share == pytest.approx(11 / 30)
  assert merge_share == 0
  assert (drawn[20, 20] < 0.2).all()
  assert (drawn[25, 5] == 1).all()

  drawn, split_share, merge_share = panels.error_map(
    np.ones(cells.shape), cells, 0.5
  )
  assert count(drawn, 'merge') == 19 * 30
  assert count(drawn, 'split') == split_share == 0
  assert merge_share == pytest.approx(19 / 39)


def test_colours_differ_for_every_kind_of_vision():
  # Machado et al. 2009, full protanopia and deuteranopia.
  views = {
    'normal': np.eye(3),
    'protan': [
      [0.152286, 1.052583, -0.204868],
      [0.114503, 0.786281, 0.099216],
      [-0.003882, -0.048116, 1.051998],
    ],
    'deutan': [
      [0.367322, 0.860646, -0.227968],
      [0.280085, 0.672501, 0.047413],
      [-0.011820, 0.042940, 0.968881],
    ],
  }
  used = [colors.to_rgb(c) for c in (panels.SPLIT, panels.MERGE, panels.BOTH)]
  for matrix in views.values():
    seen = np.array(used) @ np.array(matrix).T
    for a, b in ((0, 1), (0, 2), (1, 2)):
      assert np.abs(seen[a] - seen[b]).max() > 0.4


@pytest.mark.parametrize('image', [False, True])
@pytest.mark.parametrize('shape', [(30, 40), (333, 517), (400, 90)])
def test_panels_show_every_pixel(shape, image):
  inside = np.ones(shape, bool)
  inside[:, shape[1] // 2] = False
  prediction = np.ones(shape)
  pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint16)
  picture = panels.slice_panel(
    prediction,
    inside,
    0.5,
    pixels if image else None,
    title='cells',
    warning='SYNTHETIC DATA: ' + 10 * 'a long warning ',
  )
  assert picture.dtype == np.uint8
  assert picture.shape[2] == 3
  merged = np.count_nonzero(inside) // 2 - shape[0]
  assert count(picture, 'merge') > merged
  assert picture.size < 3e7


def result(v_rand):
  rng = np.random.default_rng(0)
  inside = rng.random((2, 20, 20)) > 0.2
  made = scores.score_stack(rng.random((2, 20, 20)), inside)
  return made | {'v_rand': v_rand}


def test_curves_of_several_results():
  picture = panels.score_curves({'plain': result(0.5)}, 'title')
  assert picture.dtype == np.uint8
  both = panels.score_curves(
    {'8 orientations': result(0.6), 'plain': result(None)}, 'title', 'warning'
  )
  assert both.shape == picture.shape
  assert not np.array_equal(both, picture)


def test_constant_images_stretch():
  assert not plots.stretch(np.full((4, 4), 7, np.uint8)).any()


def test_training_and_predicting_import_no_matplotlib():
  code = (
    'import sys\n'
    'from skipnet_jax.training import loop\n'
    'from skipnet_jax.prediction import stacks\n'
    'sys.exit(any(n.split(".")[0] in ("matplotlib", "skimage") '
    'for n in sys.modules))'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_the_scale_of_grey_values_does_not_matter():
  image = np.random.default_rng(0).normal(size=(20, 20))
  shown = plots.stretch(image)
  np.testing.assert_allclose(plots.stretch(image * 1e-8), shown)
