"""V_rand and V_info, against closed forms."""

import json

import numpy as np
import pytest
import scipy.ndimage
import skimage.metrics

from skipnet_jax import errors
from skipnet_jax.scores import counting
from skipnet_jax.scores import scores

NAMES = (
  *('v_rand', 'v_info'),
  *('rand_merge', 'rand_split', 'info_merge', 'info_split'),
)


def score_labels(segments, regions):
  """The scores of one slice by name, None where undefined."""
  truth = counting.group_pixels(regions.ravel().astype(np.int32))
  row = counting.score_columns(segments.ravel().astype(np.int32), *truth)
  return {
    name: None if np.isnan(value) else value
    for name, value in zip(counting.COLUMNS, row, strict=True)
  }


def close(value, expected):
  if value is None or expected is None:
    return value is expected
  return abs(value - expected) < 1e-10


@pytest.fixture
def stack():
  """Blurred noisy blobs: prediction [4, 41, 53] float32, inside."""
  rng = np.random.default_rng(7)
  field = scipy.ndimage.gaussian_filter(rng.normal(size=(4, 41, 53)), (0, 2, 2))
  inside = np.abs(field) > 0.05
  noisy = inside + rng.normal(0, 0.8, inside.shape)
  prediction = scipy.ndimage.gaussian_filter(noisy, (0, 1, 1)).clip(0, 1)
  return prediction.astype(np.float32), inside


def without_seconds(result):
  return {name: value for name, value in result.items() if name != 'seconds'}


def test_thresholds_add_up():
  expected, threshold = [], 0.0
  while threshold <= 1.0:
    expected.append(threshold)
    threshold += 0.1
  assert list(scores.THRESHOLDS) == expected
  assert scores.THRESHOLDS[-1] == 0.9999999999999999


@pytest.mark.parametrize('slices', [4, 1])
def test_does_not_depend_on_the_threads(stack, slices):
  prediction, inside = stack[0][:slices], stack[1][:slices]
  first, *others = (
    without_seconds(scores.score_stack(prediction, inside, workers=workers))
    for workers in (1, 2, 3, 16)
  )
  assert 0.1 < first['v_info'] < 0.9
  assert all(other == first for other in others)


def test_layouts_dtypes_and_single_slices_score_alike(stack):
  prediction, inside = stack
  prediction = prediction.astype(np.float16)
  expected = without_seconds(scores.score_stack(prediction, inside))
  for same in (
    prediction.astype(np.float32),
    prediction.astype('>f4'),
    np.asfortranarray(prediction.astype(np.float64)),
  ):
    assert without_seconds(scores.score_stack(same, inside)) == expected
  flat = scores.score_stack(prediction[0], inside[0])
  deep = scores.score_stack(prediction[:1], inside[:1])
  assert without_seconds(flat) == without_seconds(deep)


def test_labels_equal_the_contingency_table():
  rng = np.random.default_rng(3)
  for _ in range(5):
    truth = rng.integers(0, 6, (30, 40))
    segments = rng.integers(0, 9, (30, 40))
    found = score_labels(segments, truth)
    singled = segments.copy()
    singled[segments == 0] = 100 + np.arange(np.sum(segments == 0))
    joint = skimage.metrics.contingency_table(
      truth, singled, ignore_labels=[0], normalize=True
    ).toarray()
    t, s = joint.sum(1), joint.sum(0)
    agreement = np.sum(joint**2)
    assert close(found['rand_merge'], agreement / np.sum(s**2))
    assert close(found['rand_split'], agreement / np.sum(t**2))
    mean = 0.5 * np.sum(s**2) + 0.5 * np.sum(t**2)
    assert close(found['v_rand'], agreement / mean)
    h_t, h_s, h_ts = (
      -np.sum(p[p > 0] * np.log(p[p > 0])) for p in (t, s, joint)
    )
    information = h_t + h_s - h_ts
    assert close(found['info_merge'], information / h_t)
    assert close(found['info_split'], information / h_s)
    assert close(found['v_info'], 2 * information / (h_t + h_s))


def test_a_perfect_prediction_scores_one(stack):
  inside = stack[1]
  result = scores.score_stack(inside, inside)
  for level in result['per_threshold']:
    for name, value in level.items():
      assert name == 'threshold' or close(value, 1.0), name
  assert result['pixel'] == dict.fromkeys(
    ('accuracy', 'dice', 'iou', 'average_precision'), 1.0
  )
  assert result['threshold_v_rand'] == result['threshold_v_info'] == 0.5


def test_of_equal_maxima_the_nearest_to_one_half_is_taken():
  limits = np.array(scores.THRESHOLDS)
  for values, index in (
    ([1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0], 7),
    ([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1], 3),
    ([np.nan, 0, 0, 0, np.nan, np.nan, 0, 0, 0, 0, 0], 6),
  ):
    found = scores._maximum(np.array(values, float), limits)
    assert found == (index, values[index], limits[index])
  assert scores._maximum(np.full(11, np.nan), limits) == (0, None, None)


def test_thresholds_are_written_as_what_they_stand_for(stack):
  result = scores.score_stack(*stack)
  written = scores.for_json(result)
  levels = [row['threshold'] for row in written['per_threshold']]
  assert levels == [k / 10 for k in range(11)]
  assert tuple(map(scores.from_json, levels)) == scores.THRESHOLDS
  assert scores.from_json(0.85) == 0.85
  assert written['threshold_v_rand'] in levels
  assert written['v_rand'] == result['v_rand']
  assert (
    scores.for_json(result | {'threshold_v_info': None})['threshold_v_info']
    is None
  )


@pytest.mark.parametrize(
  ('segments', 'truth', 'expected'),
  [
    # No foreground.
    ([[1, 2]], [[0, 0]], (0, 0, None, None, None, None)),
    # One region on both sides.
    ([[1, 1]], [[1, 1]], (1, 0, 1, 1, None, None)),
    # Too many segments; too few.
    ([[1, 2]], [[1, 1]], (2 / 3, 0, 1, 1 / 2, None, 0)),
    ([[1, 1]], [[1, 2]], (2 / 3, 0, 1 / 2, 1, 0, None)),
    # All on dams: each pixel is a segment of its own.
    ([[0, 0]], [[1, 2]], (1, 1, 1, 1, 1, 1)),
    # Independent: neither precision nor recall.
    ([[1, 2], [1, 2]], [[1, 1], [2, 2]], (1 / 2, None, 1 / 2, 1 / 2, 0, 0)),
  ],
)
def test_extremes(segments, truth, expected):
  found = score_labels(np.array(segments), np.array(truth))
  assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_an_undefined_slice_drops_its_threshold(stack, monkeypatch):
  rows = iter([[[0.9, 0.9], [0.5, 0.2]], [[0.8, np.nan], [0.6, 0.4]]])

  def crafted(prediction, inside, limits):
    return np.pad(next(rows), ((0, 0), (0, 4)), constant_values=np.nan)

  monkeypatch.setattr(scores, '_score_slice', crafted)
  result = scores.score_stack(stack[0][:2], stack[1][:2], [0.25, 0.75], 1)
  assert result['v_rand'] == pytest.approx(0.85)
  assert result['threshold_v_rand'] == 0.25
  assert result['v_info'] == pytest.approx(0.3)
  assert result['threshold_v_info'] == 0.75
  assert result['per_threshold'][0]['v_info'] is None


def test_compares_strictly_and_in_float64():
  inside = np.ones((1, 5, 5), bool)
  inside[:, :, 2] = False
  # At 1 the whole slice is inside at every threshold, one region.
  full = scores.score_stack(np.ones((1, 5, 5), np.float32), inside)
  assert len({level['v_rand'] for level in full['per_threshold']}) == 1
  # At the threshold itself a pixel is membrane still: the line parts two.
  line = np.where(inside, 1, 0.5).astype(np.float32)
  found = scores.score_stack(line, inside, [0.49, 0.5])['per_threshold']
  assert found[0]['v_rand'] < 0.9
  assert found[1]['v_rand'] == 1.0


def test_the_result_is_strict_json(stack):
  prediction, inside = stack[0].copy(), stack[1].copy()
  inside[0], inside[1] = False, True
  result = scores.score_stack(prediction, inside)
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert set(result) == {
    *('v_rand', 'v_info', 'threshold_v_rand', 'threshold_v_info'),
    *('per_threshold', 'per_slice', 'pixel', 'seconds'),
  }
  first, second = result['per_slice'][:2]
  assert first['v_rand'] == 0
  assert first['rand_merge'] is None
  assert second['info_merge'] is None
  # Two of the four slices have this part, and it is their mean.
  k = scores.THRESHOLDS.index(0.6)
  parts = [
    scores.score_stack(prediction[z], inside[z])['per_threshold'][k]
    for z in range(4)
  ]
  assert [part['info_merge'] is None for part in parts] == [
    True,
    True,
    False,
    False,
  ]
  mean = (parts[2]['info_merge'] + parts[3]['info_merge']) / 2
  assert close(result['per_threshold'][k]['info_merge'], mean)


def test_slices_are_reported_at_the_best_thresholds(stack):
  result = scores.score_stack(*stack)
  for score in ('v_rand', 'v_info'):
    k = scores.THRESHOLDS.index(result[f'threshold_{score}'])
    reported = [entry[score] for entry in result['per_slice']]
    assert reported == [
      entry[f'{score}_per_threshold'][k] for entry in result['per_slice']
    ]
    assert close(np.mean(reported), result[score])
    assert result[score] == max(e[score] for e in result['per_threshold'])
  assert [entry['slice'] for entry in result['per_slice']] == [0, 1, 2, 3]


def test_split_and_merge_errors():
  truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2]])
  segments = np.array([[3, 3, 3, 0, 0, 5, 5, 3]])
  split, merge = scores.split_merge_errors(segments, truth)
  np.testing.assert_array_equal(split, [[0, 0, 0, 1, 0, 0, 0, 1]])
  np.testing.assert_array_equal(merge, [[0, 0, 0, 0, 0, 0, 0, 1]])
  # Of equal overlaps the lower label is the larger.
  split, merge = scores.split_merge_errors(
    np.array([[9, 9, 4, 4]]), np.array([[1, 1, 1, 1]])
  )
  np.testing.assert_array_equal(split, [[1, 1, 0, 0]])
  assert not merge.any()
  split, merge = scores.split_merge_errors(
    np.array([[1, 1, 1, 1]]), np.array([[9, 9, 4, 4]])
  )
  np.testing.assert_array_equal(merge, [[1, 1, 0, 0]])
  assert not split.any()
  none = scores.split_merge_errors(segments, np.zeros_like(truth))
  assert not np.any(none)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'workers': 0}, 'workers is 0.*at least 1'),
    ({'thresholds': []}, 'thresholds.*one or more'),
    ({'thresholds': [0.1, 128]}, '128.*0..1'),
    ({'thresholds': [np.nan]}, 'nan.*0..1'),
  ],
)
def test_refuses_bad_options(stack, options, message):
  with pytest.raises(errors.InputError, match=message):
    scores.score_stack(*stack, **options)


@pytest.mark.parametrize(
  ('segments', 'truth', 'message'),
  [
    (np.ones((2, 3), int), np.ones((3, 2), int), r'\(2, 3\).*\(3, 2\)'),
    (np.ones((1, 2, 3), int), np.ones((1, 2, 3), int), 'give one slice'),
    (np.ones((2, 3)), np.ones((2, 3), int), 'float64.*integers'),
    (np.ones((2, 3), int), -np.ones((2, 3), int), 'start at -1'),
  ],
)
def test_refuses_bad_labels(segments, truth, message):
  with pytest.raises(errors.InputError, match=message):
    scores.split_merge_errors(segments, truth)
