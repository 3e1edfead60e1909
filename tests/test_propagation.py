"""Signal propagation against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import propagation


class Scales(nn.Module):
  """Each layer multiplies by a constant: every size has a closed form."""

  factors: tuple[float, ...]

  @nn.compact
  def __call__(self, x, train):
    del train
    for i, factor in enumerate(self.factors):
      x = nn.Dense(
        1,
        use_bias=False,
        name=f'scale_{i}',
        kernel_init=nn.initializers.constant(factor),
      )(x)
    return {'logits': x}


def test_scales_in_closed_form():
  factors = (2.0, 0.5, 3.0)
  image = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
  found = propagation.propagate(
    Scales(factors),
    {'image': image},
    lambda outputs, _: jnp.sum(outputs['logits']),
    range(2),
  )
  products = np.cumprod(factors)
  image_square = float(jnp.mean(image**2))
  for seed in range(2):
    np.testing.assert_allclose(
      found.mean_square[seed], products**2 * image_square, rtol=1e-5
    )
    np.testing.assert_allclose(
      found.variance[seed], products**2 * float(jnp.var(image)), rtol=1e-5
    )
    np.testing.assert_allclose(found.tangent[seed], products**2, rtol=1e-5)
    np.testing.assert_allclose(
      found.gradient[seed], (products[-1] / products) ** 2, rtol=1e-5
    )


class Wide(nn.Module):
  """Pre-activation layers of 256 units, with or without a shortcut."""

  short: bool
  depth: int = 6

  @nn.compact
  def __call__(self, x, train):
    del train
    x = nn.Dense(256, name='first')(x)
    for i in range(self.depth):
      y = nn.Dense(
        256, kernel_init=nn.initializers.he_normal(), name=f'dense_{i}'
      )(nn.relu(x))
      x = x + y if self.short else y
    return {'logits': x}


@pytest.mark.parametrize(('short', 'gain'), [(False, 1.0), (True, 2.0)])
def test_he_initialisation_keeps_the_signal_and_shortcuts_double_it(
  short, gain
):
  # He et al. 2015: a ReLU layer keeps the mean square. With a shortcut it is
  # that of the input plus that of the branch, which are equal.
  image = jax.random.normal(jax.random.key(3), (1, 8, 8, 64))
  model = Wide(short)
  found = propagation.propagate(
    model,
    {'image': image},
    lambda outputs, _: jnp.mean(outputs['logits'] ** 2),
    range(10),
  )
  # Behind the first layer; dense_0 is the first branch.
  branch = np.median(found.mean_square, axis=0)
  assert found.layers[1] == 'dense_0'
  growth = (branch[-1] / branch[1]) ** (1 / (model.depth - 1))
  assert growth == pytest.approx(gain, rel=0.15)


def test_seeds_differ_and_repeat():
  model = small_networks.make_model(repetitions=(1,) * 7)
  batch = small_networks.make_batch()
  at_hand = gradient_flow.conv_names(model, batch['image'].shape)
  run = [
    propagation.propagate(model, batch, small_networks.bce, seeds, layers=names)
    for names, seeds in ((None, (0, 1)), (at_hand, (1,)))
  ]
  assert not np.array_equal(run[0].gradient[0], run[0].gradient[1])
  np.testing.assert_array_equal(run[0].gradient[1], run[1].gradient[0])
  assert run[0].layers[0] == 'down_1'
  assert np.isfinite(run[0].tangent).all()
  assert (run[0].gradient > 0).all()


def test_lazy_initialisation_is_that_of_a_compiled_init():
  model = small_networks.make_model(repetitions=(1,) * 7)
  image = small_networks.make_batch()['image']
  key = jax.random.key(5)
  shape = jax.ShapeDtypeStruct(image.shape, image.dtype)
  lazy = model.lazy_init(key, shape, train=False)
  compiled = jax.jit(lambda k: model.init(k, image, train=False))(key)
  jax.tree.map(np.testing.assert_array_equal, lazy, compiled)
