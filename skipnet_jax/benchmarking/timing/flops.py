"""FLOPs and bytes of a network by formula: what it needs on any machine.

A multiplication and an addition are two. Counted are the kernels; BatchNorm,
activations, losses and optimizers, below one percent, are not.

The bytes are the fewest, of a program that fuses all elementwise operations
into the kernels and keeps no activation in a cache from one kernel to the next:
forward, each kernel reads its input and writes its output; backward, it reads
the gradient of its output and its input again, and writes the gradient of its
input. A program cannot do with fewer unless it fuses kernels with each other.
"""

from collections.abc import Sequence
import math

from skipnet_jax.models import layer_table


def forward(table: Sequence[layer_table.Layer]) -> int:
  """FLOPs of a prediction.

  Args:
    table: from `layer_table.layer_table`, for as many images as its shape says.
  """
  return sum(row.flops for row in table)


def training(
  table: Sequence[layer_table.Layer], judge: Sequence[layer_table.Layer] = ()
) -> int:
  """FLOPs of a training step: forward and backward.

  Backward, each kernel is applied twice, for the gradient of its weights and
  for that of its input, each as many FLOPs as forward. The first one's input is
  the image, of which nobody asks the gradient.

  A discriminator judges three times. The labels and the prediction teach it:
  as above. The third judgement teaches the generator: forward, and the gradient
  of every input, but of no weight.

  Args:
    table: as in `forward`.
    judge: a discriminator's layers, each with the sum over the two calls that
      teach it.
  """
  flops = 3 * forward(table) - _first(table).flops
  if judge:
    flops += 4 * forward(judge) - _first(judge).flops
  return flops


def _first(table: Sequence[layer_table.Layer]) -> layer_table.Layer:
  return next(row for row in table if row.flops)


def forward_bytes(table: Sequence[layer_table.Layer], itemsize: int) -> int:
  """Fewest bytes of a prediction: activations, and the float32 parameters.

  Args:
    table: as in `forward`.
    itemsize: bytes of an activation, 4 in float32.
  """
  kernels = [row for row in table if row.flops]
  activations = sum(row.read + math.prod(row.shape) for row in kernels)
  return itemsize * activations + _FLOAT32 * _parameters(table)


def training_bytes(
  table: Sequence[layer_table.Layer],
  itemsize: int,
  judge: Sequence[layer_table.Layer] = (),
) -> int:
  """Fewest bytes of a training step with one moment, as RMSprop has.

  Args:
    table: as in `forward`.
    itemsize: as in `forward_bytes`.
    judge: as in `training`.
  """
  kernels = [row for row in table if row.flops]
  activations = sum(3 * row.read + 2 * math.prod(row.shape) for row in kernels)
  # The image has no gradient to write.
  activations -= kernels[0].read
  for row in judge:
    if row.flops:
      # Two calls as above, and one that reads no input again backward.
      activations += 4 * row.read + 6 * math.prod(row.shape)
  if judge:
    activations -= _first(judge).read
  # Read forward, backward and by the update, and written; the gradient written
  # and read; the moment read and written.
  return itemsize * activations + 8 * _FLOAT32 * _parameters([*table, *judge])


_FLOAT32 = 4


def _parameters(table: Sequence[layer_table.Layer]) -> int:
  return sum(row.parameters for row in table)
