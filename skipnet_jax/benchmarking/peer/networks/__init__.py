"""The PyTorch counterpart of every network in `models.MODELS`.

Each takes its sizes and switches from the Flax network; `dtype`, `axis_name`
and `scan` have no effect. Layers have the names of their Flax counterparts.
Activations are `[b, c, y, x]`. Only code that needs PyTorch imports this room.
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
  """Builds the counterpart of a Flax network, with random weights.

  Args:
    model: an instance of a class in `NETWORKS`, unscanned.

  Returns:
    A module that maps `[b, slices, y, x]` (and labels `[b, 1, y, x]` if its
    attribute `adversarial` is True) to `layers.Outputs`. Its parameters have
    the names and shapes that `weights.to_torch` gives.

  Raises:
    InputError: the network has no counterpart.
  """
  if type(model) not in NETWORKS:
    raise errors.InputError(
      f'{type(model).__name__} has no counterpart in PyTorch; these networks '
      f'have one: {", ".join(known.__name__ for known in NETWORKS)}.'
    )
  return NETWORKS[type(model)](model)
