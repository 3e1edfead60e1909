"""A tree of parameters as a few vectors, for sums and elementwise operations.

A network has hundreds of arrays, and on a GPU each operation on an array is a
kernel. An optimizer, a norm or a record on vectors takes a few kernels in all.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# A kernel begins at a multiple of it, so that sums over rows are sums over
# parts of one kernel. The gaps are zero and stay so: their gradient is zero.
ROW = 1024


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an array lies in its vector.

  Attributes:
    group: 'network' or 'discriminator', and 'kernel' or 'rest'.
    start: index of its first element.
    count: number of its parts; above 1 only for the kernels of a scan.
    size: elements of a part.
    stride: elements from one part to the next, gap included.
  """

  group: tuple[str, str]
  shape: tuple[int, ...]
  start: int
  count: int
  size: int
  stride: int

  @property
  def end(self) -> int:
    """Index after its last part and gap."""
    return self.start + self.count * self.stride

  def cut(self, vector: Any, apart: bool = False) -> Any:
    """The array, a part of its vector; see `Flat.tree`."""
    end = self.start + self.size if self.count == 1 else self.end
    part = vector[self.start : end]
    if apart:
      part = lax.optimization_barrier(part)
    if self.count > 1:
      part = part.reshape(self.count, self.stride)[:, : self.size]
    return part.reshape(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """Where the arrays of a tree lie; one object for equal trees.

  Attributes:
    treedef: of the tree.
    places: of its arrays, in the order of the tree.
  """

  treedef: Any
  places: tuple[Place, ...]

  def tree(self, leaves: Sequence[Any]) -> Any:
    """The tree with these leaves."""
    return jax.tree.unflatten(self.treedef, leaves)

  @functools.cached_property
  def by_path(self) -> Any:
    """The tree, with places as leaves."""
    return self.tree(self.places)


@functools.cache
def _layout(treedef: Any, shapes: tuple[tuple[int, ...], ...]) -> Layout:
  numbered = jax.tree.unflatten(treedef, range(len(shapes)))
  places: list[Place] = []
  ends: dict[tuple[str, str], int] = {}
  for path, index in jax.tree_util.tree_leaves_with_path(numbered):
    shape = shapes[index]
    names = [str(getattr(entry, 'key', entry)) for entry in path]
    owner = 'discriminator' if names[0] == 'discriminator' else 'network'
    group = owner, 'kernel' if names[-1] == 'kernel' else 'rest'
    count, size = 1, int(np.prod(shape))
    stride = size
    if group[1] == 'kernel':
      # `models.fc_resnet.Stage` stacks the kernels of its blocks.
      if 'blocks' in names and len(shape) == 5:
        count, size = shape[0], size // shape[0]
      stride = -(-size // ROW) * ROW
    place = Place(group, shape, ends.get(group, 0), count, size, stride)
    ends[group] = place.end
    places.append(place)
  return Layout(treedef, tuple(places))


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Flat:
  """The arrays of a tree, joined into one vector a group.

  It is a tree itself, whose leaves are the vectors. An optimizer whose state
  has one for each parameter thus holds `Flat`s too.

  Attributes:
    vectors: `{owner: {kind: [n]}}`, see `Place.group`; only groups that have
      arrays.
    layout: where the arrays lie.
  """

  vectors: dict[str, dict[str, Any]]
  layout: Layout

  def tree_flatten_with_keys(self) -> tuple[Any, Layout]:
    """For JAX."""
    key = jax.tree_util.GetAttrKey('vectors')
    return ((key, self.vectors),), self.layout

  @classmethod
  def tree_unflatten(cls, layout: Layout, children: Any) -> 'Flat':
    """For JAX."""
    return cls(children[0], layout)

  def tree(self, apart: bool = False) -> Any:
    """The tree of arrays: of NumPy's, of JAX's, or abstract as the vectors.

    Args:
      apart: for JAX's, whether each is cut out before it gets its shape.
        Otherwise XLA for a TPU reshapes the whole vector once for each width of
        an array, with padding, and cuts that.
    """
    leaves = jax.tree.leaves(self.vectors)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
      return jax.eval_shape(_split, self)
    if all(isinstance(x, np.ndarray) for x in leaves):
      return _cut(self)
    return _split(self, apart=apart)

  def find(
    self, path: Sequence[str], name: str, shape: tuple[int, ...]
  ) -> tuple[Any, int] | None:
    """The vector that has a parameter, and where in it this one begins.

    Args:
      path: of its module.
      name: of the parameter.
      shape: of the parameter.

    Returns:
      None if there is no such array: a module in a scan has a part of one.
    """
    place = self.layout.by_path
    for key in (*path, name):
      place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, Place) or place.shape != shape:
      return None
    owner, kind = place.group
    return self.vectors[owner][kind], place.start


def _cut(flat: Flat, apart: bool = False) -> Any:
  def cut(place):
    owner, kind = place.group
    vector = flat.vectors[owner][kind]
    # An optimizer of some groups alone has a node without leaves for others.
    return place.cut(vector, apart) if jax.tree.leaves(vector) else vector

  return flat.layout.tree(list(map(cut, flat.layout.places)))


# Outside of a compiled function, one program rather than one for each array.
_split = jax.jit(_cut, static_argnames='apart', inline=True)


def join(tree: Any, layout: Layout | None = None) -> Flat:
  """Joins the arrays of a tree, NumPy's or JAX's, all of one dtype.

  Args:
    tree: nested dicts of arrays; those below `discriminator` are its own group.
    layout: of an earlier `join` of such a tree; it is then not searched for.
  """
  if layout is None:
    leaves, treedef = jax.tree.flatten(tree)
    layout = _layout(treedef, tuple(tuple(x.shape) for x in leaves))
  vectors: dict[str, dict[str, list[Any]]] = {}
  for place, leaf in zip(
    layout.places, layout.treedef.flatten_up_to(tree), strict=True
  ):
    owner, kind = place.group
    vectors.setdefault(owner, {}).setdefault(kind, []).append((place, leaf))
  return Flat(
    {
      owner: {kind: _join(parts) for kind, parts in kinds.items()}
      for owner, kinds in vectors.items()
    },
    layout,
  )


def _join(parts: list[tuple[Place, Any]]) -> Any:
  first = parts[0][1]
  if not jax.tree.leaves(first):
    return first
  numpy: Any = np if isinstance(first, np.ndarray) else jnp
  pieces = []
  for place, leaf in parts:
    gap = place.stride - place.size
    if place.count == 1:
      pieces.append(leaf.reshape(-1))
      if gap:
        pieces.append(numpy.zeros(gap, leaf.dtype))
    else:
      rows = leaf.reshape(place.count, place.size)
      pieces.append(numpy.pad(rows, ((0, 0), (0, gap))).reshape(-1))
  return numpy.concatenate(pieces)
