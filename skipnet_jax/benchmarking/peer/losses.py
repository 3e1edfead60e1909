"""The losses of `training.losses` for PyTorch; it imports torch."""

from typing import TypeAlias

import torch
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers

Tensor: TypeAlias = torch.Tensor


def mean(
  name: str, logits: Tensor, label: Tensor, weight: Tensor | None = None
) -> Tensor:
  """A loss over the pixels, by their weight where they have one.

  Args:
    name: a key of `losses.LOSSES`.
    logits: `[b, 1, y, x]`, in the dtype of the rest.
    label: the same shape, 1 inside cells.
    weight: the same shape, or None: all alike.

  Returns:
    A scalar.
  """
  if name == 'bce_dice':
    bce = mean('bce', logits, label, weight)
    return bce + mean('dice', logits, label, weight)
  if name == 'dice':
    # Of the membrane.
    o, y = torch.sigmoid(-logits), 1 - label
    w = 1 if weight is None else weight
    return -(2 * (o * y * w).sum() + 1) / (((o + y) * w).sum() + 1)
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


def objective(
  name: str,
  terms: tuple[float, float],
  outputs: torch_layers.Outputs,
  label: Tensor,
  weight: Tensor | None = None,
) -> Tensor:
  """What a training step minimises, as `losses.training_value`.

  Args:
    name: as in `mean`.
    terms: weights of auxiliary outputs and of the generator's wish to fool.
    outputs: of a network.
    label: `[b, 1, y, x]`.
    weight: the same shape, or None.

  Returns:
    A scalar, in the label's dtype.
  """
  auxiliary, adversarial = terms

  def loss(logits: Tensor) -> Tensor:
    # As in the Flax network, in the parameters' dtype.
    return mean(name, logits.to(label.dtype), label, weight)

  value = loss(outputs['logits'])
  for logits in outputs.get('auxiliary', {}).values():
    value = value + auxiliary * loss(logits)
  if 'judged' in outputs:
    judged = {k: v.to(label.dtype) for k, v in outputs['judged'].items()}
    value = value + functional.softplus(-judged['real']).mean()
    value = value + functional.softplus(judged['fake']).mean()
    fooled = functional.softplus(-judged['fooled']).mean()
    value = value + adversarial * fooled
  return value


def apply(
  network: torch.nn.Module, image: Tensor, label: Tensor
) -> torch_layers.Outputs:
  """The outputs of a network of `torch_networks` in a training step."""
  if getattr(network, 'adversarial', False):
    return network(image, label)
  return network(image)
