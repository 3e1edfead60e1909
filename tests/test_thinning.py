"""The border thinning, against the challenge's label images and its text."""

import collections
import json
import os
import pathlib

import numpy as np
import pytest
import scipy.ndimage

from skipnet_jax import errors
from skipnet_jax.scores import scores
from skipnet_jax.scores import thinning

COMMITTED = pathlib.Path(__file__).parent / 'golden'
FULL = os.environ.get('SKIPNET_GOLDEN_DIR')


def golden_cases():
  folders = [(COMMITTED, [])]
  if FULL:
    folders.append((pathlib.Path(FULL), [pytest.mark.golden]))
  for folder, marks in folders:
    cases = json.loads((folder / 'golden.json').read_text())['cases']
    for name, case in cases.items():
      prefix = 'full-' if marks else ''
      yield pytest.param(folder / name, case, marks=marks, id=prefix + name)
  if not FULL:
    # conftest skips it, with the reason.
    yield pytest.param(None, None, marks=pytest.mark.golden, id='full')


def column(slices, name):
  """The committed file holds columns, the challenge's own one dicts."""
  return slices[name] if isinstance(slices, dict) else [s[name] for s in slices]


def same_partition(a, b):
  pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
  return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize(('path', 'case'), list(golden_cases()))
def test_equals_the_challenge(path, case):
  with np.load(f'{path}.npz') as inputs:
    proposal = inputs['proposal'].astype(np.float64)
    inside = inputs['label'] > 0
  images = {}
  if os.path.exists(f'{path}.components.npz'):
    with np.load(f'{path}.components.npz') as archive:
      images = dict(archive)
    for mask, expected in zip(inside, images['gt'], strict=True):
      regions = thinning.label_regions(mask)
      np.testing.assert_array_equal(regions == 0, expected == 0)
      assert same_partition(regions, expected)
  assert images or path.name.startswith('c')
  for k, threshold in enumerate(scores.THRESHOLDS):
    thinned = np.stack([thinning.thin_borders(p > threshold) for p in proposal])
    assert thinned.dtype == np.int32
    if images:
      np.testing.assert_array_equal(thinned, images[f'seg_{k}'])
    slices = case['java']['thresholds'][k]['slices']
    dams = np.count_nonzero(thinned == 0, axis=(1, 2))
    np.testing.assert_array_equal(dams, column(slices, 'dam_pixels'))
    np.testing.assert_array_equal(
      thinned.max(axis=(1, 2)), column(slices, 'n_seg')
    )


def flood_by_the_text(inside):
  """The flood as the metric's text has it, pixel by pixel and slowly."""
  height, width = inside.shape
  scan = [(y, x) for x in range(width) for y in range(height)]
  state = {p: 'inside' if inside[p] else 'membrane' for p in scan}
  steps = ((0, -1), (-1, 0), (0, 1), (1, 0))
  regions = 0

  def neighbours(p):
    around = [(p[0] + dy, p[1] + dx) for dy, dx in steps]
    return [q for q in around if q in state]

  def number_components(kind):
    nonlocal regions
    for p in scan:
      if state[p] != kind:
        continue
      regions += 1
      state[p] = regions
      todo = [p]
      while todo:
        for q in neighbours(todo.pop()):
          if state[q] == kind:
            state[q] = regions
            todo.append(q)

  def is_region(p):
    return not isinstance(state[p], str)

  number_components('inside')
  fifo = collections.deque(
    p
    for p in scan
    if state[p] == 'membrane' and any(is_region(q) for q in neighbours(p))
  )
  state |= dict.fromkeys(fifo, 'queued')
  flag = False
  while fifo:
    p = fifo.popleft()
    for q in neighbours(p):
      if is_region(q):
        if state[p] == 'queued' or (state[p] == 'dam' and flag):
          state[p] = state[q]
        elif is_region(p) and state[p] != state[q]:
          state[p] = 'dam'
          flag = False
      elif state[q] == 'dam':
        if state[p] == 'queued':
          state[p] = 'dam'
          flag = True
      elif state[q] == 'membrane':
        state[q] = 'queued'
        fifo.append(q)
  number_components('membrane')
  labels = np.zeros(inside.shape, np.int32)
  for p, value in state.items():
    labels[p] = 0 if value == 'dam' else value
  return labels


@pytest.mark.parametrize(
  'shape', [(1, 1), (1, 30), (30, 1), (2, 3), (17, 24), (24, 17)]
)
@pytest.mark.parametrize('share', [0.0, 0.03, 0.3, 0.6, 0.9, 1.0])
def test_equals_the_text(shape, share):
  rng = np.random.default_rng(round(100 * share))
  for _ in range(5):
    inside = rng.random(shape) < share
    np.testing.assert_array_equal(
      thinning.thin_borders(inside), flood_by_the_text(inside)
    )


def test_regions_are_the_four_connected_components():
  inside = np.random.default_rng(0).random((61, 47)) < 0.55
  regions = thinning.label_regions(inside)
  expected, number = scipy.ndimage.label(inside)
  assert regions.max() == number
  assert same_partition(regions, expected)


def test_dams_part_the_regions_and_keep_the_inside():
  inside = np.random.default_rng(1).random((90, 70)) < 0.5
  regions, thinned = (
    f(inside) for f in (thinning.label_regions, thinning.thin_borders)
  )
  np.testing.assert_array_equal(thinned[inside], regions[inside])
  for a, b in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
    assert np.all((a == b) | (a == 0) | (b == 0))


def test_any_memory_layout():
  inside = np.random.default_rng(2).random((40, 60)) < 0.5
  expected = thinning.thin_borders(inside)
  locked = inside.copy()
  locked.flags.writeable = False
  wide = np.repeat(inside, 2, axis=1)
  for view in (locked, np.asfortranarray(inside), wide[:, ::2]):
    np.testing.assert_array_equal(thinning.thin_borders(view), expected)


@pytest.mark.parametrize(
  ('inside', 'message'),
  [
    (np.zeros((4, 4), np.uint8), 'dtype uint8.*compare it'),
    (np.zeros((4, 4)), 'dtype float64.*compare it'),
    (np.zeros((2, 4, 4), bool), r'shape \(2, 4, 4\).*one slice'),
    (np.zeros((0, 4), bool), r'shape \(0, 4\).*must have a pixel'),
    (np.broadcast_to(False, (1, 2**30)), r'1073741824\).*into tiles'),
  ],
)
@pytest.mark.parametrize(
  'function', [thinning.label_regions, thinning.thin_borders]
)
def test_refuses_what_it_cannot_label(function, inside, message):
  with pytest.raises(errors.InputError, match=message):
    function(inside)
