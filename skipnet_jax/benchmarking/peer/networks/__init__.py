"""The PyTorch network of any model of `models.MODELS`.

It imports torch, as the networks do.
"""

from flax import linen
from torch import nn

from skipnet_jax import errors
from skipnet_jax.benchmarking.peer.networks import addn as torch_addn
from skipnet_jax.benchmarking.peer.networks import clmser as torch_clmser
from skipnet_jax.benchmarking.peer.networks import fc_resnet as torch_network
from skipnet_jax.benchmarking.peer.networks import fcn_lstm as torch_fcn_lstm
from skipnet_jax.benchmarking.peer.networks import fusionnet as torch_fusionnet
from skipnet_jax.benchmarking.peer.networks import polymtl as torch_polymtl
from skipnet_jax.benchmarking.peer.networks import sfcnn as torch_sfcnn
from skipnet_jax.benchmarking.peer.networks import (
  side_outputs as torch_side_outputs,
)
from skipnet_jax.benchmarking.peer.networks import unet as torch_unet
from skipnet_jax.models import addn
from skipnet_jax.models import clmser
from skipnet_jax.models import cumedvision
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import fcn_lstm
from skipnet_jax.models import fusionnet
from skipnet_jax.models import m2fcn
from skipnet_jax.models import polymtl
from skipnet_jax.models import sfcnn
from skipnet_jax.models import unet

NETWORKS: dict[type[linen.Module], type[nn.Module]] = {
  fc_resnet.FCResNet: torch_network.TorchFCResNet,
  clmser.F_CLmser_S: torch_clmser.TorchFCLmserS,
  unet.UNet: torch_unet.TorchUNet,
  fusionnet.FusionNet: torch_fusionnet.TorchFusionNet,
  polymtl.PolyMtl: torch_polymtl.TorchPolyMtl,
  cumedvision.CUMedVision: torch_side_outputs.TorchCUMedVision,
  m2fcn.M2FCN: torch_side_outputs.TorchM2FCN,
  fcn_lstm.FCNLSTM: torch_fcn_lstm.TorchFCNLSTM,
  addn.ADDN: torch_addn.TorchADDN,
  sfcnn.SFCNN: torch_sfcnn.TorchSFCNN,
}


def build(model: linen.Module) -> nn.Module:
  """Makes the counterpart of a Flax network, with weights of its own.

  Args:
    model: of one of `NETWORKS`, unscanned.

  Returns:
    A module mapping `[b, slices, y, x]`, where its `adversarial` is True also
    labels `[b, 1, y, x]`, to outputs as the Flax network's: a dict of logits
    `[b, 1, y, x]` and perhaps `auxiliary` and `judged`. Its parameters have the
    names and shapes that `torch_weights.to_torch` gives.

  Raises:
    InputError: it has no counterpart.
  """
  if type(model) not in NETWORKS:
    raise errors.InputError(
      f'{type(model).__name__} has no counterpart in PyTorch; there are those '
      f'of {", ".join(known.__name__ for known in NETWORKS)}.'
    )
  return NETWORKS[type(model)](model)
