"""Signal propagation at initialisation, forward and backward, by layer."""

from collections.abc import Callable, Sequence
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.analysis import gradient_flow

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Propagation:
  """Signal sizes of a network at initialisation, `[seeds, layers]` float64.

  Attributes:
    layers: names in call order.
    mean_square: of the outputs of each layer.
    variance: of the outputs of each layer.
    gradient: mean square of dL/d(output), by vjp.
    tangent: mean square of the change of the output that a random change of the
      image of mean square 1 causes, by jvp.
  """

  layers: tuple[str, ...]
  mean_square: np.ndarray
  variance: np.ndarray
  gradient: np.ndarray
  tangent: np.ndarray


def propagate(
  model: nn.Module,
  batch: gradient_flow.Batch,
  loss: gradient_flow.LossFunction,
  seeds: Sequence[int],
  *,
  layers: Sequence[str] | None = None,
) -> Propagation:
  """Measures a network at its initialisation, with batch statistics.

  Args:
    model: any Linen model called as `model(image, train)`, without dropout,
      which calls each layer once.
    batch: image `[b, y, x, c]`, and what the loss needs.
    loss: of (outputs, batch), a scalar.
    seeds: one initialisation each.
    layers: names from `gradient_flow.conv_names`; None: they are traced.

  Raises:
    InputError: a model without convolutions.
  """
  image = batch['image']
  names = tuple(layers or gradient_flow.conv_names(model, image.shape))
  measure = _make_measure(model, loss, names)
  shape = jax.ShapeDtypeStruct(image.shape, image.dtype)
  rows = []
  for seed in seeds:
    key_init, key_direction = jax.random.split(jax.random.key(seed))
    variables = model.lazy_init(key_init, shape, train=False)
    direction = jax.random.normal(key_direction, image.shape)
    rows.append(measure(variables, batch, direction))
  table = np.asarray(rows, np.float64)
  return Propagation(names, *(table[:, i] for i in range(4)))


@gradient_flow.keep_compiled
def _make_measure(
  model: nn.Module, loss: gradient_flow.LossFunction, names: tuple[str, ...]
) -> Callable[..., tuple[Array, ...]]:
  """Compiles (variables, batch, direction) to the rows of one seed."""

  def forward(variables, batch, image, added):
    """The loss and the layers' outputs, with `added` added to the outputs."""
    outputs = {}

    def intercept(next_fun, args, kwargs, context):
      result = next_fun(*args, **kwargs)
      name = '/'.join(context.module.path)
      if context.method_name == '__call__' and name in names:
        if added is not None:
          result = result + added[name]
        outputs[name] = result
      return result

    with nn.intercept_methods(intercept):
      value = gradient_flow.loss_at(
        model, variables, batch | {'image': image}, loss, train=True
      )
    return value, outputs

  @jax.jit
  def measure(variables, batch, direction):
    image = batch['image']
    _, shapes = jax.eval_shape(forward, variables, batch, image, None)
    zeros = {n: jnp.zeros(s.shape, s.dtype) for n, s in shapes.items()}
    # One forward pass serves both directions.
    (value, outputs), push = jax.linearize(
      lambda x, added: forward(variables, batch, x, added), image, zeros
    )
    _, tangents = push(direction, zeros)
    pull = jax.linear_transpose(push, image, zeros)
    _, gradients = pull((jnp.ones_like(value), zeros))

    def row(f, tree):
      return jnp.stack([f(tree[name]) for name in names])

    def mean_square(x):
      return jnp.mean(jnp.square(x))

    return (
      row(mean_square, outputs),
      row(jnp.var, outputs),
      row(mean_square, gradients),
      row(mean_square, tangents) / mean_square(direction),
    )

  return measure
