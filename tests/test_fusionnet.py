"""FusionNet: its count by hand, and what its skips add."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax import models


def build(**fields):
  return models.build_model(models.model_config('fusionnet', **fields))


def count(width):
  """Parameters of the network by hand."""

  def conv(c_in, c):
    return 9 * c_in * c + c + 2 * c  # Kernel, bias, BatchNorm's two.

  def level(c_in, c):
    return conv(c_in, c) + 4 * conv(c, c)

  widths = [width * 2**i for i in range(5)]
  down = level(1, width) + sum(level(c // 2, c) for c in widths[1:])
  up = sum(conv(2 * c, c) + level(c, c) for c in widths[:-1])
  return down + up + width + 1


@pytest.mark.parametrize('width', [2, 16, 64])
def test_the_count_is_that_of_its_levels(width):
  image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: build(base_width=width).init(jax.random.key(0), x, train=False),
    image,
  )
  sizes = [leaf.size for leaf in jax.tree.leaves(shapes['params'])]
  assert sum(sizes) == count(width)


def test_the_published_widths_do_not_give_31_million():
  assert count(64) == 78_531_137


def test_skips_add_no_parameters_and_matter():
  image = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
  both = build(base_width=2)
  variables = small_networks.draw(both, image.shape)

  @functools.partial(jax.jit, static_argnums=0)
  def logits(model):
    return model.apply(variables, image, train=False)['logits']

  whole = logits(both)
  for switch in ('long_skips', 'short_skips'):
    found = logits(build(base_width=2, **{switch: False}))
    assert float(jnp.abs(whole - found).max()) > 1e-3 * float(
      jnp.abs(whole).max()
    )
    assert np.isfinite(found).all()


def test_sides_must_be_halved_four_times():
  with pytest.raises(errors.InputError, match=r'nearest is 496x512'):
    build().check_size((500, 512))
  with pytest.raises(errors.InputError, match='at least 1'):
    build(base_width=0)
