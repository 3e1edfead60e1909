"""The trunk that CUMedVision and M2FCN share, in PyTorch."""

from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.models import vgg


class Trunk(nn.Module):
  """The contracting path of VGG."""

  def __init__(self, channels: int, base_width: int):
    super().__init__()
    for level, count in enumerate(vgg.CONVOLUTIONS):
      for i in range(1, count + 1):
        conv = nn.Conv2d(channels, base_width * 2**level, 3, padding=1)
        self.add_module(f'level_{level}_conv_{i}', conv)
        channels = base_width * 2**level

  def forward(self, x: Tensor) -> list[Tensor]:
    """Maps `[b, c, y, x]` to the levels' `[b, w 2^i, y / 2^i, x / 2^i]`."""
    levels = []
    for level, count in enumerate(vgg.CONVOLUTIONS):
      x = functional.max_pool2d(x, 2) if level else x
      for i in range(1, count + 1):
        x = functional.relu(self.get_submodule(f'level_{level}_conv_{i}')(x))
      levels.append(x)
    return levels
