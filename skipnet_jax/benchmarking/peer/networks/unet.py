"""U-Net in PyTorch, the counterpart of `models.unet`."""

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import unet


class ContractAndExpand(nn.Module):
  """A U-Net without its classifier.

  Args:
    channels: of the input.
    base_width: of the output, and of the first level.
    long_skips: whether to concatenate the levels of both paths.
    valid: whether the 3x3 convolutions are unpadded.
    up_kernel: side of the transposed convolutions' kernels.
    dropout: its rate at the end of the last two contracting levels.
  """

  def __init__(
    self,
    channels: int,
    base_width: int,
    *,
    long_skips: bool,
    valid: bool = False,
    up_kernel: int = 2,
    dropout: float = 0.0,
  ):
    super().__init__()
    self.long_skips = long_skips
    self.drop = nn.Dropout(dropout)

    def level(name, channels, features):
      for i, width in ((1, channels), (2, features)):
        conv = nn.Conv2d(width, features, 3, padding=0 if valid else 1)
        self.add_module(f'{name}_conv_{i}', conv)

    for i in (0, 1, 2, 3, 4):
      features = base_width * 2**i
      level(f'down_{i}', channels, features)
      channels = features
    for i in (3, 2, 1, 0):
      features = base_width * 2**i
      up = torch_layers.transposed(channels, features, up_kernel)
      self.add_module(f'up_{i}_up', up)
      level(f'up_{i}', features * (1 + long_skips), features)
      channels = features

  def _level(self, name: str, x: Tensor) -> Tensor:
    for i in (1, 2):
      x = self.get_submodule(f'{name}_conv_{i}')(x)
      x = functional.relu(x, inplace=True)
    return x

  def features(self, x: Tensor) -> Tensor:
    """Maps `[b, channels, y, x]` to `[b, base_width, y, x]`."""
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
      x = functional.relu(x, inplace=True)
      if self.long_skips:
        skipped = torch_layers.centre(down[i], x.shape[2:])
        x = torch.cat([skipped, x], 1)
      x = self._level(f'up_{i}', x)
    return x


class TorchUNet(ContractAndExpand):
  """U-Net (Ronneberger et al. 2015)."""

  def __init__(self, model: unet.UNet):
    super().__init__(
      1,
      model.base_width,
      long_skips=model.long_skips,
      valid=model.padding == 'VALID',
      up_kernel=model.up_kernel,
      dropout=model.dropout,
    )
    self.valid = model.padding == 'VALID'
    self.classifier = nn.Conv2d(model.base_width, 2, 1)

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits `[b, 1, y, x]`."""
    size, x = image.shape[2:], image
    if self.valid:
      x = torch_layers.mirror(x, [unet.valid_pad(side) for side in size])
    # A softmax over two channels is the sigmoid of their difference.
    outside, inside = self.classifier(self.features(x)).split(1, 1)
    return {'logits': torch_layers.centre(inside - outside, size)}
