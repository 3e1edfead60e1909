"""The pixel scores, the warning of an inversion and the checks of stacks."""

import numpy as np
import pytest
import scipy.ndimage

from skipnet_jax import errors
from skipnet_jax.scores import pixels
from skipnet_jax.scores import scores


@pytest.fixture
def stack():
  """Blurred noisy blobs: prediction [4, 41, 53] float32, inside."""
  rng = np.random.default_rng(7)
  field = scipy.ndimage.gaussian_filter(rng.normal(size=(4, 41, 53)), (0, 2, 2))
  inside = np.abs(field) > 0.05
  noisy = inside + rng.normal(0, 0.8, inside.shape)
  prediction = scipy.ndimage.gaussian_filter(noisy, (0, 1, 1)).clip(0, 1)
  return prediction.astype(np.float32), inside


def slow_average_precision(membrane, inside):
  truth, total, previous = ~inside.ravel(), np.sum(~inside), 0.0
  area = 0.0
  for level in np.unique(membrane)[::-1]:
    chosen = membrane.ravel() >= level
    recall = np.sum(truth & chosen) / total
    area += (recall - previous) * np.sum(truth & chosen) / np.sum(chosen)
    previous = recall
  return area


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('levels', [3, 10**6])
def test_average_precision(dtype, levels):
  rng = np.random.default_rng(levels)
  inside = rng.random((3, 12, 14)) < 0.7
  values = np.round((0.4 * inside + 0.6 * rng.random(inside.shape)) * levels)
  prediction = (values / levels).astype(dtype)
  prediction[0, 0, :2] = -0.0, 0.0
  found = pixels.pixel_scores(prediction, inside)['average_precision']
  expected = slow_average_precision(-prediction, inside)
  assert found == pytest.approx(expected, abs=1e-12)
  assert 0.3 < found < 1


def test_pixel_scores_count_the_membrane():
  prediction = np.array([[0.0, 0.2, 0.5, 0.6, 0.9, 1.0]])
  inside = np.array([[False, False, True, False, True, True]])
  found = pixels.pixel_scores(prediction, inside)
  assert found['accuracy'] == pytest.approx(4 / 6)
  assert found['dice'] == pytest.approx(2 / 3)
  assert found['iou'] == pytest.approx(2 / 4)
  all_inside = pixels.pixel_scores(np.ones((2, 2)), np.ones((2, 2), bool))
  assert all_inside == {
    'accuracy': 1.0,
    'dice': None,
    'iou': None,
    'average_precision': None,
  }


def test_warns_of_an_inverted_prediction(stack):
  prediction, inside = stack
  assert pixels.looks_inverted(prediction, inside) is None
  assert '1 - prediction' in pixels.looks_inverted(1 - prediction, inside)
  # Too low everywhere to cross 0.5.
  assert pixels.looks_inverted(0.4 * prediction, inside) is None
  assert pixels.looks_inverted(0.4 - 0.4 * prediction, inside) is not None
  noise = np.random.default_rng(5).random(inside.shape)
  assert pixels.looks_inverted(noise, inside) is None
  assert pixels.looks_inverted(noise, np.ones_like(inside)) is None
  assert pixels.looks_inverted(np.full(inside.shape, 0.5), inside) is None
  assert '100%' in pixels.looks_inverted(~inside, inside)
  # A sample of a large stack holds both classes.
  stripes = np.tile([True, False], (2**10, 2**10))
  assert '100%' in pixels.looks_inverted(~stripes, stripes)


GOOD = np.full((2, 4, 4), 0.5, np.float32)
TRUE = np.ones((2, 4, 4), bool)
STACKS = [
  (GOOD[:, :3], TRUE, r'\(2, 3, 4\).*\(2, 4, 4\).*crop or pad'),
  (GOOD[..., None], TRUE[..., None], r'\(2, 4, 4, 1\).*channels'),
  (GOOD[:0], TRUE[:0], 'at least one pixel'),
  (GOOD, TRUE.astype(np.uint8), 'dtype uint8.*labels > 0'),
  ((255 * GOOD).astype(np.uint8), TRUE, 'dtype uint8.*by 255'),
  (255 * GOOD, TRUE, '127.5.*by 255'),
  (GOOD - 3, TRUE, '-2.5.*sigmoid'),
  (GOOD * np.nan, TRUE, 'nan.*not finite'),
  (np.where(np.eye(4) > 0, np.inf, GOOD), TRUE, 'inf.*not finite'),
]
ON_STACKS = (scores.score_stack, pixels.pixel_scores, pixels.looks_inverted)


@pytest.mark.parametrize(('prediction', 'inside', 'message'), STACKS)
@pytest.mark.parametrize('function', ON_STACKS)
def test_refuses_bad_stacks(function, prediction, inside, message):
  with pytest.raises(errors.InputError, match=message):
    function(prediction, inside)
