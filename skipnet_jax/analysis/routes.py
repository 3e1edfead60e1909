"""The gradient of each kernel by the routes it came over.

By kind of skip, the backward pass is stopped on the skipped side of one kind's
sums or of both. By length, Veit et al. 2016 sample single paths; here all of
them are counted: multiplying the gradient of every residual branch by z makes
of the gradient a polynomial G(z) = sum_k z^k g_k, g_k being what comes over the
paths through exactly k branches. G at the roots of unity gives every g_k by a
discrete Fourier transform: no sampling error, only that of float32.
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
from skipnet_jax.step import telemetry

Array = jax.Array

# How a gradient may have come: through no skip at all, through long skips but
# no short ones, through short ones but no long ones, through both kinds.
ROUTES = ('neither', 'long', 'short', 'both')
# The mapped axis whose two places carry real and imaginary part.
_PARTS = 'parts'


@dataclasses.dataclass(frozen=True)
class PathLengths:
  """Shares of each layer's gradient by path length.

  Attributes:
    layers: names in call order, `[l]`.
    shares: `[l, n + 1]` float64, n the number of residual branches: of layer l,
      the part <g_k, g> / <g, g> of the gradient g that comes over paths through
      k branches behind the layer. A row adds up to 1; a share is negative where
      those paths pull the other way.
    rounding: largest share that came out for n + 1 branches, where there are
      no paths: an estimate of the error of any share.
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
  # Under vmap over _PARTS, g is the real part in place 0, the imaginary in 1.
  other = lax.psum(g, _PARTS) - g
  sign = jnp.where(lax.axis_index(_PARTS) == 0, -1.0, 1.0).astype(g.dtype)
  factor = z.astype(g.dtype)
  return factor[0] * g + sign * factor[1] * other, jnp.zeros_like(z)


_scale_gradient.defvjp(_forward, _scale_backward)
_multiply_gradient.defvjp(_forward, _multiply_backward)


def _at_sums(change: Callable[..., tuple]):
  """Has `change(kind, name, path, skipped)` replace each sum's arguments."""

  def intercept(next_fun, args, kwargs, context):
    kind = getattr(context.module, 'skip_kind', None)
    if kind in ('long', 'short') and context.method_name == '__call__':
      args = change(kind, '/'.join(context.module.path), *args)
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)


def _objective(model, loss, train: bool) -> Callable[..., Array]:
  def objective(params, variables, batch, rngs):
    variables = variables | {'params': params}
    return gradient_flow.loss_at(
      model, variables, batch, loss, train=train, rngs=rngs
    )

  return objective


@gradient_flow.keep_compiled
def _make_parts(
  model: nn.Module,
  loss: gradient_flow.LossFunction,
  train: bool,
  layers: tuple[str, ...],
  branched: bool,
) -> Callable[..., list[Array]]:
  """Compiles `(point, scales, z)` to each kernel's gradient, `[1 or 2, ...]`.

  Args:
    model: see `Routes`.
    loss: see `Routes`.
    train: see `Routes`.
    layers: whose kernels.
    branched: whether there are residual branches, whose gradient z multiplies.
  """
  objective = _objective(model, loss, train)

  def gradients(seed, point, scales, z):
    def change(kind, name, path, skipped):
      del name
      if kind == 'short':
        path = _multiply_gradient(path, z)
      return path, _scale_gradient(skipped, scales[kind])

    def seeded(params):
      with _at_sums(change):
        value = objective(params, *point)
      return seed.astype(value.dtype) * value

    grads = jax.grad(seeded)(point[0]['params'])
    return [telemetry.kernel(grads, name) for name in layers]

  @jax.jit
  def parts(point, scales, z):
    if not branched:
      return [g[None] for g in gradients(jnp.float32(1), point, scales, z)]
    # The seed is 1 in the real part, 0 in the imaginary one.
    return jax.vmap(gradients, (0, None, None, None), axis_name=_PARTS)(
      jnp.array([1.0, 0.0], jnp.float32), point, scales, z
    )

  return parts


class Routes:
  """The gradient of one network at one point, taken apart by its routes.

  One compiled backward pass serves every method.

  Args:
    model: its sums are modules with a `skip_kind`, see `models.skips`; the
      other arguments are as in `gradient_flow.layer_gradients`.
    variables: see there.
    batch: see there.
    loss: see there.
    train: see there.
    rngs: see there.
    layers: names from `gradient_flow.conv_names`, if at hand: saves a trace.

  Attributes:
    layers: names in call order.
    branches: names of the residual sums, whose `skip_kind` is 'short', in call
      order.

  Raises:
    InputError: a model without convolutions.

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
    self._kept: dict[tuple[bool, bool], dict[str, np.ndarray]] = {}

    objective = _objective(model, loss, train)
    sums: list[tuple[str, str]] = []

    def note(kind, name, *args):
      sums.append((kind, name))
      return args

    with _at_sums(note):
      jax.eval_shape(objective, variables['params'], *self._point)
    self.branches = tuple(name for kind, name in sums if kind == 'short')
    self._has_long = any(kind == 'long' for kind, _ in sums)
    self._parts = _make_parts(
      model, loss, train, self.layers, bool(self.branches)
    )

  def at(self, variables: gradient_flow.Variables) -> 'Routes':
    """The same network with other variables; nothing is compiled again."""
    moved = copy.copy(self)
    moved._point = (variables, *self._point[1:])
    moved._kept = {}
    return moved

  def _backward(self, long: bool, short: bool, z: complex) -> list[np.ndarray]:
    """Real and imaginary part of each kernel's gradient, `[2, ...]`.

    The real one alone, `[1, ...]`, where there are no short skips.
    """
    scales = {'long': np.float32(long), 'short': np.float32(short)}
    found = self._parts(
      self._point, scales, np.array([z.real, z.imag], np.float32)
    )
    return [np.asarray(g) for g in found]

  def _passing(self, long: bool, short: bool) -> dict[str, np.ndarray]:
    """The gradient when skips of a kind pass it, or stop it; computed once."""
    # Of a kind that is absent, both are the same pass: differences are exactly
    # zero on any device.
    long, short = long or not self._has_long, short or not self.branches
    if (long, short) not in self._kept:
      found = self._backward(long, short, 1 + 0j)
      self._kept[long, short] = {
        name: g[0] for name, g in zip(self.layers, found, strict=True)
      }
    return self._kept[long, short]

  def whole(self) -> dict[str, np.ndarray]:
    """Layer name, in call order, to the gradient of its kernel; read-only."""
    return dict(self._passing(True, True))

  def by_skip(self) -> dict[str, dict[str, np.ndarray]]:
    """Splits each kernel's gradient by the kinds of skip it came through.

    With g(L, S) the gradient when long (short) skips pass it (1) or stop it
    (0): neither = g(0, 0), long = g(1, 0) - g(0, 0), short = g(0, 1) - g(0, 0),
    both = g(1, 1) - g(0, 1) - (g(1, 0) - g(0, 0)). The four add up to the whole
    gradient g(1, 1).

    Returns:
      For each of `ROUTES`, layer name to the part of its kernel's gradient.
    """
    none, long = self._passing(False, False), self._passing(True, False)
    short, whole = self._passing(False, True), self._passing(True, True)
    names = self.layers
    return {
      'neither': dict(none),
      'long': {n: long[n] - none[n] for n in names},
      'short': {n: short[n] - none[n] for n in names},
      # In this order: exactly zero where there is only one kind.
      'both': {n: (whole[n] - short[n]) - (long[n] - none[n]) for n in names},
    }

  def by_length(self) -> PathLengths:
    """Splits each kernel's gradient by the number of residual branches passed.

    Long skips are open: a path that takes one passes fewer branches. For n
    branches it needs about n / 2 backward passes.

    Raises:
      InputError: a model without short skips.
    """
    if not self.branches:
      raise errors.InputError(
        f'{self._model} has no short skips, so every path is of one length: '
        'give a network with model.short_skips=True.'
      )
    whole = [g.ravel().astype(np.float64) for g in self.whole().values()]
    # A point more than there are shares: the last one is only rounding.
    count = len(self.branches) + 2
    values = np.zeros((count, len(whole)), np.complex128)
    values[0] = [g @ g for g in whole]
    for j in range(1, count // 2 + 1):
      found = self._backward(True, True, np.exp(2j * np.pi * j / count))
      for i, (parts, g) in enumerate(zip(found, whole, strict=True)):
        real, imaginary = parts.reshape(2, -1).astype(np.float64) @ g
        values[j, i] = real + 1j * imaginary
      values[-j] = np.conj(values[j])
    squares = values[0].real
    # values[j] = sum_k share_k exp(2 pi i j k / count): a forward transform
    # divided by count inverts it.
    shares = (
      np.fft.fft(values / np.where(squares > 0, squares, 1), axis=0).real
      / count
    )
    return PathLengths(
      self.layers, shares[:-1].T, float(np.abs(shares[-1]).max())
    )
