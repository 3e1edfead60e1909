"""M2FCN in PyTorch, the counterpart of `models.m2fcn`."""

import torch
from torch import Tensor
from torch import nn

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.benchmarking.peer.networks import vgg
from skipnet_jax.models import m2fcn


class Stage(nn.Module):
  """A trunk with a side output at each level, and their fusion."""

  def __init__(self, channels: int, base_width: int):
    super().__init__()
    self.trunk = vgg.Trunk(channels, base_width)
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
