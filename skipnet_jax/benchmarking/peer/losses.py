"""The losses of `step.losses` in PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers


def mean(
  name: str, logits: Tensor, label: Tensor, weight: Tensor | None = None
) -> Tensor:
  """The weighted mean of a loss over the pixels, a scalar.

  Args:
    name: a key of `losses.LOSSES`.
    logits: `[b, 1, y, x]`.
    label: the same shape and dtype, 1 inside cells.
    weight: the same, or None for equal weights.
  """
  if name == 'bce_dice':
    bce = mean('bce', logits, label, weight)
    return bce + mean('dice', logits, label, weight)
  if name == 'dice':
    # The Dice loss of the membrane, not of the cells.
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
  """What a training step minimises, as `losses.training_value`; a scalar.

  Args:
    name: as in `mean`.
    terms: weights of the auxiliary losses and of the generator's adversarial
      loss.
    outputs: of a network.
    label: `[b, 1, y, x]`, in the dtype of the parameters and of the result.
    weight: the same, or None.
  """
  auxiliary, adversarial = terms

  def loss(logits: Tensor) -> Tensor:
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
  """Runs a network of `networks` in a training step."""
  if getattr(network, 'adversarial', False):
    return network(image, label)
  return network(image)
