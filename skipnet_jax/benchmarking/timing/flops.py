"""FLOPs and bytes of a network by formula: what it needs on any machine.

A multiplication and an addition are two FLOPs. Only kernels are counted:
BatchNorm, activations, losses and optimizers are below one percent.

The bytes are a lower bound for programs that fuse all elementwise operations
into the kernels and keep no activation in a cache between kernels. Forward,
each kernel reads its input and writes its output. Backward, it reads the
gradient of its output and its input again, and writes the gradient of its
input. Only a program that fuses kernels with each other needs fewer.
"""

from collections.abc import Sequence
import math

from skipnet_jax.models import layer_table

_FLOAT32 = 4  # Bytes.


def forward(table: Sequence[layer_table.Layer]) -> int:
  """FLOPs of a prediction.

  Args:
    table: from `layer_table.layer_table`; its shape gives the number of images.
  """
  return sum(row.flops for row in table)


def training(
  table: Sequence[layer_table.Layer], judge: Sequence[layer_table.Layer] = ()
) -> int:
  """FLOPs of a training step: forward and backward.

  Backward, each kernel is applied twice: for the gradient of its weights and
  for the gradient of its input. The first kernel's input is the image, whose
  gradient is not computed.

  A discriminator is called three times. Labels and prediction train it, at the
  cost above. The third call trains the generator: it costs the forward pass and
  the gradients of all inputs, but no gradient of a weight.

  Args:
    table: as in `forward`.
    judge: layers of the discriminator, each with the sum over the two calls
      that train it.
  """
  flops = 3 * forward(table) - _first(table).flops
  if judge:
    flops += 4 * forward(judge) - _first(judge).flops
  return flops


def _first(table: Sequence[layer_table.Layer]) -> layer_table.Layer:
  return next(row for row in table if row.flops)


def forward_bytes(
  table: Sequence[layer_table.Layer], itemsize: int, images: int = 1
) -> int:
  """Fewest bytes of a prediction: activations, and the float32 parameters.

  Args:
    table: as in `forward`.
    itemsize: bytes of an activation, 4 in float32.
    images: how many times the images of the table; the parameters count once.
  """
  kernels = [row for row in table if row.flops]
  activations = sum(row.read + math.prod(row.shape) for row in kernels)
  return itemsize * images * activations + _FLOAT32 * _parameters(table)


def training_bytes(
  table: Sequence[layer_table.Layer],
  itemsize: int,
  judge: Sequence[layer_table.Layer] = (),
  images: int = 1,
) -> int:
  """Fewest bytes of a training step whose optimizer has one moment (RMSprop).

  Args:
    table: as in `forward`.
    itemsize: as in `forward_bytes`.
    judge: as in `training`.
    images: as in `forward_bytes`.
  """
  kernels = [row for row in table if row.flops]
  activations = sum(3 * row.read + 2 * math.prod(row.shape) for row in kernels)
  # No gradient of the image is written.
  activations -= kernels[0].read
  for row in judge:
    if row.flops:
      # Two calls as above; the third reads no input again backward.
      activations += 4 * row.read + 6 * math.prod(row.shape)
  if judge:
    activations -= _first(judge).read
  # Parameters: read forward, backward and by the update, and written. Their
  # gradients: written and read. The moment: read and written.
  parameters = 8 * _FLOAT32 * _parameters([*table, *judge])
  return itemsize * images * activations + parameters


def _parameters(table: Sequence[layer_table.Layer]) -> int:
  return sum(row.parameters for row in table)
