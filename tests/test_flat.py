"""A tree of parameters as vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.step import flat


@pytest.fixture(scope='module')
def tree():
  rng = np.random.default_rng(0)
  shapes = {
    'down': {
      'blocks': {'conv': {'kernel': (3, 1, 1, 2, 5), 'bias': (3, 5)}},
      'first': {'conv': {'kernel': (3, 3, 2, 2), 'bias': (2,)}},
    },
    'discriminator': {'dense': {'kernel': (4, 1), 'bias': (1,)}},
  }
  return jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def test_the_vectors_have_the_arrays(tree):
  joined = flat.join(tree)
  jax.tree.map(np.testing.assert_array_equal, joined.tree(), tree)
  assert sorted(joined.vectors) == ['discriminator', 'network']
  # A kernel, and each part of a scan's, begins at a multiple of a row.
  assert joined.vectors['network']['kernel'].size == 4 * flat.ROW


def test_arrays_that_are_cut_out_apart_are_the_same(tree):
  joined = flat.join(jax.tree.map(jnp.asarray, tree))
  program = jax.make_jaxpr(lambda joined: joined.tree(apart=True))(joined)
  assert str(program).count('optimization_barrier') == len(
    jax.tree.leaves(tree)
  )
  jax.tree.map(np.testing.assert_array_equal, joined.tree(apart=True), tree)


def test_a_parameter_is_found_in_its_vector(tree):
  joined = flat.join(tree)
  for path in (('down', 'first', 'conv'), ('discriminator', 'dense')):
    for name in ('kernel', 'bias'):
      array = tree
      for key in (*path, name):
        array = array[key]
      vector, start = joined.find(path, name, array.shape)
      found = vector[start : start + array.size].reshape(array.shape)
      np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
  ('path', 'name', 'shape'),
  [
    # In a scan, a module has one part of an array.
    (('down', 'blocks', 'conv'), 'bias', (5,)),
    (('down', 'third', 'conv'), 'bias', (2,)),
    (('down', 'first'), 'conv', (2,)),
    (('down', 'first', 'conv', 'bias'), 'bias', (2,)),
  ],
)
def test_what_is_no_parameter_is_not_found(tree, path, name, shape):
  assert flat.join(tree).find(path, name, shape) is None
