"""The layers of any Linen model in the order in which it calls them."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax import tables
from skipnet_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Layer:
  """A module that has parameters of its own.

  Attributes:
    name: path with slashes, such as 'up_1/block_3/conv_2'.
    block: class name of the module that contains it.
    shape: output shape.
    parameters: number of its own trainable parameters.
    flops: forward multiplications and additions of its kernel, for the whole
      batch; 0 for layers without kernel.
    read: elements of its input, for the whole batch.
  """

  name: str
  block: str
  shape: tuple[int, ...]
  parameters: int
  flops: int
  read: int


def _visiting(
  visitor: Callable[[nn.Module, dict[str, Any], Any, tuple], None],
) -> contextlib.AbstractContextManager:
  """Inside, each call of a layer calls the visitor.

  Its arguments are the module, the module's own parameters, its output and the
  arguments of its call.
  """

  def intercept(next_fun, args, kwargs, context):
    result = next_fun(*args, **kwargs)
    module = context.module
    if context.method_name == '__call__':
      own = {
        name: leaf
        for name, leaf in module.variables.get('params', {}).items()
        if not isinstance(leaf, dict)
      }
      if own:
        visitor(module, own, result, args)
    return result

  return nn.intercept_methods(intercept)


def layer_table(
  model: nn.Module,
  shape: tuple[int, ...],
  *,
  variables: dict[str, Any] | None = None,
  label: bool = False,
) -> list[Layer]:
  """The model's layers in call order; computes only shapes.

  A layer that is called several times is one row with the sum of its FLOPs.

  Args:
    model: maps `(image, train)` to outputs.
    shape: of the image, `(b, y, x, c)`.
    variables: the model's, or their shapes; None traces its initialisation.
    label: whether to pass a label too, as in adversarial training.
  """
  rows: dict[str, Layer] = {}

  def add_row(module, own, output, args):
    flops = 0
    if 'kernel' in own:
      # A transposed convolution applies its kernel at each input pixel.
      transposed = isinstance(module, nn.ConvTranspose | layers.ConvTranspose)
      pixels = math.prod((args[0] if transposed else output).shape[:-1])
      products = getattr(module, 'products', math.prod)(own['kernel'].shape)
      flops = 2 * pixels * products
      if isinstance(module, layers.Conv) and module.upsampled:
        # It adds the weights of equal pixels: 4 products instead of 9.
        flops = flops * 4 // 9
    name, read = '/'.join(module.path), math.prod(args[0].shape)
    if module.path and module.path[0] not in variables['params']:
      # A copy without variables of its own, such as ADDN's frozen one.
      return
    if name in rows:
      flops, read = flops + rows[name].flops, read + rows[name].read
    rows[name] = Layer(
      name=name,
      block=type(module.parent).__name__,
      shape=output.shape,
      parameters=sum(math.prod(leaf.shape) for leaf in own.values()),
      flops=flops,
      read=read,
    )

  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  if variables is None:
    variables = jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), image
    )

  def forward(v, x):
    more = {'label': x[..., :1]} if label else {}
    with _visiting(add_row):
      return model.apply(v, x, train=False, **more)

  jax.eval_shape(forward, variables, image)
  return list(rows.values())


def format_table(rows: Sequence[Layer], trained: int) -> str:
  """The table as text, with totals; `trained` counts all trained parameters."""
  widths = [-max(len(row.name) for row in rows)]
  widths += [-max(len(row.block) for row in rows), 18, 12, 10]
  heads = ('layer', 'block', 'output', 'parameters', 'MFLOPs')
  head = tables.line(heads, widths)
  lines = [head, '-' * len(head)]
  for row in rows:
    shape = 'x'.join(map(str, row.shape[1:]))
    figures = (f'{row.parameters:,}', f'{row.flops / 1e6:,.1f}')
    lines.append(tables.line((row.name, row.block, shape, *figures), widths))
  convs = sum(row.flops > 0 for row in rows)
  parameters = sum(row.parameters for row in rows)
  lines += [
    '-' * len(head),
    f'{convs} convolutions, {parameters:,} parameters, '
    f'{sum(r.flops for r in rows) / 1e9:,.2f} GFLOPs forward per image '
    '(multiplications and additions of the kernels)',
  ]
  if trained > parameters:
    lines.append(
      f'{trained - parameters:,} parameters more, {trained:,} in all, are used '
      'only in training'
    )
  return '\n'.join(lines)


def first_nonfinite(
  model: nn.Module, variables: dict[str, Any], image: jax.Array, rngs: dict
) -> str | None:
  """The first layer, in call order, whose output is not finite in training.

  The image is `[b, y, x, c]`; `rngs` are the step's random keys, for dropout.
  """
  names: list[str] = []

  # One program: a large network would need hundreds for its single operations.
  @jax.jit
  def finite(variables, image, rngs):
    found = []

    def check(module, own, output, args):
      names.append('/'.join(module.path))
      found.append(jnp.all(jnp.isfinite(output)))

    with _visiting(check):
      model.apply(
        variables, image, train=True, mutable=['batch_stats'], rngs=rngs
      )
    return found

  found = jax.device_get(finite(variables, image, rngs))
  return next(
    (name for name, good in zip(names, found, strict=True) if not good), None
  )
