"""CUMedVision and M2FCN in PyTorch, and the trunk that they share."""

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import cumedvision
from skipnet_jax.models import m2fcn
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


class TorchCUMedVision(nn.Module):
  """CUMedVision (Chen et al. 2016)."""

  def __init__(self, model: cumedvision.CUMedVision):
    super().__init__()
    self.trunk = Trunk(1, model.base_width)
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


class Stage(nn.Module):
  """A trunk with a side output at each level, and their fusion."""

  def __init__(self, channels: int, base_width: int):
    super().__init__()
    self.trunk = Trunk(channels, base_width)
    for level in (0, 1, 2, 3):
      side = nn.Conv2d(base_width * 2**level, 1, 1)
      self.add_module(f'side_{level}', side)
      if level:
        up = torch_layers.transposed(1, 1, 2 ** (level + 1), 2**level)
        self.add_module(f'side_{level}_up', up)
    self.fusion = nn.Conv2d(4, 1, 1)

  def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maps `[b, c, y, x]` to 4 side outputs and the fusion `[b, 1, y, x]`."""
    outputs = []
    for level, features in enumerate(self.trunk(x)):
      side = self.get_submodule(f'side_{level}')(features)
      if level:
        side = self.get_submodule(f'side_{level}_up')(side)
      outputs.append(side)
    sides = torch.cat(outputs, 1)
    return sides, self.fusion(sides)


class TorchM2FCN(nn.Module):
  """M2FCN (Shen et al. 2017)."""

  def __init__(self, model: m2fcn.M2FCN):
    super().__init__()
    for number in range(1, model.stages + 1):
      stage = Stage(1 if number == 1 else 5, model.base_width)
      self.add_module(f'stage_{number}', stage)

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits and auxiliary logits of that shape."""
    x, auxiliary, name = image, {}, ''
    for name, stage in self.named_children():
      sides, auxiliary[name] = stage(x)
      for level, side in enumerate(sides.split(1, 1)):
        auxiliary[f'{name}_side_{level}'] = side
      x = torch.cat([image, torch.sigmoid(sides)], 1)
    return {'logits': auxiliary.pop(name), 'auxiliary': auxiliary}
