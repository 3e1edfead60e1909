"""Named random streams from one seed, folded with the step.

A stream's key is a pure function of (seed, name, step): a resumed run draws the
same numbers as an uninterrupted one.
"""

import jax

_STREAMS = ('init', 'order', 'augment', 'dropout')


def key_at(key: jax.Array, name: str, step: jax.Array | int = 0) -> jax.Array:
  """The key of stream `name` at `step`.

  Args:
    key: the run's key, `jax.random.key(seed)`.
    name: one of init, order, augment, dropout.
    step: global step, or the permutation's number for `order`.
  """
  return jax.random.fold_in(jax.random.fold_in(key, _STREAMS.index(name)), step)
