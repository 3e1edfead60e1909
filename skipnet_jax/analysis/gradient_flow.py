"""The gradient of each layer at a point.

Works for any Linen model called as `model(image, train)`; layers are ordered by
the call order of a traced forward pass, not by name. Which skips a gradient
came through is in `routes`, what a whole training run records in
`training.telemetry`.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax

from skipnet_jax import errors
from skipnet_jax.models import layer_table
from skipnet_jax.step import telemetry

Array = jax.Array
Batch = dict[str, Array]
Variables = dict[str, Any]
LossFunction = Callable[[Any, Batch], Array]


def conv_names(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
  """Layers with a kernel, in call order.

  Args:
    model: maps `(image, train)` to outputs.
    shape: of the image, `(b, y, x, c)`.

  Raises:
    InputError: the model has none.
  """
  names = [
    row.name for row in layer_table.layer_table(model, shape) if row.flops
  ]
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


def keep_compiled(make: Callable[..., Callable]) -> Callable[..., Callable]:
  """Has `make` give the same call for equal arguments: JAX compiles it once.

  A model that cannot be hashed, such as one with an array among its fields, is
  compiled anew each time.
  """
  kept = functools.lru_cache(2)(make)

  @functools.wraps(make)
  def call(*args):
    try:
      hash(args)
    except TypeError:
      return make(*args)
    return kept(*args)

  return call


@keep_compiled
def _make_gradients(
  model: nn.Module, loss: LossFunction, train: bool, names: tuple[str, ...]
) -> Callable[..., list[Array]]:
  """Compiles `(variables, batch, rngs)` to the gradients of the kernels."""

  @jax.jit
  def gradients(variables, batch, rngs):
    def objective(params):
      at = variables | {'params': params}
      return loss_at(model, at, batch, loss, train=train, rngs=rngs)

    grads = jax.grad(objective)(variables['params'])
    return [telemetry.kernel(grads, name) for name in names]

  return gradients


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
    Layer name to the gradient of its kernel, in the kernel's shape and dtype.

  Raises:
    InputError: a model without convolutions.

  Example:
    >>> import jax
    >>> import skipnet_jax
    >>> run = skipnet_jax.load_run('runs/long_short')
    >>> batch = {'image': jax.random.normal(jax.random.key(0), (1, 32, 32, 1))}
    >>> def loss(outputs, batch):
    ...   return (outputs['logits'] ** 2).mean()
    >>> gradients = skipnet_jax.layer_gradients(
    ...   run.model, run.variables, batch, loss, train=False
    ... )
    >>> name, gradient = next(iter(gradients.items()))
    >>> name, gradient.shape
    ('down_1', (3, 3, 1, 4))
  """
  names = tuple(conv_names(model, batch['image'].shape))
  gradients = _make_gradients(model, loss, train, names)
  found = gradients(variables, batch, rngs or {})
  return dict(zip(names, found, strict=True))
