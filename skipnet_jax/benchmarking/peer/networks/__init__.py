"""The PyTorch network of any model of `models.MODELS`.

It imports torch, as the networks do.
"""

from torch import nn

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.benchmarking.peer.networks import addn
from skipnet_jax.benchmarking.peer.networks import clmser
from skipnet_jax.benchmarking.peer.networks import fc_resnet
from skipnet_jax.benchmarking.peer.networks import fcn_lstm
from skipnet_jax.benchmarking.peer.networks import fusionnet
from skipnet_jax.benchmarking.peer.networks import polymtl
from skipnet_jax.benchmarking.peer.networks import sfcnn
from skipnet_jax.benchmarking.peer.networks import side_outputs
from skipnet_jax.benchmarking.peer.networks import unet
from skipnet_jax.models import network

_BY_NAME: dict[str, type[nn.Module]] = {
  'fc_resnet': fc_resnet.TorchFCResNet,
  'f_clmser_s': clmser.TorchFCLmserS,
  'unet': unet.TorchUNet,
  'fusionnet': fusionnet.TorchFusionNet,
  'polymtl': polymtl.TorchPolyMtl,
  'cumedvision': side_outputs.TorchCUMedVision,
  'm2fcn': side_outputs.TorchM2FCN,
  'fcn_lstm': fcn_lstm.TorchFCNLSTM,
  'addn': addn.TorchADDN,
  'sfcnn': sfcnn.TorchSFCNN,
}
NETWORKS = {models.MODELS[name]: twin for name, twin in _BY_NAME.items()}


def build(model: network.Network) -> nn.Module:
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
