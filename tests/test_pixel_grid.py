"""Slices on the pixels of training, and back on their own."""

import functools
import pathlib
import types

import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.prediction import pixel_grid


@pytest.mark.parametrize('network', [(60, 150), (23, 40), (40, 100), (80, 50)])
def test_a_linear_ramp_stays_one(network):
  grid = pixel_grid.Grid((40, 100), network)
  y, x = np.mgrid[:40, :100].astype(np.float32)
  # At the centres of pixels, from the edge of the image.
  ramp = 3 * (y + 0.5) + 2 * (x + 0.5)
  found = grid.to_network(ramp.astype(np.float32))
  assert (found.shape, found.dtype) == (network, np.float32)
  scale_y, scale_x = 40 / network[0], 100 / network[1]
  y, x = np.mgrid[: network[0], : network[1]]
  expected = 3 * (y + 0.5) * scale_y + 2 * (x + 0.5) * scale_x
  # Smoothing by a factor of 2 reaches four pixels from the edge.
  inner = np.s_[4:-4, 5:-5]
  np.testing.assert_allclose(found[inner], expected[inner], rtol=1e-4)
  back = grid.from_network(expected.astype(np.float32))
  assert back.shape == (40, 100)
  np.testing.assert_allclose(back[8:-8, 10:-10], ramp[8:-8, 10:-10], rtol=1e-4)


@pytest.mark.parametrize('sides', [(61, 150), (23, 41), (40, 90), (160, 31)])
def test_parts_have_the_bits_of_whole_slices(sides):
  from skimage import transform

  page = np.random.default_rng(0).integers(0, 255, (40, 100), np.uint8)
  grid = pixel_grid.Grid((40, 100), sides)
  whole = grid.to_network(page)
  options = {'order': 1, 'mode': 'symmetric', 'preserve_range': True}
  resize = functools.partial(transform.resize, anti_aliasing=True, **options)
  expected = resize(page.astype(np.float32), sides)
  np.testing.assert_array_equal(whole, np.rint(expected))
  back = grid.from_network(expected)
  np.testing.assert_array_equal(back, resize(expected, (40, 100)))
  for share in (0, 0.3, 0.8):
    window = tuple(
      range(int(share * n), int(share * n) + n // 5) for n in sides
    )
    rows, columns = (slice(s.start, s.stop) for s in grid.input_window(window))
    found = grid.to_network(page[rows, columns], window)
    np.testing.assert_array_equal(found, whole[window[0]][:, window[1]])
    window = range(int(share * 40), 39), range(int(share * 90), 95)
    rows, columns = (
      slice(s.start, s.stop) for s in grid.network_window(window)
    )
    found = grid.from_network(expected[rows, columns], window)
    np.testing.assert_array_equal(found, back[window[0]][:, window[1]])


def test_equal_grids_copy_nothing():
  grid = pixel_grid.Grid((4, 5), (4, 5))
  page = np.arange(20, dtype=np.uint8).reshape(4, 5)
  assert grid.to_network(page) is page
  assert np.array_equal(grid.labels_from_network(page), page)


def test_labels_are_those_of_the_nearest_pixels():
  labels = np.array([[1, 2], [3, 70000]], np.int32)
  found = pixel_grid.Grid((4, 6), (2, 2)).labels_from_network(labels)
  assert np.array_equal(found, labels.repeat(2, 0).repeat(3, 1))
  fine = labels.repeat(3, 0).repeat(3, 1)
  found = pixel_grid.Grid((2, 2), (6, 6)).labels_from_network(fine)
  assert np.array_equal(found, labels)


def choose(given=None, trained=(4.0,), sides=(100, 200), **metadata):
  source = types.SimpleNamespace(
    path=pathlib.Path('in.tif'), shape=(3, *sides), metadata=metadata
  )
  runs = [
    types.SimpleNamespace(path=f'run{i}', pixel_size=size)
    for i, size in enumerate(trained)
  ]
  return pixel_grid.choose(source, runs, given, 32)


NANOMETRES = {'resolution': (0.125, 0.1), 'unit': 'nm'}


def test_the_grid_of_training():
  grid, line = choose(4.6)
  assert (grid.sides, grid.network) == ((100, 200), (115, 230))
  assert '4.6 nm (--pixel_size)' in line
  assert '115 x 230 pixels instead of 100 x 200' in line
  grid, line = choose(**NANOMETRES)
  assert grid.network == (250, 400)
  assert '10 x 8 nm (its file)' in line
  # What is given counts, not the file.
  assert choose(2, **NANOMETRES)[0].network == (50, 100)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'given': 4.05}, ['4.05 nm', 'trained at 4 nm']),
    ({}, ['in.tif says no pixel size', '4 nm of training', '--pixel_size']),
    (
      {'resolution': (2.0, 2.0), 'unit': 'parsec'},
      ["says no pixel size that can be used (its unit 'parsec' is not known)"],
    ),
    (
      {'resolution': (1e-6, 1e-6), 'unit': 'nm'},
      ['(1e+06 x 1e+06 nm cannot be the sides of a pixel)'],
    ),
    ({'resolution': (72.0, 72.0), 'unit': 'inch'}, ['says no pixel size, so']),
    ({'given': 9.0, 'trained': (0.0,)}, ['run0', 'data.pixel_size']),
  ],
)
def test_nothing_is_resampled_and_said_so(arguments, words):
  grid, line = choose(**arguments)
  assert grid.network == grid.sides
  for word in ('Nothing is resampled', *words):
    assert word in line


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    *(
      ({'given': size}, [f'--pixel_size is {size:g}', 'nanometres'])
      for size in (0.0, -4.0, float('nan'), float('inf'), 4.6e-9, 1e6)
    ),
    ({'given': 1.0}, ['25 x 50 pixels', '32 x 32', '--pixel_size=4']),
    ({'given': 17.0}, ['425 x 850 pixels', '4-fold', '--pixel_size=4']),
    ({'given': 4.0, 'trained': (4.0, 8.0)}, ['run0', 'run1', '4 nm', '8 nm']),
    ({'given': 4.0, 'trained': (4.0, 0.0)}, ['an unknown size']),
  ],
)
def test_refuses(arguments, words):
  with pytest.raises(errors.InputError) as caught:
    choose(**arguments)
  for word in words:
    assert word in str(caught.value)
