"""Splits the gradient of each kernel by the routes over which it came.

By kind of skip: the backward pass is stopped on the skipped side of the sums of
one kind, or of both. By path length: Veit et al. 2016 sample single paths; this
module counts all of them. If the gradient of every residual branch is
multiplied by z, the gradient becomes a polynomial G(z) = sum_k z^k g_k, where
g_k came over the paths through exactly k branches. A discrete Fourier transform
of G at the roots of unity gives every g_k, without a sampling error.

The skips are the modules with a `skip_kind`; of a network without any, those
that `joins` finds in its traced program.
"""

from collections.abc import Callable, Sequence
import copy
import dataclasses

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import errors
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import joins as joins_lib
from skipnet_jax.step import telemetry

Array = jax.Array

# The skips on a route: none, long ones only, short ones only, both kinds.
ROUTES = ('neither', 'long', 'short', 'both')
# A mapped axis: index 0 is the real part, 1 the imaginary part.
_PARTS = 'parts'


@dataclasses.dataclass(frozen=True)
class PathLengths:
  """Shares of each layer's gradient by path length.

  Attributes:
    layers: names in call order, `[l]`.
    shares: `[l, n + 1]` float64, n the number of residual branches. Element
      [l, k] is the part <g_k, g> / <g, g> of layer l's gradient g that came
      over paths through k branches behind the layer. A row adds up to 1; a
      share is negative if g_k points against g.
    rounding: the largest share computed for n + 1 branches, which no path has:
      an estimate of the error of any share.
  """

  layers: tuple[str, ...]
  shares: np.ndarray
  rounding: float

  def mean_length(self) -> np.ndarray:
    """The mean number of branches on a path, weighted by shares, `[l]`."""
    return self.shares @ np.arange(self.shares.shape[1])


@jax.custom_vjp
def _scale_gradient(x: Array, scale: Array) -> Array:
  """Returns x; its gradient is multiplied by `scale`, a scalar."""
  del scale
  return x


@jax.custom_vjp
def _multiply_gradient(x: Array, z: Array) -> Array:
  """Returns x; multiplies its complex gradient by z, `[2]` real, imaginary."""
  del z
  return x


def _forward(x, factor):
  return x, factor


def _scale_backward(scale, g):
  return g * scale.astype(g.dtype), jnp.zeros_like(scale)


def _multiply_backward(z, g):
  # Under vmap over _PARTS, g is the real part at index 0, the imaginary at 1.
  other = lax.psum(g, _PARTS) - g
  sign = jnp.where(lax.axis_index(_PARTS) == 0, -1.0, 1.0).astype(g.dtype)
  factor = z.astype(g.dtype)
  return factor[0] * g + sign * factor[1] * other, jnp.zeros_like(z)


_scale_gradient.defvjp(_forward, _scale_backward)
_multiply_gradient.defvjp(_forward, _multiply_backward)


@gradient_flow.keep_compiled
def _make_gradients(
  model: nn.Module,
  loss: gradient_flow.LossFunction,
  train: bool,
  layers: tuple[str, ...],
  branched: bool,
  joins: tuple[joins_lib.Join, ...],
) -> Callable[..., list[Array]]:
  """Compiles the function of (point, scales, z) to each kernel's gradient.

  A gradient is `[2, ...]`, real and imaginary part, if the model is `branched`,
  that is, has residual branches, whose gradient z multiplies; else `[1, ...]`.
  Its skips are `joins` or, if there are none, modules with a `skip_kind`.
  """
  forward = _forward_pass(model, loss, train)

  def gradients(seed, point, scales, z):
    variables, batch, rngs = point

    def change(kind, path, skipped, is_sum):
      if kind == 'short' and is_sum:
        path = _multiply_gradient(path, z)
      return path, _scale_gradient(skipped, scales[kind])

    def at_module(kind, name, path, skipped):
      del name
      return change(kind, path, skipped, True)

    def at_join(join, path, skipped):
      return change(join.kind, path, skipped, join.is_sum)

    def seeded(params):
      arguments = variables | {'params': params}, batch, rngs
      if joins:
        program = jax.make_jaxpr(forward)(*arguments)
        flat = jax.tree.leaves(arguments)
        (value,) = joins_lib.evaluate(program, flat, joins, at_join)
      else:
        with joins_lib.named(at_module):
          value = forward(*arguments)
      return seed.astype(value.dtype) * value

    grads = jax.grad(seeded)(variables['params'])
    return [telemetry.kernel(grads, name) for name in layers]

  @jax.jit
  def parts(point, scales, z):
    if not branched:
      return [g[None] for g in gradients(jnp.float32(1), point, scales, z)]
    # The loss's own gradient is 1: real part 1, imaginary part 0.
    return jax.vmap(gradients, (0, None, None, None), axis_name=_PARTS)(
      jnp.array([1.0, 0.0], jnp.float32), point, scales, z
    )

  return parts


def _forward_pass(
  model: nn.Module, loss: gradient_flow.LossFunction, train: bool
) -> Callable[..., Array]:
  """The loss as a function of (variables, batch, rngs)."""

  def forward(variables, batch, rngs):
    return gradient_flow.loss_at(
      model, variables, batch, loss, train=train, rngs=rngs
    )

  return forward


class Routes:
  """Splits the gradient of a network's loss by its routes.

  All methods use the same compiled backward pass. `variables`, `batch`, `loss`,
  `train` and `rngs` are those of `gradient_flow.layer_gradients`.

  Args:
    model: any Linen model called as `model(image, train)`. Its skips are
      modules with a `skip_kind`, see `models.skips`; else they are found.
    layers: names from `gradient_flow.conv_names`; None: they are traced.

  Attributes:
    layers: names in call order.
    branches: names of the residual sums (short skips) in call order.
    found: the skips that were found, see `joins.find`: look at them first. ()
      if the model names its skips.

  Raises:
    InputError: a model without convolutions; one that names no skip and has
      layers in a loop, where none can be found.

  Example:
    >>> import jax
    >>> import skipnet_jax
    >>> run = skipnet_jax.load_run('runs/long_short')
    >>> batch = {'image': jax.random.normal(jax.random.key(0), (1, 32, 32, 1))}
    >>> def loss(outputs, batch):
    ...   return (outputs['logits'] ** 2).mean()
    >>> routes = skipnet_jax.Routes(
    ...   run.model, run.variables, batch, loss, train=False
    ... )
    >>> sorted(routes.by_skip())
    ['both', 'long', 'neither', 'short']
    >>> shares = routes.by_length().shares  # [layers, branches + 1]
    >>> shares.shape
    (19, 11)
  """

  def __init__(
    self,
    model: nn.Module,
    variables: gradient_flow.Variables,
    batch: gradient_flow.Batch,
    loss: gradient_flow.LossFunction,
    *,
    train: bool = True,
    rngs: dict[str, Array] | None = None,
    layers: Sequence[str] | None = None,
  ):
    self.layers = tuple(
      layers or gradient_flow.conv_names(model, batch['image'].shape)
    )
    self._point = (variables, batch, rngs or {})
    self._model = type(model).__name__
    self._cache: dict[tuple[bool, bool], dict[str, np.ndarray]] = {}
    sums: list[tuple[str, str]] = []

    def record(kind, name, *args):
      sums.append((kind, name))
      return args

    with joins_lib.named(record):
      program = jax.make_jaxpr(_forward_pass(model, loss, train))(*self._point)
    self.found: tuple[joins_lib.Join, ...] = ()
    if not sums:
      leaves = jax.tree.leaves(self._point)
      image = next(i for i, x in enumerate(leaves) if x is batch['image'])
      self.found, loops = joins_lib.find(program, image)
      if loops:
        raise errors.InputError(
          f'{self._model} has layers in a loop ({", ".join(loops[:3])}), where '
          'skips cannot be found: unroll it, or name its skips as '
          'docs/own_model.md shows.'
        )
      sums = [(join.kind, join.name) for join in self.found if join.is_sum]
    self.branches = tuple(name for kind, name in sums if kind == 'short')
    kinds = {kind for kind, _ in sums} | {join.kind for join in self.found}
    self._has_long, self._has_short = 'long' in kinds, 'short' in kinds
    self._gradients = _make_gradients(
      model, loss, train, self.layers, bool(self.branches), self.found
    )

  def at(self, variables: gradient_flow.Variables) -> 'Routes':
    """The same network with other variables; nothing is compiled again."""
    other = copy.copy(self)
    other._point = (variables, *self._point[1:])
    other._cache = {}
    return other

  def _backward(self, long: bool, short: bool, z: complex) -> list[np.ndarray]:
    """Each kernel's gradient, see `_make_gradients`.

    It passes long (short) skips if `long` (`short`) is True, else it stops.
    """
    scales = {'long': np.float32(long), 'short': np.float32(short)}
    z_parts = np.array([z.real, z.imag], np.float32)
    return [
      np.asarray(g) for g in self._gradients(self._point, scales, z_parts)
    ]

  def _real(self, long: bool, short: bool) -> dict[str, np.ndarray]:
    """The real part of `_backward` at z = 1, by layer; computed once."""
    # If a kind is absent, use the same pass for both values: then differences
    # are exactly zero on any device.
    long, short = long or not self._has_long, short or not self._has_short
    if (long, short) not in self._cache:
      gradients = self._backward(long, short, 1 + 0j)
      self._cache[long, short] = {
        name: g[0] for name, g in zip(self.layers, gradients, strict=True)
      }
    return self._cache[long, short]

  def whole(self) -> dict[str, np.ndarray]:
    """Layer name, in call order, to the gradient of its kernel; read-only."""
    return dict(self._real(True, True))

  def by_skip(self) -> dict[str, dict[str, np.ndarray]]:
    """Splits each kernel's gradient by the kinds of skip it came through.

    Let g(L, S) be the gradient if long (short) skips pass it (1) or stop it
    (0). Then neither = g(0, 0), long = g(1, 0) - g(0, 0), short = g(0, 1) -
    g(0, 0), both = g(1, 1) - g(0, 1) - (g(1, 0) - g(0, 0)). The four add up to
    the whole gradient g(1, 1).

    Returns:
      For each of `ROUTES`, layer name to the part of its kernel's gradient.
    """
    none, long = self._real(False, False), self._real(True, False)
    short, whole = self._real(False, True), self._real(True, True)
    names = self.layers
    return {
      'neither': dict(none),
      'long': {n: long[n] - none[n] for n in names},
      'short': {n: short[n] - none[n] for n in names},
      # In this order, it is exactly zero if there is only one kind.
      'both': {n: (whole[n] - short[n]) - (long[n] - none[n]) for n in names},
    }

  def by_length(self) -> PathLengths:
    """Splits each kernel's gradient by the number of residual branches passed.

    The gradient also passes long skips; a path through one has fewer branches.
    For n branches, this takes about n / 2 backward passes.

    Raises:
      InputError: a model without short skips.
    """
    if not self.branches:
      raise errors.InputError(
        f'{self._model} has no short skips that are sums, so all paths have '
        'length 0: give a network with residual blocks.'
      )
    whole = [g.ravel().astype(np.float64) for g in self.whole().values()]
    # One more point than shares: the additional share is a rounding error.
    count = len(self.branches) + 2
    values = np.zeros((count, len(whole)), np.complex128)
    values[0] = [g @ g for g in whole]
    for j in range(1, count // 2 + 1):
      gradients = self._backward(True, True, np.exp(2j * np.pi * j / count))
      for i, (parts, g) in enumerate(zip(gradients, whole, strict=True)):
        real, imaginary = parts.reshape(2, -1).astype(np.float64) @ g
        values[j, i] = real + 1j * imaginary
      values[-j] = np.conj(values[j])
    squares = values[0].real
    values /= np.where(squares > 0, squares, 1)
    # values[j] = sum_k share_k exp(2 pi i j k / count): the forward transform,
    # divided by count, inverts this sum.
    *shares, rest = np.fft.fft(values, axis=0, norm='forward').real
    return PathLengths(self.layers, np.array(shares).T, float(abs(rest).max()))
