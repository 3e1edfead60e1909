"""Losses against their formulas in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.step import losses


def make_case(seed=0, shape=(2, 5, 4, 1)):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=shape).astype(np.float32)
  label = (rng.random(shape) < 0.7).astype(np.float32)
  mask = (rng.random(shape) < 0.8).astype(np.float32)
  return logits, label, mask


def value(name, logits, label, mask, **more):
  loss = losses.LOSSES[name]
  batch = {'label': label, 'mask': mask, **more}
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  return float(loss.value(loss.sums({'logits': jnp.asarray(logits)}, batch)))


def test_bce_is_the_mean_over_the_pixels_that_count():
  logits, label, mask = make_case()
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  each = -(label * np.log(p) + (1 - label) * np.log(1 - p))
  expected = (each * mask).sum() / mask.sum()
  assert value('bce', logits, label, mask) == pytest.approx(expected, rel=1e-6)


def test_smooth_l1_is_of_the_tanh_and_labels_of_plus_and_minus_one():
  logits, label, mask = make_case(4)
  off = np.abs(np.tanh(logits.astype(np.float64) / 2) - (2 * label - 1))
  assert (off > 1).any()
  assert (off < 1).any()
  each = np.where(off < 1, off**2 / 2, off - 0.5)
  expected = (each * mask).sum() / mask.sum()
  found = value('smooth_l1', logits, label, mask)
  assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_a_weight_counts_pixels_as_often(name):
  logits, label, mask = make_case(5)
  twice = np.concatenate([mask, mask], 1)
  doubled = [np.concatenate([x, x], 1) for x in (logits, label)]
  weight = np.full_like(mask, 2.0)
  found = value(name, logits, label, mask, weight=weight)
  assert found == pytest.approx(value(name, *doubled, twice), rel=1e-5)
  # Of weight zero: not at all.
  some = (np.random.default_rng(0).random(mask.shape) < 0.5).astype(np.float32)
  assert value(name, logits, label, mask, weight=some) == pytest.approx(
    value(name, logits, label, mask * some), rel=1e-6
  )


def test_dice_is_of_the_membrane_over_the_whole_batch():
  logits, label, mask = make_case(1)
  o = 1 / (1 + np.exp(logits.astype(np.float64)))
  y = 1 - label
  overlap = (o * y * mask).sum()
  total = (o * mask).sum() + (y * mask).sum()
  expected = -(2 * overlap + 1) / (total + 1)
  assert value('dice', logits, label, mask) == pytest.approx(expected, rel=1e-6)


def test_bce_and_dice_together_are_their_sum():
  case = make_case(7)
  found = value('bce_dice', *case)
  want = value('bce', *case) + value('dice', *case)
  assert found == pytest.approx(want, rel=1e-6)


def test_dice_of_a_perfect_prediction_is_minus_one():
  _, label, _ = make_case(2)
  mask = np.ones_like(label)
  perfect = np.where(label > 0, 40, -40).astype(np.float32)
  assert value('dice', perfect, label, mask) == pytest.approx(-1, abs=1e-5)
  # All membrane on empty truth, and the reverse: only the smoothing is left.
  inside = np.ones_like(label)
  count = label.size
  assert value('dice', -40 * inside, inside, mask) == pytest.approx(
    -1 / (count + 1), rel=1e-4
  )


@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_pixels_outside_the_mask_do_not_matter(name):
  logits, label, mask = make_case(3)
  changed = np.where(mask > 0, logits, 7 - logits).astype(np.float32)
  flipped = np.where(mask > 0, label, 1 - label).astype(np.float32)
  assert value(name, changed, flipped, mask) == value(name, logits, label, mask)


@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_sums_of_parts_add_up(name):
  logits, label, mask = make_case(4, (4, 6, 6, 1))
  loss = losses.LOSSES[name]
  parts = [
    loss.sums(
      {'logits': jnp.asarray(logits[i : i + 2])},
      {
        'label': jnp.asarray(label[i : i + 2]),
        'mask': jnp.asarray(mask[i : i + 2]),
      },
    )
    for i in (0, 2)
  ]
  added = {k: parts[0][k] + parts[1][k] for k in parts[0]}
  assert float(loss.value(added)) == pytest.approx(
    value(name, logits, label, mask), rel=1e-6
  )


def test_pixel_sums_count_correct_pixels():
  logits, label, mask = make_case(5)
  sums = losses.pixel_sums(
    {'logits': jnp.asarray(logits)},
    {'label': jnp.asarray(label), 'mask': jnp.asarray(mask)},
  )
  correct = (((logits > 0) == (label > 0)) * mask).sum()
  assert float(sums['correct']) == correct
  assert float(sums['pixels']) == mask.sum()


def test_prediction_is_the_probability_of_the_inside():
  logits = jnp.array([[[[-3.0], [0.0], [2.0]]]])
  np.testing.assert_allclose(
    losses.prediction({'logits': logits})[0, 0, :, 0],
    1 / (1 + np.exp([3.0, 0.0, -2.0])),
    rtol=1e-6,
  )
