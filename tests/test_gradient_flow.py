"""Gradients by layer, against finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax.analysis import gradient_flow


class Chain(nn.Module):
  """Dense layers whose names sort in the reverse of their call order."""

  @nn.compact
  def __call__(self, x, train):
    del train
    for name in ('c', 'b', 'a'):
      x = nn.Conv(2, (3, 3), name=name)(x)
    return {'logits': x}


def test_layers_come_in_call_order():
  model = Chain()
  variables = model.init(
    jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
  )
  grads = gradient_flow.layer_gradients(
    model,
    variables,
    {'image': jnp.ones((1, 8, 8, 1))},
    lambda outputs, _: jnp.sum(outputs['logits']),
  )
  assert list(grads) == ['c', 'b', 'a']
  assert grads['c'].shape == (3, 3, 1, 2)


def test_squares_over_layers_make_the_gradient_norm():
  model, variables = small_networks.make_net()
  batch = small_networks.make_batch()
  grads = gradient_flow.layer_gradients(
    model, variables, batch, small_networks.bce
  )

  def objective(params):
    outputs, _ = model.apply(
      variables | {'params': params},
      batch['image'],
      train=True,
      mutable=['batch_stats'],
    )
    return small_networks.bce(outputs, batch)

  whole = jax.jit(jax.grad(objective))(variables['params'])
  expected = sum(
    float(jnp.sum(leaf**2))
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole)
    if path[-1].key == 'kernel'
  )
  found = sum(float(jnp.sum(g**2)) for g in grads.values())
  assert found == pytest.approx(expected, rel=1e-5)
  assert expected > 0


def test_against_finite_differences_in_float64():
  with jax.enable_x64(True):
    model = Chain()
    variables = jax.tree.map(
      lambda x: x.astype(jnp.float64),
      model.init(
        jax.random.key(0), jnp.zeros((1, 6, 6, 1), jnp.float32), train=False
      ),
    )
    batch = {'image': small_networks.make_batch(6, jnp.float64)['image']}

    def loss(outputs, _):
      return jnp.mean(jnp.tanh(outputs['logits']) ** 2)

    grads = gradient_flow.layer_gradients(model, variables, batch, loss)
    rng = np.random.default_rng(0)
    step = 1e-5
    for name, g in grads.items():
      index = tuple(rng.integers(s) for s in g.shape)

      def at(delta, name=name, index=index):
        params = jax.tree.map(lambda x: x, variables['params'])
        params[name]['kernel'] = params[name]['kernel'].at[index].add(delta)
        outputs = model.apply({'params': params}, batch['image'], train=True)
        return float(loss(outputs, batch))

      numeric = (at(step) - at(-step)) / (2 * step)
      assert float(g[index]) == pytest.approx(numeric, rel=1e-7, abs=1e-12)


def test_a_model_without_convolutions_is_refused():
  class Bias(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      del train
      return x + self.param('bias', nn.initializers.zeros_init(), (1, 1, 1, 1))

  model = Bias()
  image = jnp.zeros((1, 8, 8, 1))
  with pytest.raises(errors.InputError, match='no layer with a kernel'):
    gradient_flow.layer_gradients(
      model,
      model.init(jax.random.key(0), image, train=False),
      {'image': image},
      lambda outputs, _: jnp.sum(outputs),
    )


class Fixed(nn.Module):
  """A module that cannot be hashed: one of its fields is an array."""

  scale: np.ndarray

  @nn.compact
  def __call__(self, image, train):
    del train
    return {'logits': nn.Conv(1, (1, 1), name='conv')(image) * self.scale}


def test_a_model_that_cannot_be_hashed_is_one_of_any():
  batch = {'image': np.ones((1, 2, 2, 1), np.float32)}
  params = {
    'kernel': np.ones((1, 1, 1, 1), np.float32),
    'bias': np.zeros(1, np.float32),
  }
  found = [
    gradient_flow.layer_gradients(
      Fixed(np.full((1, 1, 1, 1), scale, np.float32)),
      {'params': {'conv': params}},
      batch,
      lambda outputs, _: outputs['logits'].sum(),
    )['conv']
    for scale in (1, 3)
  ]
  assert [float(g.sum()) for g in found] == [4, 12]
