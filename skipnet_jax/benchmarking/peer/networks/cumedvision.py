"""CUMedVision in PyTorch, the counterpart of `models.cumedvision`."""

from torch import Tensor
from torch import nn

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.benchmarking.peer.networks import vgg
from skipnet_jax.models import cumedvision


class TorchCUMedVision(nn.Module):
  """CUMedVision (Chen et al. 2016)."""

  def __init__(self, model: cumedvision.CUMedVision):
    super().__init__()
    self.trunk = vgg.Trunk(1, model.base_width)
    for level in (1, 2, 3):
      channels, stride = model.base_width * 2**level, 2**level
      up = torch_layers.transposed(channels, 2, 2 * stride, stride)
      self.add_module(f'branch_{level}_up', up)

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits and auxiliary logits of that shape."""
    levels, branches = self.trunk(image), {}
    for level in (1, 2, 3):
      both = self.get_submodule(f'branch_{level}_up')(levels[level])
      outside, inside = both.split(1, 1)
      branches[f'branch_{level}'] = inside - outside
    return {'logits': sum(branches.values()), 'auxiliary': branches}
