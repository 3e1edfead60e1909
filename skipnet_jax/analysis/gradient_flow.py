"""The gradient of each layer of a Linen model called as `model(image, train)`.

Layers are in the order in which a traced forward pass calls them. `routes`
splits a gradient by skips; `step.telemetry` records gradients while training.
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
  """Layers with a kernel, in call order, for an image of shape `(b, y, x, c)`.

  Raises:
    InputError: the model has none, or is no Linen module.
  """
  if not isinstance(model, nn.Module):
    kind = 'no Flax Linen module'
    for base in type(model).__mro__:
      if base.__module__.startswith(('flax.nnx', 'equinox')):
        name = 'Flax NNX' if 'nnx' in base.__module__ else 'Equinox'
        kind = f'a module of {name}'
    raise errors.InputError(
      f'{type(model).__name__} is {kind}, but layers are found in Linen '
      'modules: write it as a flax.linen.Module, see docs/own_model.md.'
    )
  table = layer_table.layer_table(model, shape)
  names = [row.name for row in table if row.flops]
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
  """Caches what `make` returns by its arguments, so that JAX compiles it once.

  A model that cannot be hashed, such as one with an array as a field, is
  compiled again in each call.
  """
  cached = functools.lru_cache(2)(make)

  @functools.wraps(make)
  def call(*args):
    try:
      return cached(*args)
    except TypeError:  # Of hash(args).
      return make(*args)

  return call


@keep_compiled
def _make_gradients(
  model: nn.Module, loss: LossFunction, train: bool, names: tuple[str, ...]
) -> Callable[..., list[Array]]:
  """Compiles the function of (variables, batch, rngs) to kernel gradients."""

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
  """The gradient of every kernel, layers in call order.

  Args:
    model: any Linen model called as `model(image, train)`.
    variables: params, and batch_stats if the model has any.
    batch: image `[b, y, x, c]`, and what the loss needs.
    loss: of (outputs, batch), a scalar.
    train: True for batch statistics and dropout.
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
  compiled = _make_gradients(model, loss, train, names)
  gradients = compiled(variables, batch, rngs or {})
  return dict(zip(names, gradients, strict=True))
