"""U-Net against a plain transcription, in both paddings."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import layer_table
from skipnet_jax.models import unet


def build(**fields):
  return models.build_model(models.model_config('unet', **fields))


def count(model, side=32):
  image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def test_parameter_counts_are_the_published_ones():
  assert count(build()) == count(build(padding='VALID'), 388) == 31_030_658
  # The U-Net that public GPU benchmarks time: 34.5 M.
  assert count(build(up_kernel=3)) == 34_512_258
  # Without concatenations the convolutions after them take half the channels.
  halves = sum(9 * c * c for c in (512, 256, 128, 64))
  assert count(build(long_skips=False)) == 31_030_658 - halves


class Plain(nn.Module):
  """The published network; its layers take the parameters in call order."""

  padding: str
  width: int

  @nn.compact
  def __call__(self, x):
    def two(x, features):
      for _ in (1, 2):
        x = nn.relu(nn.Conv(features, (3, 3), padding=self.padding)(x))
      return x

    kept = []
    for i in range(4):
      kept.append(two(x, self.width * 2**i))
      x = nn.max_pool(kept[-1], (2, 2), (2, 2))
    x = two(x, self.width * 16)
    for i in (3, 2, 1, 0):
      features = self.width * 2**i
      x = nn.ConvTranspose(
        features, (2, 2), (2, 2), padding='VALID', transpose_kernel=False
      )(x)
      x = nn.relu(x)
      cut = (kept[i].shape[1] - x.shape[1]) // 2
      side = slice(cut, cut + x.shape[1])
      x = two(jnp.concatenate([kept[i][:, side, side], x], -1), features)
    return nn.Conv(2, (1, 1))(x)


@pytest.mark.parametrize(('padding', 'side'), [('SAME', 32), ('VALID', 20)])
def test_the_network_is_the_published_one(padding, side):
  model = build(base_width=2, padding=padding)
  image = jax.random.normal(jax.random.key(0), (2, side, side, 1))
  ours, variables = jax.jit(
    lambda x: model.init_with_output(jax.random.key(1), x, train=False)
  )(image)
  ours = ours['logits']
  plain = Plain(padding, 2)
  if padding == 'VALID':
    assert unet.valid_pad(side) == (92, 92)
    around = ((0, 0), (92, 92), (92, 92), (0, 0))
    image = np.pad(image, around, 'reflect')
  given = jax.eval_shape(plain.init, jax.random.key(2), image)['params']
  own = {'Conv': [], 'ConvTranspose': []}
  for name in sorted(given, key=lambda n: int(n.split('_')[1])):
    own[name.split('_')[0]].append(name)
  filled = {}
  for row in layer_table.layer_table(model, (1, 32, 32, 1)):
    given_here = dict(variables['params'][row.name])
    kind = 'Conv'
    if row.name.endswith('_up'):
      # Flax's own has its kernel the other way around.
      kind = 'ConvTranspose'
      given_here['kernel'] = given_here['kernel'][::-1, ::-1]
    filled[own[kind].pop(0)] = given_here
  assert set(filled) == set(given)
  theirs = jax.jit(plain.apply)({'params': filled}, image)
  expected = jax.nn.softmax(theirs)[..., 1:]
  np.testing.assert_allclose(jax.nn.sigmoid(ours), expected, atol=1e-5)
  assert float(jnp.std(ours)) > 1e-2


@pytest.mark.parametrize('side', [4, 5, 47, 388, 500, 512, 700])
def test_a_side_is_mirrored_until_it_fits(side):
  before, after = unet.valid_pad(side)
  assert 0 <= after - before <= 1
  assert min(before, after) >= unet.VALID_BORDER == 92
  left = side + before + after
  assert left < side + 2 * unet.VALID_BORDER + 16
  for _ in range(4):
    left -= 4
    assert left % 2 == 0
    left //= 2
  left -= 4
  for _ in range(4):
    left = 2 * left - 4
  assert left >= side


def test_any_side_serves_where_nothing_is_padded():
  model = build(base_width=1, padding='VALID')
  image = jnp.zeros((1, 21, 34, 1))
  shape = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), image, train=False)[0]
  )
  assert shape['logits'].shape == (1, 21, 34, 1)


def test_dropout_is_at_the_end_of_the_contraction():
  model = build(base_width=2, dropout=0.5)
  image = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
  variables = jax.jit(
    lambda: model.init(jax.random.key(1), image, train=False)
  )()

  @functools.partial(jax.jit, static_argnames=('train', 'sample'))
  def logits(seed, **mode):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(variables, image, **mode, rngs=rngs)['logits']

  still = logits(0, train=False)
  np.testing.assert_array_equal(still, logits(1, train=False))
  sampled = logits(0, train=False, sample=True)
  np.testing.assert_array_equal(sampled, logits(0, train=True))
  assert float(jnp.abs(sampled - logits(1, train=True)).max()) > 0
  assert float(jnp.abs(sampled - still).max()) > 0


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'padding': 'valid'}, 'SAME or VALID'),
    ({'up_kernel': 4}, '2 or 3'),
    ({'base_width': 0}, 'at least 1'),
    ({'short_skips': True}, 'unet has no short skips'),
  ],
)
def test_settings_that_no_network_has_are_refused(fields, words):
  with pytest.raises(errors.InputError, match=words):
    build(**fields)


def test_padded_convolutions_want_sides_that_halve_four_times():
  with pytest.raises(errors.InputError, match=r'nearest is 496x512'):
    build().check_size((500, 512))
