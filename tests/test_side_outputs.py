"""CUMedVision and M2FCN: counts, plain transcriptions, auxiliary weights."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import make_batch

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import layers
from skipnet_jax.models import m2fcn
from skipnet_jax.step import losses

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def made(name, image, **fields):
  model = models.build_model(models.model_config(name, **fields))
  variables = jax.jit(
    lambda: model.init(jax.random.key(0), image, train=False)
  )()
  return model, variables


def count(name, **fields):
  model = models.build_model(models.model_config(name, **fields))
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    jax.ShapeDtypeStruct(model.input_shape((64, 64)), jnp.float32),
  )
  return sum(x.size for x in jax.tree.leaves(variables['params']))


def vgg_count(base, inputs=1):
  total = 0
  for level, convolutions in enumerate((2, 2, 3, 3)):
    for _ in range(convolutions):
      total += (9 * inputs + 1) * base * 2**level
      inputs = base * 2**level
  return total


def test_cumedvision_has_the_quoted_eight_million():
  branches = sum(
    (2 * s) ** 2 * c * 2 + 2 for s, c in ((2, 128), (4, 256), (8, 512))
  )
  assert count('cumedvision') == vgg_count(64) + branches == 7_933_126


@pytest.mark.parametrize('stages', [1, 2, 3])
def test_a_stage_of_m2fcn_sees_the_sides_of_the_last(stages):
  sides = sum(32 * 2**i + 1 for i in range(4))
  ups = sum((2 * 2**i) ** 2 + 1 for i in (1, 2, 3))
  first = vgg_count(32) + sides + ups + 4 + 1
  later = first + 9 * 4 * 32
  expected = first + (stages - 1) * later
  assert count('m2fcn', stages=stages) == expected


def convolve(x, layer):
  y = lax.conv_general_dilated(
    x, layer['kernel'], (1, 1), 'SAME', dimension_numbers=DIMENSIONS
  )
  return y + layer['bias'].reshape(1, 1, 1, -1)


def upsample(x, layer, stride):
  """A transposed convolution as a loop over the pixels that it sets."""
  kernel = np.asarray(layer['kernel'], np.float64)
  b, h, w, _ = x.shape
  side = 2 * stride
  out = np.zeros((b, stride * h + stride, stride * w + stride, kernel.shape[3]))
  for i in range(h):
    for j in range(w):
      out[
        :, i * stride : i * stride + side, j * stride : j * stride + side
      ] += np.einsum(
        'bc,pqcf->bpqf', np.asarray(x[:, i, j], np.float64), kernel
      )
  cut = stride // 2
  out = out[:, cut : cut + stride * h, cut : cut + stride * w]
  return out + np.asarray(layer['bias'])


def trunk(x, params):
  found = []
  for level, convolutions in enumerate((2, 2, 3, 3)):
    if level:
      x = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
      )
    for i in range(1, convolutions + 1):
      x = jax.nn.relu(convolve(x, params[f'level_{level}_conv_{i}']))
    found.append(x)
  return found


def test_m2fcn_of_one_stage_is_a_net_with_side_outputs():
  image = make_batch()['image']
  model, variables = made('m2fcn', image, stages=1, base_width=3)
  found = jax.jit(lambda x: model.apply(variables, x, train=False))(image)
  params = variables['params']['stage_1']
  sides = []
  for level, x in enumerate(trunk(image, params['trunk'])):
    side = convolve(x, params[f'side_{level}'])
    if level:
      side = upsample(side, params[f'side_{level}_up'], 2**level)
    sides.append(np.asarray(side))
  fused = convolve(
    jnp.asarray(np.concatenate(sides, -1), jnp.float32), params['fusion']
  )
  np.testing.assert_allclose(found['logits'], fused, atol=1e-4)
  names = [f'stage_1_side_{level}' for level in range(4)]
  assert list(found['auxiliary']) == names
  for name, side in zip(names, sides, strict=True):
    np.testing.assert_allclose(found['auxiliary'][name], side, atol=1e-4)


@pytest.mark.parametrize('stride', [2, 4, 8])
def test_sides_are_interpolated_at_first(stride):
  up = layers.ConvTranspose(
    1, 2 * stride, stride, kernel_init=m2fcn.bilinear, use_bias=False
  )
  coarse = make_batch()['image'][:, :8, :6]
  fine, _ = up.init_with_output(jax.random.key(0), coarse)
  shape = (len(coarse), stride * 8, stride * 6, 1)
  expected = jax.image.resize(coarse, shape, 'bilinear')
  # Beyond the outermost centres there is nothing to interpolate.
  inside = np.s_[:, stride:-stride, stride:-stride]
  np.testing.assert_allclose(fine[inside], expected[inside], atol=1e-5)


def test_the_fusion_is_the_mean_of_the_sides_at_first():
  image = make_batch()['image']
  model, variables = made('m2fcn', image, stages=2, base_width=3)
  found = jax.jit(lambda x: model.apply(variables, x, train=False))(image)
  auxiliary = found['auxiliary']
  for number, fused in ((1, auxiliary['stage_1']), (2, found['logits'])):
    sides = [auxiliary[f'stage_{number}_side_{i}'] for i in range(4)]
    np.testing.assert_allclose(fused, sum(sides) / 4, rtol=1e-5, atol=1e-5)


def test_cumedvision_is_the_sum_of_its_branches():
  image = make_batch()['image']
  model, variables = made('cumedvision', image, base_width=3)
  found = jax.jit(lambda x: model.apply(variables, x, train=False))(image)
  params = variables['params']
  total = 0
  for level, x in enumerate(trunk(image, params['trunk'])[1:], start=1):
    branch = upsample(x, params[f'branch_{level}_up'], 2**level)
    branch = branch[..., 1:] - branch[..., :1]
    auxiliary = found['auxiliary'][f'branch_{level}']
    np.testing.assert_allclose(auxiliary, branch, atol=1e-4)
    total = total + branch
  np.testing.assert_allclose(found['logits'], total, atol=1e-4)


def test_the_weight_of_auxiliary_outputs_falls():
  train = config_lib.get_default().train
  train.update(auxiliary=(1.0, 0.1, 0.01), auxiliary_at=(2, 5))
  terms = losses.make_terms(train, steps_per_epoch=3)
  found = [float(terms.auxiliary(jnp.asarray(i))) for i in range(18)]
  np.testing.assert_allclose(found, [1] * 6 + [0.1] * 9 + [0.01] * 3)


def test_every_auxiliary_output_counts_by_its_weight():
  batch = make_batch(8)
  loss = losses.LOSSES['bce']
  outputs = {
    'logits': batch['image'],
    'auxiliary': {'a': 2 * batch['image'], 'b': -batch['image']},
  }
  sums = losses.training_sums(loss, outputs, batch)
  terms = losses.Terms(lambda step: 0.25)
  value, parts = losses.training_value(loss, terms, sums, jnp.zeros(()))
  each = [
    float(loss.value(loss.sums({'logits': x}, batch)))
    for x in (outputs['logits'], *outputs['auxiliary'].values())
  ]
  assert float(value) == pytest.approx(each[0] + 0.25 * sum(each[1:]))
  assert float(parts['auxiliary']) == pytest.approx(sum(each[1:]))


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'auxiliary': (1.0, 0.1)}, '1 weights, one more than'),
    ({'auxiliary_at': (3,)}, '2 weights, one more than'),
    ({'auxiliary': (1.0, 0.1), 'auxiliary_at': (0,)}, 'the first at least 1'),
    ({'auxiliary': (-1.0,)}, 'at least 0'),
    ({'auxiliary': (float('nan'),)}, 'at least 0'),
  ],
)
def test_a_schedule_that_does_not_fit_is_refused(smoke, fields, words):
  config = smoke()
  with config.unlocked():
    for name, value in fields.items():
      config.train[name] = value
  with pytest.raises(errors.InputError, match=r'train\.auxiliary') as caught:
    config_checks.validate(config)
  assert words in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'field'),
  [('cumedvision', 'base_width'), ('m2fcn', 'base_width'), ('m2fcn', 'stages')],
)
def test_a_setting_of_no_network_is_refused(name, field):
  with pytest.raises(errors.InputError, match=f'model.{field} is 0'):
    count(name, **{field: 0})


@pytest.mark.parametrize('name', ['cumedvision', 'm2fcn'])
def test_a_size_that_does_not_divide_is_refused(name):
  model = models.build_model(models.model_config(name))
  with pytest.raises(errors.InputError, match=r'multiples of 8.*40x64'):
    model.check_size((42, 64))
