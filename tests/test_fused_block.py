"""The GPUs' bottleneck block, interpreted, against that of other platforms."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import blocks
from skipnet_jax.models import fused_block
from skipnet_jax.step import flat


class Two(nn.Module):
  """Two blocks, of which the second takes the sums that the first wrote."""

  resample: str
  short_skip: bool
  axis_name: str | None
  dtype: str

  @nn.compact
  def __call__(self, x):
    """Maps `[b, y, x, 32]` to `[b, y', x', 64]`."""
    attributes = dict(
      short_skip=self.short_skip,
      dropout=0.2,
      dtype=jnp.dtype(self.dtype),
      axis_name=self.axis_name,
    )
    x = blocks.BottleneckBlock(64, **attributes)(x, True, True)
    return blocks.BottleneckBlock(64, self.resample, **attributes)(
      x, True, True
    )


def measured(
  fused,
  dtype,
  resample,
  short_skip,
  axis_name,
  devices=1,
  interpret=True,
  joined=True,
  side=32,
):
  """Outputs, running statistics, gradients of some function of the outputs."""
  module = Two(resample, short_skip, axis_name, dtype)
  rng = np.random.default_rng(0)
  shape = (8 if axis_name else 4, side, side, 32)
  x = jnp.asarray(rng.normal(1, 2, shape), dtype)
  # Of parameters and sums, as in training.
  precise = jnp.promote_types(dtype, jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x[:1])
  variables = jax.tree.map(
    lambda a: jnp.asarray(rng.normal(0.2, 0.3, a.shape), precise), variables
  )

  # The kernels read parameters where they lie in a vector, as in training, or
  # from copies.
  places = {'find': flat.join(variables['params']).find} if joined else {}

  def value(params, x):
    with (
      fused_block.instead_of_blocks(**places, interpret=interpret)
      if fused
      else contextlib.nullcontext()
    ):
      y, updated = module.apply(
        variables | {'params': params},
        x,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(1)},
      )
    total = jnp.sum(y.astype(precise) ** 2) / 1e3
    if axis_name:
      total = jax.lax.pmean(total, axis_name)
    return total, (y, updated)

  def call(x):
    (_, found), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(
      variables['params'], x
    )
    if axis_name:
      gradients = jax.lax.pmean(gradients[0], axis_name), gradients[1]
    return found, gradients

  if not axis_name:
    mesh = jax.make_mesh(
      (devices,),
      ('data',),
      # A GPU, where the kernels are not interpreted.
      devices=jax.devices(None if interpret else 'gpu')[:devices],
      axis_types=(jax.sharding.AxisType.Auto,),
    )
    spec = jax.sharding.PartitionSpec('data')
    return jax.jit(call)(
      jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    )
  halves = x.reshape(2, -1, *x.shape[1:])
  return jax.pmap(call, axis_name, devices=jax.devices()[:2])(halves)


def assert_equal(dtype, tolerance, *arguments):
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    found, expected = (
      measured(fused, dtype, *arguments) for fused in (True, False)
    )
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
  ('resample', 'short_skip', 'axis_name'),
  [('down', True, None), ('up', True, None), ('none', False, 'data')],
)
def test_it_is_the_block_to_rounding(resample, short_skip, axis_name):
  assert_equal('float64', 1e-9, resample, short_skip, axis_name)


def test_the_smallest_image_that_a_block_may_halve():
  # To 8x8 pixels, one tile of the kernels.
  assert_equal('float64', 1e-9, 'down', True, None, 1, True, True, 16)


def test_parameters_may_lie_in_no_vector():
  assert_equal('float64', 1e-9, 'none', True, None, 1, True, False)


def test_devices_that_share_a_batch_run_it_on_their_parts():
  # JAX traces the parts in a thread of its own, which knows float32 alone.
  assert_equal('float32', 1e-3, 'none', True, None, 2)


@pytest.mark.gpu
@pytest.mark.parametrize('resample', ['down', 'none', 'up'])
def test_a_gpu_runs_it(resample):
  with jax.numpy_dtype_promotion('standard'):
    found, expected = (
      measured(fused, 'bfloat16', resample, True, None, interpret=False)
      for fused in (True, False)
    )
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    # bfloat16 has eight bits.
    assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(b) + 1e-6
