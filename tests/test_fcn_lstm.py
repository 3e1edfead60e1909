"""The ConvLSTM against a plain loop, and FCN+LSTM around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy import special
from small_networks import make_batch

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import fcn_lstm


def sequence(count=3, channels=2):
  rng = np.random.default_rng(0)
  return list(rng.normal(size=(count, 1, 6, 7, channels)).astype(np.float32))


def by_hand(params, slices):
  """Hidden states `[y, x, c]`, one gate and channel after the other."""
  kernel = np.asarray(params['gates']['kernel'], np.float64)
  bias = np.asarray(params['gates']['bias'], np.float64)
  features = len(bias) // 4
  shape = slices[0].shape[1:3]
  cell, hidden = np.zeros((2, *shape, features))
  found = []
  for x in slices:
    both = np.concatenate([x[0], hidden], -1)
    z = np.zeros((*shape, 4 * features))
    for f in range(4 * features):
      z[..., f] = bias[f]
      for c in range(both.shape[-1]):
        z[..., f] += ndimage.correlate(
          both[..., c], kernel[..., c, f], mode='constant'
        )
    i, f, g, o = np.split(z, 4, -1)
    cell = special.expit(f + 1) * cell + special.expit(i) * np.tanh(g)
    hidden = special.expit(o) * np.tanh(cell)
    found.append(hidden)
  return found


def test_the_lstm_is_a_plain_loop():
  slices = sequence()
  layer = fcn_lstm.ConvLSTM(features=3, kernel_size=5)
  variables = layer.init(jax.random.key(0), slices)
  found = layer.apply(variables, slices)
  expected = by_hand(variables['params'], slices)
  for mine, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(mine[0], theirs, atol=1e-5)


@pytest.mark.parametrize('count', [3, 5])
@pytest.mark.parametrize('every', [False, True])
def test_both_directions_meet_in_the_middle(count, every):
  slices, middle = sequence(count), count // 2
  layer = fcn_lstm.Bidirectional(features=2, kernel_size=3, every=every)
  variables = layer.init(jax.random.key(0), slices)
  found = layer.apply(variables, slices)
  params = variables['params']
  up = by_hand(params['up'], slices)
  down = by_hand(params['down'], slices[::-1])[::-1]
  expected = [np.concatenate(both, -1) for both in zip(up, down, strict=True)]
  expected = expected if every else expected[middle : middle + 1]
  for mine, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(mine[0], theirs, atol=1e-5)


def small(**fields):
  return models.build_model(
    models.model_config('fcn_lstm', base_width=2, hidden=2, **fields)
  )


def test_a_prediction_depends_on_the_neighbours():
  model, image = small(), make_batch(slices=3)['image']
  variables = jax.jit(
    lambda: model.init(jax.random.key(0), image, train=False)
  )()
  apply = jax.jit(lambda x: model.apply(variables, x, train=False)['logits'])
  found = apply(image)
  assert found.shape == (2, 32, 32, 1)
  for z in range(3):
    other = apply(image.at[0, ..., z].set(0.0))
    assert np.abs(other[0] - found[0]).max() > 1e-4
    # And an example on no other example.
    np.testing.assert_allclose(other[1], found[1], atol=1e-6)


def test_its_parameters():
  model = models.build_model(models.model_config('fcn_lstm'))
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
  )
  sizes = {
    name: sum(x.size for x in jax.tree.leaves(tree))
    for name, tree in variables['params'].items()
  }
  # Two directions of four gates; a layer reads both directions of the last.
  assert sizes['lstm_1'] == 2 * (25 * (32 + 64) + 1) * 4 * 64
  assert sizes['lstm_2'] == 2 * (25 * (128 + 64) + 1) * 4 * 64
  assert sizes['lstm_3'] == sizes['lstm_2'] == 2_458_112
  # The fine net's first convolution sees the coarse net's 32 channels too.
  assert sizes['fine'] - sizes['coarse'] == 9 * 32 * 32
  # 16,761,761 with one layer.
  assert sum(sizes.values()) == 16_761_761 + 2 * 2_458_112


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'slices': 1}, 'model.slices is 1; it must be at least 3'),
    ({'slices': 4}, 'model.slices is 4; it must be odd'),
    ({'slices': -3}, 'model.slices is -3'),
  ],
)
def test_slices_without_neighbours_are_refused(fields, words):
  with pytest.raises(errors.InputError, match=words):
    small(**fields)
