"""A product of an upsampled image, by both forms, against the image written."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.models import layers
from skipnet_jax.models import stage_ends
from skipnet_jax.models import upsampled
from skipnet_jax.models import upsampled_kernels


class Product(nn.Module):
  """The product of an upsampled image.

  Attributes:
    form: by the kernels in Pallas, by XLA's product, or by the image.
    rate: of dropout.
    axis_name: mapped axis of a pmapped call, or None.
    interpret: see `product_kernels.Form`.
  """

  form: str
  rate: float
  axis_name: str | None = None
  interpret: bool = True

  @nn.compact
  def __call__(self, main, short, w, bias):
    """Maps `[b, y, x, k]` to `[b, 2y, 2x, n]`."""
    dropout = layers.Dropout(self.rate, self.axis_name)
    image = stage_ends.Upsampled(main, short, dropout)
    assert upsampled.fits(image, w.shape[1])
    if self.form == 'pallas':
      return upsampled.times(image, w, bias, self.interpret)
    if self.form == 'xla':
      return image.times(w, bias)
    return image.whole() @ w + bias.reshape(1, 1, 1, -1)


def measured(
  form, rate, skipped, shape, columns, devices=1, pmap=False, gpu=False
):
  """The product, and gradients of some function of it."""
  # JAX traces the parts of a batch in a thread of its own, which knows float32
  # alone.
  dtype = np.float32 if devices > 1 else np.float64
  rng = np.random.default_rng(0)
  main, short, w, bias = (
    rng.normal(1, 2, sides).astype(dtype)
    for sides in (shape, shape, (shape[-1], columns), (columns,))
  )
  arrays = [main, short if skipped else None]
  if gpu:
    # The image and the gradients; w and bias stay in float32.
    main, short = (jnp.asarray(a, jnp.bfloat16) for a in (main, short))
    arrays = [main, short]
  axis_name = 'data' if pmap else None
  module = Product(form, rate, axis_name, interpret=not gpu)

  def value(arrays, w, bias):
    y = module.apply({}, *arrays, w, bias, rngs={'dropout': jax.random.key(1)})
    return jnp.sum(y**2) / 1e3, y

  def call(arrays, w, bias):
    return jax.value_and_grad(value, (0, 1, 2), has_aux=True)(arrays, w, bias)

  if pmap:
    arrays = [a.reshape(2, -1, *shape[1:]) for a in arrays]
    mapped = jax.pmap(
      *(call, 'data'), in_axes=(0, None, None), devices=jax.devices()[:2]
    )
    return mapped(arrays, w, bias)
  mesh = jax.make_mesh(
    *((devices,), ('data',)),
    devices=jax.devices('gpu' if gpu else None)[:devices],
    axis_types=(jax.sharding.AxisType.Auto,),
  )
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  return jax.jit(call)(jax.device_put(arrays, place), w, bias)


def assert_equal(tolerance, form, *arguments):
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    found, expected = (measured(form, *arguments) for form in (form, 'image'))
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
  ('rate', 'skipped', 'shape', 'columns'),
  [
    (0.3, True, (2, 4, 16, 32), 16),
    (0.3, False, (1, 6, 48, 128), 16),
    (0.0, True, (2, 3, 16, 16), 256),
  ],
)
@pytest.mark.parametrize('form', ['pallas', 'xla'])
def test_it_is_the_product_of_the_image_to_rounding(
  form, rate, skipped, shape, columns
):
  assert_equal(1e-9, form, rate, skipped, shape, columns)


@pytest.mark.parametrize('form', ['pallas', 'xla'])
@pytest.mark.parametrize('pmap', [False, True])
def test_devices_that_share_a_batch_drop_the_same_units(pmap, form):
  assert_equal(1e-3, form, 0.3, True, (2, 4, 16, 32), 16, 2, pmap)


def test_parts_of_sums_divide_an_image():
  for height, width in ((4, 16), (6, 48), (128, 128), (3, 2048)):
    rows = upsampled_kernels.rows_of(height, width)
    assert rows >= 1
    assert height % rows == 0
    assert rows == 1 or rows * width <= 1024


@pytest.mark.gpu
@pytest.mark.parametrize(('width', 'k', 'n'), [(128, 128, 32), (16, 1024, 512)])
def test_a_gpu_runs_it(width, k, n):
  with jax.numpy_dtype_promotion('standard'):
    found, expected = (
      measured(form, 0.1, True, (2, 16, width, k), n, gpu=True)
      for form in ('pallas', 'image')
    )
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    # bfloat16 has eight bits.
    assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(b) + 1e-6
