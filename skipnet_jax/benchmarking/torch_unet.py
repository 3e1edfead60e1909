"""The U-Net of `models.unet` written for PyTorch.

It imports torch, so that nothing imports it before a race is asked for.
"""

import torch
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking import torch_layers
from skipnet_jax.models import unet

Tensor = torch.Tensor


class TorchUNet(nn.Module):
  """U-Net (Ronneberger et al. 2015).

  Args:
    model: the Flax network whose fields it takes; `dtype` and `axis_name` mean
      nothing here.
  """

  def __init__(self, model: unet.UNet):
    super().__init__()
    self.valid = model.padding == 'VALID'
    self.long_skips = model.long_skips
    self.drop = nn.Dropout(model.dropout)

    def level(name, channels, features):
      for i, width in ((1, channels), (2, features)):
        conv = nn.Conv2d(width, features, 3, padding=0 if self.valid else 1)
        self.add_module(f'{name}_conv_{i}', conv)

    channels = 1
    for i in (0, 1, 2, 3, 4):
      features = model.base_width * 2**i
      level(f'down_{i}', channels, features)
      channels = features
    for i in (3, 2, 1, 0):
      features = model.base_width * 2**i
      self.add_module(
        f'up_{i}_up',
        torch_layers.double(channels, features, model.up_kernel),
      )
      level(f'up_{i}', features * (1 + self.long_skips), features)
      channels = features
    self.classifier = nn.Conv2d(channels, 2, 1)

  def _level(self, name: str, x: Tensor) -> Tensor:
    for i in (1, 2):
      x = self.get_submodule(f'{name}_conv_{i}')(x)
      x = functional.relu(x, inplace=True)
    return x

  def forward(self, image: Tensor) -> Tensor:
    """Maps `[b, 1, y, x]` to logits `[b, 1, y, x]`."""
    size, x = image.shape[2:], image
    if self.valid:
      x = torch_layers.mirror(x, [unet.valid_pad(side) for side in size])
    down = []
    for i in (0, 1, 2, 3):
      x = self._level(f'down_{i}', x)
      if i == 3:
        x = self.drop(x)
      down.append(x)
      x = functional.max_pool2d(x, 2)
    x = self.drop(self._level('down_4', x))
    for i in (3, 2, 1, 0):
      x = self.get_submodule(f'up_{i}_up')(x)
      if self.long_skips:
        skipped = torch_layers.centre(down[i], x.shape[2:])
        x = torch.cat([skipped, x], 1)
      x = self._level(f'up_{i}', x)
    # A softmax over two channels is the sigmoid of their difference.
    outside, inside = self.classifier(x).split(1, 1)
    return torch_layers.centre(inside - outside, size)
