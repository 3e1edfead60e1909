"""From a probability map to cells: superpixels, edges, regressions."""

import collections

import numpy as np
import pytest
from scipy import ndimage
from scipy import optimize
from skimage import segmentation

from skipnet_jax import errors
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction.cells import cells
from skipnet_jax.prediction.cells import edges as edges_lib
from skipnet_jax.prediction.cells import lifted
from skipnet_jax.prediction.cells import logistic
from skipnet_jax.prediction.cells import superpixels
from skipnet_jax.scores import scores
from skipnet_jax.scores import thinning

SIDE = 96


def make_cells(seed, count=14):
  """Cells `[y, x]` from 1 up, each nearest to one of some points."""
  rng = np.random.default_rng(seed)
  points = rng.uniform(0, SIDE, (count, 2))
  place = np.stack(np.mgrid[:SIDE, :SIDE], -1)
  far = ((place[:, :, None] - points) ** 2).sum(-1)
  return far.argmin(-1).astype(np.int32) + 1


def make_slice(seed):
  """Labels, image and a probability map with blurred and noisy membranes."""
  rng = np.random.default_rng(seed)
  inside = ndimage.binary_erosion(cells.draw(make_cells(seed)), border_value=1)
  noise = ndimage.gaussian_filter(rng.normal(size=inside.shape), 2)
  blurred = ndimage.gaussian_filter(inside.astype(float), 1) + 0.8 * noise
  image = 100 * inside + rng.normal(0, 10, inside.shape)
  return inside, image, blurred.clip(0, 1).astype(np.float32)


@pytest.fixture(scope='module')
def slices():
  """Three slices: labels, and measured."""
  made = [make_slice(seed) for seed in range(3)]
  measured = [cells.measure(found, image) for _, image, found in made]
  return np.stack([inside for inside, _, _ in made]), measured


def parts(labels):
  """Number of connected parts of all labels together."""
  return sum(ndimage.label(labels == n)[1] for n in np.unique(labels))


def test_superpixels_are_connected_and_keep_to_membranes():
  inside, _, found = make_slice(0)
  labels = superpixels.superpixels(found)
  assert labels.dtype == np.int32
  count = labels.max() + 1
  assert np.array_equal(np.unique(labels), np.arange(count))
  assert parts(labels) == count > 14
  assert np.bincount(labels.ravel()).min() >= 25
  # Most belong to one cell alone.
  truth = edge_fit.true_regions(edges_lib.build_graph(labels), inside)
  drawn = cells.draw(truth[labels] + 1)
  assert scores.score_stack(drawn, inside, [0.5])['v_rand'] > 0.97


def test_small_superpixels_are_flooded_as_from_all_others(monkeypatch):
  found = np.random.default_rng(0).random((64, 80)).astype(np.float32)
  # Equal values, whose order counts too.
  for page in (found, (found > 0.3).astype(np.float32)):
    shares = []

    def watershed(relief, seeds, mask=None, flood=segmentation.watershed):
      expected = flood(relief, seeds)
      if mask is None:
        return expected
      shares.append(mask.mean())
      found = flood(relief, seeds, mask=mask)
      np.testing.assert_array_equal(found[mask], expected[mask])
      return found

    with monkeypatch.context() as patch:
      patch.setattr(segmentation, 'watershed', watershed)
      superpixels.superpixels(page)
    assert 0 < shares[0] < 1


def test_distances_are_exact():
  free = make_slice(2)[2] > 0.5
  np.testing.assert_array_equal(
    superpixels._distance(free), ndimage.distance_transform_edt(free)
  )


@pytest.mark.parametrize('value', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('shape', [(1, 1), (9, 30)])
def test_a_slice_without_a_membrane_is_one_cell(slices, shape, value):
  found = np.full(shape, value, np.float32)
  measured = cells.measure(found, np.zeros(shape, np.uint8))
  assert measured.graph.nodes == 1
  assert measured.features.shape == (0, len(edges_lib.FEATURES))
  regressions = edge_fit.fit(slices[1], slices[0])
  for method in cells.METHODS:
    assert (cells.segment(measured, regressions, method) == 1).all()


def test_tiny_slices_go_through(slices):
  regressions = edge_fit.fit(slices[1], slices[0])
  found = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], np.float32)
  for rows in (found, found[:1], found[:, :3]):
    measured = cells.measure(rows, rows)
    for method in cells.METHODS:
      assert cells.segment(measured, regressions, method).shape == rows.shape


@pytest.mark.parametrize('value', [np.nan, np.inf, -0.1, 1.1])
def test_refuses_other_probabilities(value):
  found = np.full((8, 8), 0.5, np.float32)
  found[2, 3] = value
  with pytest.raises(errors.InputError, match=r'must be in 0\.\.1'):
    superpixels.superpixels(found)


def test_features_of_an_edge():
  labels = np.array([[0, 0, 1], [0, 2, 1], [2, 2, 1]], np.int32)
  graph = edges_lib.build_graph(labels)
  assert graph.edges.tolist() == [[0, 1], [0, 2], [1, 2]]
  assert graph.lengths.tolist() == [1, 3, 2]
  rng = np.random.default_rng(0)
  inside, image = rng.random((2, 3, 3))
  found, regions = edges_lib.features(graph, inside, image)
  assert found.shape == (3, len(edges_lib.FEATURES))
  row = dict(zip(edges_lib.FEATURES, found[1], strict=True))
  # Each side of a pixel that touches counts.
  border = [(1, 0), (1, 1), (0, 1), (1, 1), (1, 0), (2, 0)]
  for name, page in (
    ('membrane_0', 1 - inside),
    ('membrane_1.6', ndimage.gaussian_filter(1 - inside, 1.6)),
    ('image_0', (image - image.mean()) / image.std()),
  ):
    values = np.array([page[place] for place in border])
    for statistic, expected in (
      ('mean', values.mean()),
      ('std', values.std()),
      ('min', values.min()),
      ('max', values.max()),
      *((f'q{q:g}', np.quantile(values, q)) for q in (0.1, 0.25, 0.5, 0.9)),
    ):
      assert row[f'{name}_{statistic}'] == pytest.approx(expected, abs=1e-12)
  mean = row['membrane_0_mean']
  odds = np.log(mean / (1 - mean))
  assert row['membrane_0_mean_log_odds'] == pytest.approx(odds)
  assert row['log_length'] == pytest.approx(np.log(3))
  sizes = row['region_log_size_minimum'], row['region_log_size_maximum']
  assert np.exp(sizes) == pytest.approx([3, 3])
  zero = (1 - inside)[labels == 0]
  assert regions[0, :2] == pytest.approx([zero.mean(), zero.std()])


def test_lifted_edges_against_all_paths(slices):
  measured = slices[1][0]
  graph = measured.graph
  log_odds = np.random.default_rng(0).normal(size=len(graph.edges))
  pairs, found = lifted.find(graph, measured.regions, log_odds)
  assert (pairs[:, 0] < pairs[:, 1]).all()
  steps = collections.defaultdict(list)
  for (a, b), odds in zip(graph.edges.tolist(), log_odds, strict=True):
    steps[a].append((b, odds))
    steps[b].append((a, odds))
  # From a node, by the number of edges: the best of all shortest paths.
  expected = {}
  for start in range(graph.nodes):
    seen, layer = {start}, {start: (-np.inf, 0.0)}
    for distance in range(1, lifted.MAX_DISTANCE + 1):
      reached = {}
      for node, (highest, total) in layer.items():
        for there, odds in steps[node]:
          if there not in seen:
            new = max(highest, odds), total + np.logaddexp(0, odds)
            old = reached.get(there, (np.inf, np.inf))
            reached[there] = tuple(map(min, new, old))
      seen |= reached.keys()
      layer = reached
      for there, best in reached.items():
        if distance > 1 and start < there:
          expected[start, there] = (*best, distance)
  assert [tuple(pair) for pair in pairs.tolist()] == sorted(expected)
  wanted = np.array([expected[key] for key in sorted(expected)])
  np.testing.assert_allclose(found[:, :3], wanted)


def test_the_regression_against_scipy():
  rng = np.random.default_rng(0)
  features = rng.normal(3, [1, 20, 0, 0.1, 5], (200, 5))
  positive = rng.random(200) < 1 / (1 + np.exp(0.2 * (features[:, 1] - 3)))
  names = tuple('abcde')
  found = logistic.fit(features, positive, names)
  x = (features - features.mean(0)) / np.where(
    features.std(0) > 0, features.std(0), 1
  )

  def loss(weights):
    odds = x @ weights[:5] + weights[5]
    losses = np.logaddexp(0, np.where(positive, -odds, odds))
    return losses.sum() + 5 * (weights[:5] ** 2).sum()

  best = optimize.minimize(loss, np.zeros(6), options={'gtol': 1e-8})
  ours = np.append(found.weights, found.bias)
  assert loss(ours) <= best.fun + 1e-7
  np.testing.assert_allclose(ours, best.x, atol=1e-3)
  np.testing.assert_allclose(
    found.log_odds(features), x @ found.weights + found.bias
  )
  again = logistic.from_json(found.for_json(), names)
  assert np.array_equal(again.log_odds(features), found.log_odds(features))
  with pytest.raises(ValueError, match='other features'):
    logistic.from_json(found.for_json(), names[:4])
  with pytest.raises(ValueError, match=r"^it has no 'features'$"):
    logistic.from_json({}, names)
  with pytest.raises(ValueError, match='a value of another type'):
    logistic.from_json(found.for_json() | {'bias': None}, names)


def test_cells_are_found_and_drawn(slices):
  inside, measured = slices
  regressions = edge_fit.fit(measured, inside)
  for method in cells.METHODS:
    for page, each in zip(inside, measured, strict=True):
      found = cells.segment(each, regressions, method)
      assert found.min() == 1
      assert parts(found) == found.max()
      drawn = cells.draw(found)
      assert scores.score_stack(drawn, page, [0.5])['v_rand'] > 0.95
  found = edge_fit.training_scores(measured, inside)
  assert found.keys() == set(cells.METHODS)
  assert all(0.9 < row['v_rand'] <= 1 for row in found.values())
  assert edge_fit.training_scores(measured[:1], inside[:1]) == {}


def test_drawing_then_thinning_returns_the_cells():
  for seed in range(3):
    found = make_cells(seed)
    there = cells.draw(found)
    thinned = thinning.thin_borders(there)
    assert (thinned[there] > 0).all()
    pairs = np.unique(np.stack([found[there], thinned[there]]), axis=1)
    assert pairs.shape[1] == found.max() == thinned.max()


def test_edges_of_one_kind_cannot_be_fitted(slices):
  inside, measured = slices
  one = np.ones_like(inside)
  with pytest.raises(errors.InputError, match='0 of the'):
    edge_fit.fit(measured, one)
  assert edge_fit.training_scores(measured, one) == {}


def test_a_true_region_has_more_than_half_of_a_superpixel():
  labels = np.repeat([[0, 1, 2, 3]], 4, 0).astype(np.int32)
  inside = np.array([[1, 0, 0, 1]] * 3 + [[0, 0, 1, 1]], bool)
  inside[0, 2] = True
  found = edge_fit.true_regions(edges_lib.build_graph(labels), inside)
  assert found.tolist() == [1, 0, 0, 2]
