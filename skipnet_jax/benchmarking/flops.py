"""FLOPs of a network by formula: what its arithmetic needs on any machine.

A multiplication and an addition are two. Counted are the kernels; BatchNorm,
activations, losses and optimizers, below one percent, are not.
"""

from collections.abc import Sequence

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
