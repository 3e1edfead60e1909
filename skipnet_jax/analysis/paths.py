"""How much of the gradient comes over paths through k residual branches.

Veit et al. 2016 sample single paths. Here all of them are counted: multiplying
the gradient of every residual branch by z makes of the gradient a polynomial
G(z) = sum_k z^k g_k, g_k being what comes over the paths through exactly k
branches. G at the roots of unity gives every g_k by a discrete Fourier
transform: no sampling error, only that of float32.
"""

import dataclasses

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import errors
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.training import telemetry

Array = jax.Array
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
    rounding: largest deviation from a real share, an estimate of the error.
  """

  layers: tuple[str, ...]
  shares: np.ndarray
  rounding: float

  def mean_length(self) -> np.ndarray:
    """The mean number of branches on a path, weighted by shares, `[l]`."""
    return self.shares @ np.arange(self.shares.shape[1])


@jax.custom_vjp
def _multiply_gradient(x: Array, z: Array) -> Array:
  """Returns x; multiplies its complex gradient by z, `[2]` real, imaginary."""
  del z
  return x


def _forward(x, z):
  return x, z


def _backward(z, g):
  # Under vmap over _PARTS, g is the real part in place 0, the imaginary in 1.
  other = lax.psum(g, _PARTS) - g
  sign = jnp.where(lax.axis_index(_PARTS) == 0, -1.0, 1.0)
  z = z.astype(g.dtype)
  return z[0] * g + sign.astype(g.dtype) * z[1] * other, jnp.zeros_like(z)


_multiply_gradient.defvjp(_forward, _backward)


def path_lengths(
  model: nn.Module,
  variables: gradient_flow.Variables,
  batch: gradient_flow.Batch,
  loss: gradient_flow.LossFunction,
  *,
  train: bool = True,
  rngs: dict[str, Array] | None = None,
) -> PathLengths:
  """Splits each kernel's gradient by the number of residual branches passed.

  Long skips are open: a path that takes one passes fewer branches. It needs
  about n / 2 backward passes for n branches, and one compilation.

  Args:
    model: its residual sums are modules whose `skip_kind` is 'short'; the other
      arguments are as in `gradient_flow.layer_gradients`.
    variables: see there.
    batch: see there.
    loss: see there.
    train: see there.
    rngs: see there.

  Raises:
    InputError: a model without convolutions or without short skips.
  """
  names = gradient_flow.conv_names(model, batch['image'].shape)
  sums: list[str] = []

  def gradients(variables, batch, rngs, seed, z):
    sums.clear()

    def intercept(next_fun, args, kwargs, context):
      module = context.module
      if (
        getattr(module, 'skip_kind', None) == 'short'
        and context.method_name == '__call__'
      ):
        path, skipped = args
        sums.append('/'.join(module.path))
        args = (_multiply_gradient(path, z), skipped)
      return next_fun(*args, **kwargs)

    def objective(params):
      with nn.intercept_methods(intercept):
        value = gradient_flow.loss_at(
          model,
          variables | {'params': params},
          batch,
          loss,
          train=train,
          rngs=rngs,
        )
      # The seed is 1 in the real part, 0 in the imaginary one.
      return seed * value

    grads = jax.grad(objective)(variables['params'])
    return [telemetry.kernel(grads, name) for name in names]

  mapped = jax.vmap(
    gradients, in_axes=(None, None, None, 0, None), axis_name=_PARTS
  )

  @jax.jit
  def project(variables, batch, rngs, z, whole):
    """<G(z), g> for each layer, `[2, l]`, and G(z) itself."""
    found = mapped(variables, batch, rngs, jnp.array([1.0, 0.0]), z)
    if whole is None:
      whole = [g[0] for g in found]
    products = [
      jnp.sum(g * w[None], axis=tuple(range(1, g.ndim)))
      for g, w in zip(found, whole, strict=True)
    ]
    return jnp.stack(products, axis=1), whole

  rngs = rngs or {}
  one = jnp.array([1.0, 0.0])
  first, whole = project(variables, batch, rngs, one, None)
  if not sums:
    raise errors.InputError(
      f'{type(model).__name__} has no short skips, so every path is of one '
      'length: give a network with model.short_skips=True.'
    )
  count = len(sums) + 1
  values = np.zeros((count, len(names)), np.complex128)
  values[0] = np.asarray(first[0], np.float64)
  for j in range(1, count // 2 + 1):
    angle = 2 * np.pi * j / count
    z = jnp.array([np.cos(angle), np.sin(angle)], jnp.float32)
    real, imaginary = np.asarray(
      project(variables, batch, rngs, z, whole)[0], np.float64
    )
    values[j] = real + 1j * imaginary
    values[-j] = np.conj(values[j])
  squares = values[0].real
  # values[j] = sum_k share_k exp(2 pi i j k / count): a forward transform
  # divided by count inverts it.
  shares = (
    np.fft.fft(values / np.where(squares > 0, squares, 1), axis=0) / count
  )
  return PathLengths(
    tuple(names), shares.real.T, float(np.abs(shares.imag).max())
  )
