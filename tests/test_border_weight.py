"""U-Net's pixel weights against brute force."""

import numpy as np
import pytest
import scipy.ndimage

from skipnet_jax.data import border_weight


def cells(size=40):
  noise = np.random.default_rng(0).normal(size=(2, size, size))
  return scipy.ndimage.gaussian_filter(noise, (0, 2, 2)) > -0.03


def by_brute_force(label, w0, sigma):
  inside = label.mean()
  found = np.where(label, 0.5 / inside, 0.5 / (1 - inside))
  for z, page in enumerate(label):
    numbered, count = scipy.ndimage.label(page)
    for y, x in np.argwhere(~page):
      distances = sorted(
        np.hypot(*(np.argwhere(numbered == i) - (y, x)).T).min()
        for i in range(1, count + 1)
      )
      if count > 1:
        total = distances[0] + distances[1]
        found[z, y, x] += w0 * np.exp(-(total**2) / (2 * sigma**2))
  return found


@pytest.mark.parametrize('sigma', [1.0, 5.0])
def test_weights_are_those_of_the_formula(sigma):
  label = cells()
  found = border_weight.border_weight(label, 10.0, sigma, label.mean())
  assert found.dtype == np.float32
  # Beyond five sigma, less than 4e-5 is left out.
  np.testing.assert_allclose(
    found, by_brute_force(label, 10.0, sigma), rtol=1e-5, atol=1e-4
  )


def test_classes_have_the_same_sum_without_borders():
  label = cells()
  weight = border_weight.border_weight(label, 0.0, 5.0, label.mean())
  assert weight.mean() == pytest.approx(1, rel=1e-5)
  assert weight[label].sum() == pytest.approx(weight[~label].sum(), rel=1e-4)


@pytest.mark.parametrize('value', [True, False])
def test_one_class_alone_counts_as_it_is(value):
  label = np.full((1, 8, 8), value)
  weight = border_weight.border_weight(label, 10.0, 5.0, label.mean())
  np.testing.assert_array_equal(weight, np.ones((1, 8, 8)))


def test_a_thin_border_between_two_cells_counts_most():
  label = np.ones((1, 20, 20), bool)
  label[0, :, 10] = False
  weight = border_weight.border_weight(label, 10.0, 5.0, label.mean())
  # Both cells are one pixel away.
  expected = 20 * 20 / (2 * 20) + 10 * np.exp(-(2**2) / 50)
  np.testing.assert_allclose(weight[0, :, 10], expected, rtol=1e-6)
