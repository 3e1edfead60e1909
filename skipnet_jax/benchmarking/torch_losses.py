"""The losses of `training.losses` for PyTorch; it imports torch."""

import torch
from torch.nn import functional


def mean(
  name: str,
  logits: torch.Tensor,
  label: torch.Tensor,
  weight: torch.Tensor | None = None,
) -> torch.Tensor:
  """The mean of a loss over the pixels, by their weight where they have one.

  Args:
    name: 'bce' or 'smooth_l1'.
    logits: `[b, 1, y, x]`, in the dtype of the rest.
    label: the same shape, 1 inside cells.
    weight: the same shape, or None: all alike.

  Returns:
    A scalar.
  """
  reduction = 'mean' if weight is None else 'none'
  if name == 'smooth_l1':
    loss = functional.smooth_l1_loss(
      torch.tanh(logits / 2), 2 * label - 1, reduction=reduction
    )
  else:
    loss = functional.binary_cross_entropy_with_logits(
      logits, label, reduction=reduction
    )
  return loss if weight is None else (loss * weight).sum() / weight.sum()
