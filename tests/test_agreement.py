"""Loss and gradient of `agreement`, its distances and its tolerances."""

import jax
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.step import agreement


@pytest.fixture(scope='module')
def case():
  """A small network, its variables and a batch."""
  config = models.model_config(
    'fc_resnet', blocks='simple', repetitions=(1,) * 7, base_width=2
  )
  model = models.build_model(config)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(1, 64, 64, 1))
  batch = {'image': image, 'label': (image > 0).astype(float)}
  variables = small_networks.draw(model, image.shape)
  return model, jax.device_get(variables), batch


def test_the_gradient_is_the_slope_of_the_loss(case):
  model, variables, batch = case
  found = agreement.point(model, variables, batch, 'float64')
  name, step = 'classifier', 1e-4
  losses = []
  for sign in (1, -1):
    params = jax.tree.map(np.float64, variables['params'])
    params[name] = dict(params[name], bias=params[name]['bias'] + sign * step)
    moved = dict(variables, params=params)
    losses.append(agreement.point(model, moved, batch, 'float64')['loss'])
  slope = (losses[0] - losses[1]) / (2 * step)
  # The loss is float32 even there.
  assert found['gradient'][name]['bias'][0] == pytest.approx(slope, abs=2e-3)


def test_only_the_biases_of_batch_norms_are_shifted(case):
  _, variables, _ = case
  shifted = agreement.shift_biases(variables)
  changed = jax.tree_util.tree_map_with_path(
    lambda path, a, b: (path[-2].key, path[-1].key, float(np.max(b - a))),
    variables,
    shifted,
  )
  for layer, name, by in jax.tree.leaves(
    changed, is_leaf=lambda x: isinstance(x, tuple)
  ):
    norm = layer.startswith('norm') and name == 'bias'
    assert by == (agreement.BIAS_SHIFT if norm else 0), (layer, name)


def test_a_batch_norm_is_known_by_its_scale():
  one = np.ones(2, np.float32)
  params = {
    'up_0_norm': {'scale': one, 'bias': one},
    'up': {'block': {'scale': one, 'bias': one}, 'conv': {'bias': one}},
  }
  shifted = agreement.shift_biases({'params': params, 'batch_stats': {}})
  assert shifted['batch_stats'] == {}
  found = shifted['params']
  assert found['up_0_norm']['bias'][0] == 1 + agreement.BIAS_SHIFT
  assert found['up']['block']['bias'][0] == 1 + agreement.BIAS_SHIFT
  assert found['up']['block']['scale'][0] == 1
  assert found['up']['conv']['bias'][0] == 1


def test_a_point_counts_pixels_by_their_weight():
  model = models.build_model(models.model_config('unet', base_width=2))
  rng = np.random.default_rng(0)
  image = rng.normal(size=(1, 32, 32, 1)).astype(np.float32)
  variables = jax.device_get(small_networks.draw(model, image.shape))
  batch = {'image': image, 'label': np.ones_like(image)}
  whole = agreement.point(model, variables, batch, 'float32')
  # Only the half with weight counts: bce of the logits there.
  weight = np.zeros_like(image)
  weight[:, :16] = 3.0
  half = agreement.point(
    model, variables, batch | {'weight': weight}, 'float32'
  )
  expected = np.log1p(np.exp(-whole['logits'][:, :16])).mean()
  assert half['loss'] == pytest.approx(expected, rel=1e-5)


def test_the_settings_of_the_device_are_put_back(case):
  model, variables, batch = case
  before = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
  point = agreement.point(model, variables, batch, 'float64')
  assert point['gradient']['classifier']['bias'].dtype == np.float64
  after = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
  assert before == after


def test_a_distance_is_relative_to_the_norm_of_all_arrays():
  a = {'x': np.array([3.0, 4.0]), 'y': np.zeros(2)}
  b = {'x': np.array([3.0, 0.0]), 'y': np.zeros(2)}
  assert agreement.distance(a, b) == pytest.approx(4 / 3)
  assert agreement.distance(a, b, least=8.0) == pytest.approx(1 / 2)
  assert agreement.distance({}, {}) == 0
  assert agreement.distance(a['x'], b['y']) == np.inf


@pytest.mark.parametrize('apart', [2e-4, float('nan')])
def test_a_distance_above_its_tolerance_is_an_error(apart):
  tolerances = {'loss': 1e-4, 'logits': 1e-4}
  agreement.check({'loss': 9e-5}, tolerances, 'Bad')
  with pytest.raises(errors.RunError, match='Bad: loss differs'):
    agreement.check({'logits': 9e-5, 'loss': apart}, tolerances, 'Bad')
