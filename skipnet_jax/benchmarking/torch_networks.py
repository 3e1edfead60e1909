"""The PyTorch network of any model of `models.MODELS`.

It imports torch, as the networks do.
"""

from flax import linen
from torch import nn

from skipnet_jax import errors
from skipnet_jax.benchmarking import torch_clmser
from skipnet_jax.benchmarking import torch_fusionnet
from skipnet_jax.benchmarking import torch_network
from skipnet_jax.benchmarking import torch_unet
from skipnet_jax.models import clmser
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import fusionnet
from skipnet_jax.models import unet

NETWORKS: dict[type[linen.Module], type[nn.Module]] = {
  fc_resnet.FCResNet: torch_network.TorchFCResNet,
  clmser.F_CLmser_S: torch_clmser.TorchFCLmserS,
  unet.UNet: torch_unet.TorchUNet,
  fusionnet.FusionNet: torch_fusionnet.TorchFusionNet,
}


def build(model: linen.Module) -> nn.Module:
  """Makes the counterpart of a Flax network, with weights of its own.

  Args:
    model: of one of `NETWORKS`, unscanned.

  Returns:
    A module mapping `[b, 1, y, x]` to logits `[b, 1, y, x]`, whose parameters
    have the names and shapes that `torch_weights.to_torch` gives.

  Raises:
    InputError: it has no counterpart.
  """
  if type(model) not in NETWORKS:
    raise errors.InputError(
      f'{type(model).__name__} has no counterpart in PyTorch; there are those '
      f'of {", ".join(known.__name__ for known in NETWORKS)}.'
    )
  return NETWORKS[type(model)](model)
