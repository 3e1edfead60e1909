"""The layers in the form that a GPU takes, against the other platforms'."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import blocks
from skipnet_jax.models import gpu_layers
from skipnet_jax.models import layers

MODULES = {
  'upsampled': layers.Conv(3, upsampled=True, dtype=jnp.float64),
  'single': layers.Conv(1, 1, dtype=jnp.float64),
  'strided': layers.Conv(1, 1, 2, dtype=jnp.float64),
  'simple': blocks.SimpleBlock(4, dropout=0.2, dtype=jnp.float64),
  'pooled': blocks.SimpleBlock(4, 'down', dtype=jnp.float64),
}


@pytest.mark.parametrize('name', MODULES)
def test_it_is_the_layer_to_rounding(name):
  module, rng = MODULES[name], np.random.default_rng(0)
  block = isinstance(module, blocks.Block)

  def call(fused):
    def value(variables, x):
      with (
        gpu_layers.instead_of_layers() if fused else contextlib.nullcontext()
      ):
        y, updated = module.apply(
          variables,
          x,
          *[True, True] * block,
          mutable=['batch_stats'],
          rngs={'dropout': jax.random.key(1)},
        )
      return jnp.sum(y**3), (y, updated)

    return jax.jit(jax.grad(value, (0, 1), has_aux=True))(variables, x)

  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    x = jnp.asarray(rng.normal(1, 2, (2, 6, 4, 4)))
    variables = jax.eval_shape(
      lambda: module.init(jax.random.key(0), x, *[True, True] * block)
    )
    variables = jax.tree.map(
      lambda a: jnp.asarray(rng.normal(1, 1, a.shape)), variables
    )
    found, expected = call(True), call(False)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
