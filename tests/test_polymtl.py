"""PolyMtl is its normaliser followed by FC-ResNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import make_batch

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.prediction import inference

SMALL = {
  'base_width': 2,
  'blocks': 'simple',
  'repetitions': (1,) * 7,
  'normaliser_width': 2,
}


def build(name, **fields):
  return models.build_model(models.model_config(name, **fields))


def count(model):
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32),
  )
  return sum(x.size for x in jax.tree.leaves(variables['params']))


def test_its_parameters_are_those_of_both():
  normaliser = count(build('unet', base_width=16))
  segmenter = count(build('fc_resnet'))
  assert segmenter == 11_451_745
  assert count(build('polymtl')) == normaliser + segmenter == 13_392_579


def test_the_one_feeds_the_other():
  model, image = build('polymtl', **SMALL), make_batch()['image']
  variables = jax.jit(
    lambda: model.init(jax.random.key(0), image, train=False)
  )()
  outputs = jax.jit(lambda x: model.apply(variables, x, train=False))(image)

  def part(name, model, x):
    own = {k: tree[name] for k, tree in variables.items() if name in tree}
    return jax.jit(lambda x: model.apply(own, x, train=False)['logits'])(x)

  unet = build('unet', base_width=2, dropout=0.0)
  normalised = part('normaliser', unet, image)
  np.testing.assert_allclose(outputs['normalised'], normalised, atol=1e-6)
  fields = {k: v for k, v in SMALL.items() if k != 'normaliser_width'}
  expected = part('segmenter', build('fc_resnet', **fields), normalised)
  np.testing.assert_allclose(outputs['logits'], expected, atol=1e-5)

  predictor = inference.Predictor(model, [variables])
  pixels = np.random.default_rng(0).integers(0, 255, (1, 40, 50))
  shown = predictor.normalised(pixels.astype(np.uint8))
  assert shown.shape == (40, 50)
  assert shown.std() > 0


def test_what_neither_takes_is_refused():
  with pytest.raises(errors.InputError, match='normaliser_width is 0'):
    build('polymtl', normaliser_width=0)
  with pytest.raises(errors.InputError, match=r'model\.repetitions is'):
    build('polymtl', repetitions=(1, 1))
