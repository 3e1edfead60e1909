"""Steerable filters: their atoms, their initialisation, and SFCNN turned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import sfcnn

QUARTER = sfcnn.ORIENTATIONS // 4


@pytest.mark.parametrize('side', [3, 5, 7])
def test_turning_an_atom_by_a_quarter_turns_its_pixels(side):
  atoms = sfcnn.basis(side)
  turned = np.rot90(atoms, 1, (2, 3))
  np.testing.assert_allclose(np.roll(atoms, -QUARTER, 0), turned, atol=1e-6)
  np.testing.assert_allclose(np.square(atoms[0]).sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize('side', [5, 7])
def test_a_turned_atom_is_the_sum_of_those_that_are_not(side):
  """Steerability: cosine and sine of a frequency turn into each other."""
  rings = sfcnn.FREQUENCIES[: side // 2 + 1]
  # Before each is scaled to norm 1, cosine and sine have one scale.
  scales, atoms = [], sfcnn.basis(side)
  y, x = np.mgrid[side // 2 : -side // 2 : -1, -(side // 2) : side // 2 + 1]
  radius, angle = np.hypot(x, y), np.arctan2(y, x)
  at = 0
  for ring, highest in enumerate(rings):
    profile = np.exp(-((radius - ring) ** 2) / (2 * sfcnn.SIGMA**2))
    for k in range(highest + 1):
      if k == 0:
        np.testing.assert_allclose(
          atoms[:, at], atoms[:1, at] + 0 * atoms[:, at]
        )
        at += 1
        continue
      pair = [profile * f(k * angle) * (radius > 0) for f in (np.cos, np.sin)]
      scales = [np.linalg.norm(p) for p in pair]
      for turn in range(sfcnn.ORIENTATIONS):
        phase = k * 2 * np.pi * turn / sfcnn.ORIENTATIONS
        cos, sin = np.cos(phase), np.sin(phase)
        expected = (
          (cos * pair[0] + sin * pair[1]) / scales[0],
          (cos * pair[1] - sin * pair[0]) / scales[1],
        )
        np.testing.assert_allclose(
          atoms[turn, at : at + 2], expected, atol=1e-5
        )
      at += 2
  assert at == atoms.shape[1]


def test_a_layer_doubles_the_mean_square():
  """Generalised He: what ReLU halves, of noise."""
  layer = sfcnn.SteerableConv(features=16)
  x = jax.random.normal(jax.random.key(1), (1, 40, 40, 16 * sfcnn.ORIENTATIONS))
  y = layer.apply(layer.init(jax.random.key(0), x), x)[:, 4:-4, 4:-4]
  ratio = float(jnp.square(y).mean() / jnp.square(x).mean())
  assert 1.6 < ratio < 2.4


@pytest.mark.parametrize('lift', [True, False])
def test_a_quarter_turn_of_the_image_turns_maps_and_orientations(lift):
  layer = sfcnn.SteerableConv(features=3, kernel_size=5, lift=lift)
  channels = 2 if lift else 2 * sfcnn.ORIENTATIONS
  x = jax.random.normal(jax.random.key(1), (1, 12, 12, channels))
  variables = layer.init(jax.random.key(0), x)

  def turn(maps, orientations):
    maps = jnp.rot90(maps, 1, (1, 2))
    if orientations:
      maps = maps.reshape(*maps.shape[:3], sfcnn.ORIENTATIONS, -1)
      maps = jnp.roll(maps, QUARTER, 3).reshape(*maps.shape[:3], -1)
    return maps

  expected = turn(layer.apply(variables, x), True)
  found = layer.apply(variables, turn(x, not lift))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def build(**fields):
  return models.build_model(models.model_config('sfcnn', **fields))


@pytest.mark.parametrize('train', [False, True])
def test_turning_the_image_by_a_quarter_turns_the_prediction(train):
  model = build(base_width=1)
  image = jax.random.normal(jax.random.key(1), (1, 32, 32, 1))
  variables = jax.jit(
    lambda: model.init(jax.random.key(0), image, train=False)
  )()

  @jax.jit
  def apply(x):
    outputs, _ = model.apply(variables, x, train=train, mutable=['batch_stats'])
    return jax.nn.sigmoid(outputs['logits'])

  plain = apply(image)
  assert float(plain.std()) > 0.01
  for turns in (1, 2, 3):
    found = apply(jnp.rot90(image, turns, (1, 2)))
    expected = jnp.rot90(plain, turns, (1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
  # A mirrored image is another one.
  assert float(jnp.abs(apply(image[:, ::-1]) - plain[:, ::-1]).max()) > 1e-3


def test_its_parameters():
  variables = jax.eval_shape(
    lambda x: build().init(jax.random.key(0), x, train=False),
    jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32),
  )
  atoms = 1 + (1 + 2 * 2) + (1 + 2 * 3)
  assert sfcnn.basis(5).shape[1] == atoms

  def layer(c_in, c_out, seen=sfcnn.ORIENTATIONS):
    # Kernel, its bias, BatchNorm.
    return atoms * seen * c_in * c_out + 3 * c_out

  total = layer(1, 8, 1) + layer(8, 8)
  for c in (16, 32, 64):
    total += layer(c // 2, c) + layer(c, c)
  for c in (32, 16, 8):
    total += layer(3 * c, c) + layer(c, c)
  total += 8 + 1
  found = sum(x.size for x in jax.tree.leaves(variables['params']))
  assert found == total == 2_810_001


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'kernel_size': 4}, 'model.kernel_size is 4; it must be 3, 5 or 7'),
    ({'base_width': 0}, 'model.base_width is 0'),
  ],
)
def test_a_setting_of_no_network_is_refused(fields, words):
  with pytest.raises(errors.InputError, match=words):
    build(**fields)
