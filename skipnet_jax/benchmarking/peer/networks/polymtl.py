"""PolyMtl in PyTorch, the counterpart of `models.polymtl`."""

from torch import Tensor
from torch import nn

from skipnet_jax.benchmarking.peer.networks import fc_resnet as torch_network
from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.benchmarking.peer.networks import unet as torch_unet
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import polymtl
from skipnet_jax.models import unet


class TorchPolyMtl(nn.Module):
  """PolyMtl (Drozdzal et al. 2018)."""

  def __init__(self, model: polymtl.PolyMtl):
    super().__init__()
    self.normaliser = torch_unet.TorchUNet(
      unet.UNet(**polymtl.normaliser_fields(model), parent=None)
    )
    self.segmenter = torch_network.TorchFCResNet(
      fc_resnet.FCResNet(**polymtl.segmenter_fields(model), parent=None)
    )

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits `[b, 1, y, x]`."""
    return self.segmenter(self.normaliser(image)['logits'])
