"""Leaves out one branch of a trained network at a time.

Veit et al. 2016 removed residual branches of trained networks and found that
the error grows little by little; Csordás et al. 2025 (arXiv 2505.13898) ask how
much each depth adds. Here a short skip loses its residual branch and a long one
the side of the contracting path. Forward passes alone are needed.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import joins as joins_lib
from skipnet_jax.scores import scores
from skipnet_jax.step import losses

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Lesions:
  """What a network loses with each of its `n` branches.

  Attributes:
    names: of the skips, in call order.
    kinds: 'short' or 'long'.
    depth: share of the network's layers that are called before the skip's sum,
      `[n]`; of skips without a name, their place in the order of the skips.
    bce: binary cross-entropy in nats without each branch, `[n]`.
    v_rand: V_rand without it, the best over the challenge's thresholds, `[n]`.
    share: norm of the branch over that of the whole sum, or of all channels.
    cosine: between the branch and the rest of the sum; 0 in a concatenation.
    whole: BCE and V_rand of the whole network.
  """

  names: tuple[str, ...]
  kinds: tuple[str, ...]
  depth: np.ndarray
  bce: np.ndarray
  v_rand: np.ndarray
  share: np.ndarray
  cosine: np.ndarray
  whole: tuple[float, float]


class _Branches:
  """The branches of a forward pass, numbered in call order.

  Attributes:
    kinds: of their skips.
    names: of their skips.
    depth: see `Lesions`.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: gradient_flow.Variables,
    image: Array,
  ):
    self._model = model
    found: list[tuple[str, str]] = []
    layers: list[str] = []
    before: list[int] = []

    def record(kind: str, name: str, *sides: Any) -> tuple:
      found.append((kind, name))
      before.append(len(layers))
      return sides

    def count(next_fun: Callable, args: tuple, kwargs: dict, context: Any):
      result = next_fun(*args, **kwargs)
      module = context.module
      called = context.method_name == '__call__'
      if called and 'kernel' in module.variables.get('params', {}):
        layers.append(module.name)
      return result

    with joins_lib.named(record), nn.intercept_methods(count):
      program = jax.make_jaxpr(self._forward)(variables, image)
    self._joins: tuple[joins_lib.Join, ...] = ()
    if not found:
      place = len(jax.tree.leaves((variables, image))) - 1
      self._joins, _ = joins_lib.find(program, place)
      found = [(join.kind, join.name) for join in self._joins]
    self.kinds = tuple(kind for kind, _ in found)
    self.names = tuple(name for _, name in found)
    self.depth = np.asarray(before) / max(1, len(layers))
    if self._joins:
      self.depth = (np.arange(len(found)) + 0.5) / len(found)

  def _forward(self, variables: gradient_flow.Variables, image: Array) -> Array:
    outputs: Any = self._model.apply(variables, image, train=False)
    return outputs['logits']

  def __call__(
    self, variables: gradient_flow.Variables, image: Array, keep: Array
  ) -> tuple[Array, Array]:
    """Runs the network with each branch multiplied by an element of `keep`.

    Returns:
      The logits, and for each branch the squares of its norm and of the rest's,
      and the product of both, `[n, 3]`.
    """
    products: list[Array] = []
    # The copy of a skip that is being called beside it.
    alone: list[nn.Module] = []

    def weigh(branch: Array, rest: Array, is_sum: bool = True) -> Array:
      number = len(products)
      b, r = branch.astype(jnp.float32), rest.astype(jnp.float32)
      product = jnp.vdot(b, r) if is_sum else jnp.zeros(())
      products.append(jnp.stack([jnp.vdot(b, b), jnp.vdot(r, r), product]))
      return branch * keep[number].astype(branch.dtype)

    def at_module(
      next_fun: Callable, args: tuple, kwargs: dict, context: Any
    ) -> Any:
      module = context.module
      kind = getattr(module, 'skip_kind', None)
      skips = kind in ('long', 'short') and context.method_name == '__call__'
      if not skips or alone:
        return next_fun(*args, **kwargs)
      path, skipped = args
      without = (path * 0, skipped) if kind == 'short' else (path, skipped * 0)
      # Linear in both sides: what is missing without a side is its part, after
      # a projection if there is one.
      alone.append(module.clone(parent=None))
      rest: Any = alone[0].apply(module.variables, *without)
      alone.clear()
      whole = next_fun(path, skipped)
      return rest + weigh(whole - rest, rest)

    def at_join(join: joins_lib.Join, path: Any, skipped: Any) -> tuple:
      if join.kind == 'short':
        return weigh(path, skipped, join.is_sum), skipped
      return path, weigh(skipped, path, join.is_sum)

    if self._joins:
      program = jax.make_jaxpr(self._forward)(variables, image)
      leaves = jax.tree.leaves((variables, image))
      (logits,) = joins_lib.evaluate(program, leaves, self._joins, at_join)
    else:
      with nn.intercept_methods(at_module):
        logits = self._forward(variables, image)
    return logits, jnp.stack(products)


def measure(
  model: nn.Module,
  variables: gradient_flow.Variables,
  images: np.ndarray,
  inside: np.ndarray,
) -> Lesions | None:
  """Measures a trained network, with running statistics, without dropout.

  Args:
    model: whose outputs have logits `[b, y, x, 1]`.
    variables: params, and batch_stats if it has any.
    images: `[z, y, x, slices]` float32, normalised; one at a time is computed.
    inside: `[z, y, x]` bool, True inside a cell.

  Returns:
    The lesions; None of a network without skips.
  """
  first = jnp.asarray(images[:1])
  branches = _Branches(model, variables, first)
  count = len(branches.names)
  if not count:
    return None
  run = jax.jit(branches)
  label = jnp.asarray(inside[..., None], jnp.float32)

  def score(keep: np.ndarray) -> tuple[float, float, np.ndarray]:
    found = [run(variables, jnp.asarray(image[None]), keep) for image in images]
    logits = jnp.concatenate([each for each, _ in found])
    bce = float(optax.sigmoid_binary_cross_entropy(logits, label).mean())
    maps = np.asarray(losses.prediction({'logits': logits}))[..., 0]
    products = sum(np.asarray(each, np.float64) for _, each in found)
    v_rand = scores.score_stack(maps, inside)['v_rand']
    return bce, float(v_rand), np.asarray(products)

  whole_bce, whole_rand, products = score(np.ones(count, np.float32))
  rows = [score(1 - row)[:2] for row in np.eye(count, dtype=np.float32)]
  branch, rest, both = products.T
  total = branch + rest + 2 * both
  tiny = np.finfo(np.float64).tiny
  return Lesions(
    names=branches.names,
    kinds=branches.kinds,
    depth=branches.depth,
    bce=np.array([bce for bce, _ in rows]),
    v_rand=np.array([v_rand for _, v_rand in rows]),
    share=np.sqrt(branch / np.maximum(total, tiny)),
    cosine=both / np.sqrt(np.maximum(branch * rest, tiny)),
    whole=(whole_bce, whole_rand),
  )
