"""Augmentation against scipy, and labels that move with images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from skipnet_jax.data import augment

STILL = augment.Settings(flip=False, rotation=0.0, shear=0.0, warp=0.0)
SIZE = (48, 64)


def field(seed=0, size=SIZE):
  noise = np.random.default_rng(seed).normal(size=size)
  return scipy.ndimage.gaussian_filter(noise, 3).astype(np.float32)


@pytest.mark.parametrize('seed', range(3))
def test_interpolation_is_that_of_scipy(seed):
  settings = augment.Settings()
  image, key = field(seed), jax.random.key(seed)
  label = (image > 0).astype(np.float32)
  where = np.asarray(augment.coordinates(key, SIZE, settings), np.float64)
  found = augment.transform(
    key, jnp.asarray(image), jnp.asarray(label), settings
  )
  np.testing.assert_allclose(
    found[0],
    scipy.ndimage.map_coordinates(image, where, order=1, mode='reflect'),
    atol=2e-5,
  )
  nearest = scipy.ndimage.map_coordinates(label, where, order=0, mode='reflect')
  # A coordinate half way between two pixels may round either way.
  assert (np.asarray(found[1]) == nearest).mean() > 0.999
  assert set(np.unique(found[1])) <= {0.0, 1.0}


def test_labels_move_with_images():
  # Where the moved image is clearly above or below zero, the moved label says
  # the same.
  for seed in range(5):
    image = field(seed)
    label = (image > 0).astype(np.float32)
    moved, where = augment.transform(
      jax.random.key(seed),
      jnp.asarray(image),
      jnp.asarray(label),
      augment.Settings(),
    )
    clear = np.abs(moved) > 0.05
    assert clear.mean() > 0.3
    agree = (np.asarray(moved) > 0) == (np.asarray(where) > 0.5)
    assert agree[clear].mean() > 0.99


def test_nothing_moves_at_strength_zero():
  image = jnp.asarray(field())
  found, _ = augment.transform(jax.random.key(0), image, image, STILL)
  np.testing.assert_array_equal(found, image)
  where = augment.coordinates(jax.random.key(0), SIZE, STILL)
  np.testing.assert_array_equal(where, np.indices(SIZE))


def test_flips_are_exact_and_equally_likely():
  settings = augment.Settings(flip=True, rotation=0.0, shear=0.0, warp=0.0)
  image = field()
  flips = {
    (fy, fx): image[:: -1 if fy else 1, :: -1 if fx else 1]
    for fy in (0, 1)
    for fx in (0, 1)
  }
  counts = dict.fromkeys(flips, 0)
  call = jax.jit(
    lambda k: augment.transform(
      k, jnp.asarray(image), jnp.asarray(image), settings
    )
  )
  for seed in range(200):
    moved, label = call(jax.random.key(seed))
    np.testing.assert_array_equal(moved, label)
    hit = [k for k, v in flips.items() if np.array_equal(moved, v)]
    assert len(hit) == 1
    counts[hit[0]] += 1
  # 50 each expected; five standard deviations are 31.
  assert all(abs(n - 50) < 31 for n in counts.values())


def test_flips_and_quarter_turns_are_the_eight_orientations():
  settings = augment.Settings(
    flip=True, rotation=0.0, shear=0.0, warp=0.0, rot90=True
  )
  image = field(size=(32, 32))
  counts = dict.fromkeys(((k, f) for k in range(4) for f in (1, -1)), 0)
  call = jax.jit(
    lambda k: augment.transform(
      k, jnp.asarray(image), jnp.asarray(image), settings
    )[0]
  )
  for seed in range(400):
    moved = call(jax.random.key(seed))
    hit = [
      (k, f)
      for k, f in counts
      if np.array_equal(moved, np.rot90(image, k)[::f])
    ]
    assert len(hit) == 1
    counts[hit[0]] += 1
  # 50 each expected; five standard deviations are 33.
  assert all(abs(n - 50) < 33 for n in counts.values())


def test_quarter_turns_turn_by_what_they_say():
  settings = augment.Settings(
    flip=False, rotation=0.0, shear=0.0, warp=0.0, rot90=True
  )
  image = jnp.asarray(field(size=(32, 32)))
  for seed in range(10):
    moved, _ = augment.transform(jax.random.key(seed), image, image, settings)
    # Never mirrored.
    assert any(np.array_equal(moved, np.rot90(image, k)) for k in range(4))


def test_elastic_displacements_are_those_of_scipy():
  settings = augment.Settings(
    flip=False,
    rotation=0.0,
    shear=0.0,
    warp=0.0,
    elastic=300.0,
    elastic_sigma=6.0,
    elastic_share=1.0,
  )
  key = jax.random.key(5)
  where = np.asarray(augment.coordinates(key, SIZE, settings))
  moved = where - np.indices(SIZE)
  k_noise, _ = jax.random.split(jax.random.fold_in(key, 1))
  noise = jax.random.uniform(k_noise, (2, *SIZE), minval=-1.0, maxval=1.0)
  for found, drawn in zip(moved, np.asarray(noise, np.float64), strict=True):
    smooth = scipy.ndimage.gaussian_filter(drawn, 6.0, mode='constant')
    np.testing.assert_allclose(found, 300 * smooth, atol=1e-3)
    assert np.abs(found).max() > 3


def test_elastic_displacements_are_smallest_at_the_edge():
  smoothing = augment._smoothing(448, 15.0)
  # Of uniform noise in +-300, smoothed along y and x.
  along = np.sqrt(np.square(smoothing.astype(np.float64)).sum(1))
  std = 300 / np.sqrt(3) * np.outer(along, along)
  centre = 300 / np.sqrt(3) / (2 * np.sqrt(np.pi) * 15)
  assert std[224, 224] == pytest.approx(centre, rel=1e-3)
  # Half of the Gaussian's weights lie beyond the edge.
  assert std[0, 224] == pytest.approx(centre / np.sqrt(2), rel=0.03)


def test_half_of_the_examples_are_displaced():
  settings = augment.Settings(
    flip=False, rotation=0.0, shear=0.0, warp=0.0, elastic=300.0
  )
  call = jax.jit(lambda k: augment.coordinates(k, (16, 16), settings))
  still = sum(
    np.array_equal(call(jax.random.key(s)), np.indices((16, 16)))
    for s in range(200)
  )
  # Five standard deviations are 35.
  assert abs(still - 100) < 35


def linear_part(key, settings):
  """Fits the coordinate map by a matrix around the centre."""
  where = np.asarray(augment.coordinates(key, (65, 65), settings), np.float64)
  grid = np.indices((65, 65)).reshape(2, -1) - 32.0
  moved = where.reshape(2, -1) - 32.0
  return moved @ np.linalg.pinv(grid)


def test_rotation_turns_about_the_centre_within_its_limit():
  settings = augment.Settings(flip=False, rotation=25.0, shear=0.0, warp=0.0)
  angles = []
  for seed in range(60):
    matrix = linear_part(jax.random.key(seed), settings)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-4)
    angles.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
  assert max(angles) <= 25.01
  assert min(angles) >= -25.01
  assert max(angles) > 15
  assert min(angles) < -15


def test_shear_slants_rows_within_its_limit():
  settings = augment.Settings(flip=False, rotation=0.0, shear=0.41, warp=0.0)
  slants = []
  for seed in range(60):
    matrix = linear_part(jax.random.key(seed), settings)
    slant = np.arcsin(-matrix[0, 1])
    np.testing.assert_allclose(
      matrix, [[1, -np.sin(slant)], [0, np.cos(slant)]], atol=1e-4
    )
    slants.append(slant)
  assert np.abs(slants).max() <= 0.4101
  assert max(slants) > 0.25
  assert min(slants) < -0.25


def test_warp_has_the_stated_displacement_and_is_smooth():
  settings = augment.Settings(flip=False, rotation=0.0, shear=0.0, warp=10.0)
  size = (96, 96)
  shifts = np.stack(
    [
      np.asarray(augment.coordinates(jax.random.key(s), size, settings))
      - np.indices(size)
      for s in range(150)
    ]
  )
  # At the grid's centre the cubic spline gives the drawn displacement itself.
  centre = shifts[:, :, 47:49, 47:49].mean((2, 3))
  assert centre.std() == pytest.approx(10, rel=0.15)
  assert abs(centre.mean()) < 2
  assert np.abs(np.diff(shifts, axis=2)).max() < 3


def test_one_key_gives_one_transform():
  image = jnp.asarray(field())
  settings = augment.Settings()
  a, b, c = (
    augment.transform(jax.random.key(s), image, image, settings)[0]
    for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(a, b)
  assert np.abs(np.asarray(a) - np.asarray(c)).max() > 0.1


def test_contrast_and_brightness_are_one_line_within_their_limits():
  settings = dataclasses.replace(STILL, contrast=0.3, brightness=0.2)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), 'float32')
  lines = []
  for seed in range(200):
    key = jax.random.key(seed)
    found, label = augment.transform(key, image, image, settings)
    np.testing.assert_array_equal(label, image)
    gain, bias = np.polyfit(np.ravel(image), np.ravel(found), 1)
    np.testing.assert_allclose(found, gain * image + bias, atol=1e-5)
    lines.append((gain, bias))
  gains, biases = np.transpose(lines)
  assert 0.7 - 1e-5 <= gains.min() < 0.72
  assert 1.28 < gains.max() <= 1.3 + 1e-5
  assert abs(biases).max() <= 0.2 + 1e-5
  assert np.ptp(biases) > 0.38
  assert abs(np.corrcoef(gains, biases)[0, 1]) < 0.2


def test_noise_has_its_standard_deviation_and_moves_nothing():
  settings = dataclasses.replace(STILL, noise=0.25)
  key = jax.random.key(3)
  image = jnp.zeros((64, 64), 'float32')
  noisy, label = augment.transform(key, image, image, settings)
  assert np.std(noisy) == pytest.approx(0.25, rel=0.05)
  assert abs(np.mean(noisy)) < 0.02
  assert not label.any()


def test_scale_enlarges_and_shrinks_within_its_limit():
  settings = dataclasses.replace(STILL, scale=0.5)
  factors = []
  for seed in range(60):
    matrix = linear_part(jax.random.key(seed), settings)
    np.testing.assert_allclose(matrix, matrix[0, 0] * np.eye(2), atol=1e-4)
    factors.append(1 / matrix[0, 0])
  assert 1 / 1.5 - 1e-3 <= min(factors) < 0.72
  assert 1.38 < max(factors) <= 1.5 + 1e-3
  assert abs(np.log(factors).mean()) < 0.1


def test_blur_is_the_gaussian_of_scipy():
  settings = dataclasses.replace(STILL, blur=2.0)
  image = jnp.asarray(np.random.default_rng(0).normal(size=SIZE), 'float32')
  for seed in range(4):
    key = jax.random.key(seed)
    found, label = augment.transform(key, image, image, settings)
    np.testing.assert_array_equal(label, image)
    sigma = float(jax.random.uniform(jax.random.fold_in(key, 7), maxval=2.0))
    expected = scipy.ndimage.gaussian_filter(
      np.asarray(image, np.float64), sigma, mode='reflect', radius=6
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_some_examples_lose_their_contrast_before_the_noise():
  settings = dataclasses.replace(STILL, low_contrast=0.3)
  image = jnp.ones((4, 4), 'float32')
  call = jax.jit(lambda k: augment.intensity(k, image, settings)[0, 0])
  factors = np.array([call(jax.random.key(seed)) for seed in range(200)])
  lost = factors[factors != 1]
  # Five standard deviations are 32.
  assert abs(len(lost) - 60) < 32
  assert 0.1 <= lost.min() < 0.2
  assert 0.4 < lost.max() <= 0.5
  noisy = dataclasses.replace(settings, low_contrast=1.0, noise=1.0)
  large = jnp.zeros((64, 64), 'float32')
  noise = augment.intensity(jax.random.key(0), large, noisy)
  assert np.std(noise) == pytest.approx(1, rel=0.05)
