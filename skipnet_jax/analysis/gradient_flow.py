"""The gradient of each layer at a point, and which skips it came through.

Works for any Linen model called as `model(image, train)`; layers are ordered by
the call order of a traced forward pass, not by name. What a whole training run
records is in `training.telemetry`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax import errors
from skipnet_jax.analysis import layers
from skipnet_jax.training import telemetry

Array = jax.Array
Batch = dict[str, Array]
Variables = dict[str, Any]
LossFunction = Callable[[Any, Batch], Array]

# How a gradient may have come: through no skip at all, through long skips but
# no short ones, through short ones but no long ones, through both kinds.
ROUTES = ('neither', 'long', 'short', 'both')


@jax.custom_vjp
def scale_gradient(x: Array, scale: Array) -> Array:
  """Returns x; its gradient is multiplied by `scale`, a scalar."""
  del scale
  return x


def _scale_forward(x, scale):
  return x, scale


def _scale_backward(scale, g):
  return g * scale.astype(g.dtype), jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_forward, _scale_backward)


def conv_names(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
  """Layers with a kernel, in call order.

  Args:
    model: maps `(image, train)` to outputs.
    shape: of the image, `(b, y, x, c)`.

  Raises:
    InputError: the model has none.
  """
  names = [row.name for row in layers.layer_table(model, shape) if row.flops]
  if not names:
    raise errors.InputError(
      f'{type(model).__name__} has no layer with a kernel, so there is no '
      'gradient to show: give a model with convolutions.'
    )
  return names


def loss_at(
  model: nn.Module,
  variables: Variables,
  batch: Batch,
  loss: LossFunction,
  *,
  train: bool,
  rngs: dict[str, Array] | None = None,
) -> Array:
  """The loss of a model, a scalar; arguments as in `layer_gradients`."""
  outputs = model.apply(
    variables,
    batch['image'],
    train=train,
    rngs=rngs,
    mutable=['batch_stats'] if train else False,
  )
  return loss(outputs[0] if train else outputs, batch)


def _make_gradients(
  model: nn.Module, names: list[str], loss: LossFunction, train: bool
):
  def gradients(variables, batch, rngs, scales):
    def intercept(next_fun, args, kwargs, context):
      kind = getattr(context.module, 'skip_kind', None)
      if kind in scales and context.method_name == '__call__':
        path, skipped = args
        args = (path, scale_gradient(skipped, scales[kind]))
      return next_fun(*args, **kwargs)

    def objective(params):
      with nn.intercept_methods(intercept):
        return loss_at(
          model,
          variables | {'params': params},
          batch,
          loss,
          train=train,
          rngs=rngs,
        )

    grads = jax.grad(objective)(variables['params'])
    return {name: telemetry.kernel(grads, name) for name in names}

  return jax.jit(gradients)


def layer_gradients(
  model: nn.Module,
  variables: Variables,
  batch: Batch,
  loss: LossFunction,
  *,
  train: bool = True,
  rngs: dict[str, Array] | None = None,
) -> dict[str, Array]:
  """The gradient of every kernel, in the order in which layers are called.

  Args:
    model: any Linen model called as `model(image, train)`.
    variables: params, and batch_stats where there are any.
    batch: image `[b, y, x, c]`, and what the loss needs.
    loss: of (outputs, batch), a scalar.
    train: batch statistics and dropout if True.
    rngs: for dropout, `{'dropout': key}`.

  Returns:
    Layer name to the gradient of its kernel.

  Raises:
    InputError: a model without convolutions.
  """
  names = conv_names(model, batch['image'].shape)
  gradients = _make_gradients(model, names, loss, train)
  found = gradients(variables, batch, rngs or {}, {})
  return {name: found[name] for name in names}


def split_by_skip(
  model: nn.Module,
  variables: Variables,
  batch: Batch,
  loss: LossFunction,
  *,
  train: bool = True,
  rngs: dict[str, Array] | None = None,
) -> dict[str, dict[str, Array]]:
  """Splits each kernel's gradient by the kinds of skip it came through.

  The forward pass is unchanged; the gradient is stopped on the skipped side of
  one kind's sums, or of both. With g(L, S) the gradient when long (short) skips
  pass it (1) or stop it (0): neither = g(0, 0), long = g(1, 0) - g(0, 0), short
  = g(0, 1) - g(0, 0), both = g(1, 1) - g(0, 1) - (g(1, 0) - g(0, 0)). The four
  add up to the whole gradient g(1, 1).

  Args:
    model: its sums are modules with a `skip_kind`, see `blocks.ShortSkip`; the
      other arguments are as in `layer_gradients`.
    variables: see there.
    batch: see there.
    loss: see there.
    train: see there.
    rngs: see there.

  Returns:
    For each of `ROUTES`, layer name to the part of its kernel's gradient.
  """
  names = conv_names(model, batch['image'].shape)
  gradients = _make_gradients(model, names, loss, train)

  def g(long: float, short: float) -> dict[str, Array]:
    # Scales are arguments: all four share one compilation.
    scales = {'long': jnp.float32(long), 'short': jnp.float32(short)}
    return gradients(variables, batch, rngs or {}, scales)

  none, long, short, whole = g(0, 0), g(1, 0), g(0, 1), g(1, 1)
  return {
    'neither': {n: none[n] for n in names},
    'long': {n: long[n] - none[n] for n in names},
    'short': {n: short[n] - none[n] for n in names},
    # In this order: exactly zero where there is only one kind.
    'both': {n: (whole[n] - short[n]) - (long[n] - none[n]) for n in names},
  }
