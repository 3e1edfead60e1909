"""The arrays of a state as one array of bytes, as checkpoints store them.

A table has their names, dtypes and shapes. Tensorstore, which orbax uses, leaks
a few hundred bytes of memory per array, and a state has a thousand.
"""

import json
from typing import Any
import zlib

import jax
import numpy as np

from skipnet_jax.step import flat
from skipnet_jax.step import parallel
from skipnet_jax.step import state as state_lib

TrainState = state_lib.TrainState


def to_tree(state: TrainState) -> dict[str, Any]:
  """The arrays of a state by field; its key as words."""
  if isinstance(state.key, jax.ShapeDtypeStruct):
    words = jax.eval_shape(jax.random.key_data, state.key)
    words = words.update(sharding=state.key.sharding)
  else:
    words = jax.random.key_data(state.key)
  return vars(state) | {'key': words}


def _is_flat(node: Any) -> bool:
  return isinstance(node, flat.Flat)


def _arrays(tree: Any) -> Any:
  """The tree with an array for each parameter, as checkpoints name them."""
  return jax.tree.map(
    lambda x: x.tree() if _is_flat(x) else x, tree, is_leaf=_is_flat
  )


def _shapes(tree: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def table(tree: Any) -> list[list[Any]]:
  """Name, dtype and shape of every array of a state, in order."""
  return [
    [
      jax.tree_util.keystr(path, simple=True, separator='.'),
      str(leaf.dtype),
      list(leaf.shape),
    ]
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      _arrays(_shapes(tree))
    )
  ]


def pack(tree: Any) -> np.ndarray:
  """The bytes of all arrays, one after the other."""
  parts = [
    np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    for leaf in jax.tree.leaves(_arrays(parallel.to_host(tree)))
  ]
  return np.concatenate(parts)


def unpack(data: np.ndarray, like: Any) -> Any:
  """The inverse of `pack`, with shapes and shardings as in `like`."""

  def take(leaf):
    nonlocal data
    size = leaf.size * leaf.dtype.itemsize
    # A copy, because JAX may keep the memory.
    value = data[:size].copy().view(leaf.dtype).reshape(leaf.shape)
    data = data[size:]
    return value

  def place(value, leaf):
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, value.__getitem__
    )

  like = _shapes(like)
  found = jax.tree.map(take, _arrays(like))
  joined = jax.tree.map(
    lambda x, part: flat.join(part, x.layout) if _is_flat(x) else part,
    like,
    found,
    is_leaf=_is_flat,
  )
  return jax.tree.map(place, joined, like)


def check_table(saved: list[list[Any]], needed: list[list[Any]]) -> None:
  """Raises ValueError if a checkpoint is of another network."""
  old, new = (
    {name: f'{kind} {tuple(shape)}' for name, kind, shape in table}
    for table in (saved, needed)
  )
  # Parameters first: the other arrays depend on them.
  names = sorted(
    old.keys() | new.keys(), key=lambda n: (not n.startswith('params.'), n)
  )
  for name in names:
    if old.get(name) != new.get(name):
      raise ValueError(
        f'{name} is {old.get(name, "missing")}, and '
        f'{new.get(name, "none")} is needed'
      )


def checksum(data: np.ndarray, meta: dict[str, Any]) -> int:
  """CRC-32 of the content of a checkpoint, without the checksum itself."""
  kept = {name: value for name, value in meta.items() if name != 'crc32'}
  text = json.dumps(kept, sort_keys=True)
  return zlib.crc32(data.data, zlib.crc32(text.encode()))
