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

from skipnet_jax.analysis import layers


def forward(table: Sequence[layers.Layer]) -> int:
  """FLOPs of a prediction.

  Args:
    table: from `layers.layer_table`, for as many images as its shape says.
  """
  return sum(row.flops for row in table)


def training(table: Sequence[layers.Layer]) -> int:
  """FLOPs of a training step: forward and backward.

  Backward, each kernel is met twice, for the gradient of its weights and for
  that of its input, each as many FLOPs as forward. The first one's input is the
  image, of which nobody asks the gradient.

  Args:
    table: as in `forward`.
  """
  first = next(row.flops for row in table if row.flops)
  return 3 * forward(table) - first


def forward_bytes(table: Sequence[layers.Layer], itemsize: int) -> int:
  """Fewest bytes of a prediction: activations, and the float32 parameters.

  Args:
    table: as in `forward`.
    itemsize: bytes of an activation, 4 in float32.
  """
  kernels = [row for row in table if row.flops]
  activations = sum(row.read + math.prod(row.shape) for row in kernels)
  return itemsize * activations + _FLOAT32 * _parameters(table)


def training_bytes(table: Sequence[layers.Layer], itemsize: int) -> int:
  """Fewest bytes of a training step with one moment, as RMSprop has.

  Args:
    table: as in `forward`.
    itemsize: as in `forward_bytes`.
  """
  kernels = [row for row in table if row.flops]
  activations = sum(3 * row.read + 2 * math.prod(row.shape) for row in kernels)
  # The image has no gradient to write.
  activations -= kernels[0].read
  # Read forward, backward and by the update, and written; the gradient written
  # and read; the moment read and written.
  return itemsize * activations + 8 * _FLOAT32 * _parameters(table)


_FLOAT32 = 4


def _parameters(table: Sequence[layers.Layer]) -> int:
  return sum(row.parameters for row in table)
