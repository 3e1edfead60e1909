"""F-CLmser-S: published counts, and what its gates and masks do to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import clmser

# PAPERS: trainable parameters of the five variants.
COUNTS = {
  'none': 8_293_704,
  'cg': 8_306_178,
  'cg+pg': 8_306_205,
  'cg+full_pg': 8_306_223,
  'cg+pg+gm': 8_308_941,
}
IMAGE = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))


def build(**fields):
  return models.build_model(models.model_config('f_clmser_s', **fields))


def small(**fields):
  """A small network whose weights are large enough for its masks to matter."""
  model = build(**{'base_width': 4, 'pad': 0} | fields)
  # Whether the image is padded changes no parameter.
  variables = small_networks.draw(model.clone(pad=0), IMAGE.shape)
  rng = np.random.default_rng(1)
  kernels = jax.tree.map(
    lambda p: (
      rng.normal(0, 0.12, p.shape).astype(p.dtype) if p.ndim == 4 else p
    ),
    variables['params'],
  )
  return model, variables | {'params': kernels}


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, params):
  """Logits and masks, by batch statistics, which keep activations in size."""
  outputs, seen = model.apply(
    variables | {'params': params},
    IMAGE,
    train=True,
    mutable=['gates', 'batch_stats'],
  )
  return outputs['logits'], seen['gates']


@pytest.mark.parametrize('gates', clmser.VARIANTS)
def test_parameter_counts_are_the_published_ones(gates):
  shapes = jax.eval_shape(
    lambda x: build(gates=gates).init(jax.random.key(0), x, train=False), IMAGE
  )
  sizes = [leaf.size for leaf in jax.tree.leaves(shapes['params'])]
  assert sum(sizes) == COUNTS[gates]
  assert set(shapes) == {'params', 'batch_stats'}


def test_which_gates_there_are():
  pixel = {f'pixel_gate_{i}' for i in '123'}
  channel = {f'channel_gate_{i}' for i in '123'}
  full = {'pixel_gate_encoder_1', 'pixel_gate_encoder_2'}
  masks = {'confidence_mask_1', 'confidence_mask_2'}
  expected = {
    'none': set(),
    'cg': channel,
    'cg+pg': channel | pixel,
    'cg+full_pg': channel | pixel | full,
    'cg+pg+gm': channel | pixel | masks,
  }
  for gates, names in expected.items():
    model = build(gates=gates, base_width=4)
    variables = jax.eval_shape(
      lambda m=model: m.init(jax.random.key(0), IMAGE, train=False)
    )
    _, sown = jax.eval_shape(
      lambda v, m=model: m.apply(v, IMAGE, train=False, mutable=['gates']),
      variables,
    )
    assert set(sown.get('gates', {})) == names


def test_initialisation_is_that_of_the_authors():
  shapes = {}
  model = build(base_width=6, pad=0)
  variables = jax.tree.map(
    np.asarray,
    jax.jit(lambda: model.init(jax.random.key(1), IMAGE, train=False))(),
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params']):
    kind = path[-1].key
    if kind == 'bias' and path[-2].key in ('reduce', 'expand'):
      kind = 'bias of a channel gate'
    shapes.setdefault(kind, []).append(np.ravel(leaf))
  kernels, scales, biases = (
    np.concatenate(shapes[name]) for name in ('kernel', 'scale', 'bias')
  )
  assert kernels.mean() == pytest.approx(0, abs=1e-4)
  assert kernels.std() == pytest.approx(0.02, rel=1e-2)
  assert scales.mean() == pytest.approx(1, abs=5e-3)
  assert scales.std() == pytest.approx(0.02, rel=0.1)
  assert not biases.any()
  # PyTorch's default, see test_gates.
  assert np.concatenate(shapes['bias of a channel gate']).any()


def test_the_sigmoid_of_the_logits_is_the_tanh_in_0_to_1():
  model, variables = small()

  @jax.jit
  def captured(variables):
    return model.apply(
      variables,
      IMAGE,
      train=False,
      capture_intermediates=lambda module, _: module.name == 'classifier',
      mutable=['intermediates'],
    )

  outputs, seen = captured(variables)
  (last,) = seen['intermediates']['classifier']['__call__']
  np.testing.assert_allclose(
    jax.nn.sigmoid(outputs['logits']), (jnp.tanh(last) + 1) / 2, atol=1e-6
  )


def test_the_mask_opens_encoder_1_where_the_prediction_is_unsure():
  model, variables = small(gates='cg+pg+gm')
  params = variables['params']

  def with_mask(factor):
    """Logits and mask with t1 = tanh(factor * ...): 0 is undecided."""
    kernel = factor * params['confidence_mask_1']['conv']['kernel']
    changed = params | {'confidence_mask_1': {'conv': {'kernel': kernel}}}
    logits, masks = run(model, variables, changed)
    return logits, masks['confidence_mask_1']['value']

  undecided, opened = with_mask(0)
  decided, shut = with_mask(1e6)
  np.testing.assert_array_equal(opened, np.ones(opened.shape))
  assert float(shut.mean()) < 1e-3
  assert float(jnp.abs(undecided - decided).mean()) > 1e-2


def test_masks_carry_gradient_but_stay_out_of_the_loss():
  model, variables = small()

  def total(params):
    return jnp.sum(jnp.square(run(model, variables, params)[0]))

  grads = jax.jit(jax.grad(total))(variables['params'])
  for name in ('confidence_mask_1', 'confidence_mask_2', 'confidence_up'):
    for leaf in jax.tree.leaves(grads[name]):
      assert np.abs(leaf).max() > 0
  outputs = jax.eval_shape(
    lambda v: model.apply(v, IMAGE, train=False), variables
  )
  assert set(outputs) == {'logits'}


def test_the_image_is_mirrored_around_and_the_prediction_cut_back():
  model, variables = small(pad=32, gates='cg+pg')
  plain = build(base_width=4, pad=0, gates='cg+pg')

  @functools.partial(jax.jit, static_argnums=0)
  def logits(model, image):
    return model.apply(variables, image, train=False)['logits']

  found = logits(model, IMAGE)
  around = np.pad(IMAGE, ((0, 0), (32, 32), (32, 32), (0, 0)), 'reflect')
  whole = logits(plain, around)
  np.testing.assert_allclose(found, whole[:, 32:64, 32:64], atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'gates': 'cg+xg'}, 'none, cg, cg'),
    ({'gamma': 0}, 'gamma is 0; it must be at least 1'),
    ({'deconv_kernel': 4}, '2 or 3'),
    ({'pad': 40}, 'multiple of 32: 32 is the nearest'),
    ({'pad': -32}, 'at least 0'),
    ({'base_width': 1}, 'at least 2'),
    ({'dropout': 0.1}, 'model.dropout'),
  ],
)
def test_settings_that_no_network_has_are_refused(fields, words):
  with pytest.raises(errors.InputError, match=words):
    build(**fields)


def test_sides_must_be_halved_five_times():
  with pytest.raises(errors.InputError, match=r'40x32.*nearest is 32x32'):
    build().check_size((40, 32))
