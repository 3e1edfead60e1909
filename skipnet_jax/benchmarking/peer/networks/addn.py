"""ADDN in PyTorch, the counterpart of `models.addn`."""

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import addn


class DenseBlock(nn.Module):
  """Dilated convolutions; each gets the input and all earlier outputs."""

  def __init__(self, channels: int, features: int):
    super().__init__()
    for i, dilation in enumerate(addn.DILATIONS, start=1):
      self.add_module(f'norm_{i}', torch_layers.norm(channels))
      conv = nn.Conv2d(
        channels, features, 3, padding=dilation, dilation=dilation
      )
      self.add_module(f'conv_{i}', conv)
      channels += features
    self.norm = torch_layers.norm(channels)
    self.merge = nn.Conv2d(channels, features, 1)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, channels, y, x]` to `[b, features, y, x]`."""
    for i in range(1, len(addn.DILATIONS) + 1):
      y = functional.relu(self.get_submodule(f'norm_{i}')(x), inplace=True)
      x = torch.cat([x, self.get_submodule(f'conv_{i}')(y)], 1)
    return self.merge(functional.relu(self.norm(x), inplace=True))


class Generator(nn.Module):
  """A U-Net whose levels are dense blocks."""

  def __init__(self, base_width: int, long_skips: bool):
    super().__init__()
    self.long_skips = long_skips
    self.first = nn.Conv2d(1, base_width, 3, padding=1)
    channels = base_width
    for i in range(addn.DEPTH + 1):
      features = base_width * 2**i
      self.add_module(f'down_{i}', DenseBlock(channels, features))
      channels = features
    for i in reversed(range(addn.DEPTH)):
      features = base_width * 2**i
      up = torch_layers.transposed(channels, features)
      self.add_module(f'up_{i}_up', up)
      block = DenseBlock(features * (1 + long_skips), features)
      self.add_module(f'up_{i}', block)
      channels = features
    self.classifier = nn.Conv2d(channels, 1, 1)

  def forward(self, image: Tensor) -> Tensor:
    """Maps `[b, 1, y, x]` to logits of the same shape."""
    x, down = self.first(image), []
    for i in range(addn.DEPTH + 1):
      x = self.get_submodule(f'down_{i}')(x)
      if i < addn.DEPTH:
        down.append(x)
        x = functional.max_pool2d(x, 2)
    for i in reversed(range(addn.DEPTH)):
      x = self.get_submodule(f'up_{i}_up')(x)
      if self.long_skips:
        x = torch.cat([down[i], x], 1)
      x = self.get_submodule(f'up_{i}')(x)
    return self.classifier(x)


class Discriminator(nn.Module):
  """Decides for patches of an image whether a map of cells is the label."""

  def __init__(self, width: int):
    super().__init__()
    channels = 2
    for i in range(addn.DEPTH + 1):
      features = width * 2**i
      self.add_module(f'conv_{i}', nn.Conv2d(channels, features, 3, stride=2))
      channels = features
    self.classifier = nn.Conv2d(channels, 1, 1)

  def forward(self, image: Tensor, inside: Tensor) -> Tensor:
    """Maps `[b, 1, y, x]` twice to logits `[b, 1, y / 16, x / 16]`."""
    x = torch.cat([image, inside], 1)
    for i in range(addn.DEPTH + 1):
      # 'SAME' with stride 2 pads at the bottom and on the right only.
      x = self.get_submodule(f'conv_{i}')(functional.pad(x, (0, 1, 0, 1)))
      x = functional.leaky_relu(x, 0.2)
    return self.classifier(x)


class TorchADDN(nn.Module):
  """ADDN (2018): a generator and a discriminator."""

  adversarial = True  # `forward` also needs the labels.

  def __init__(self, model: addn.ADDN):
    super().__init__()
    self.generator = Generator(model.base_width, model.long_skips)
    self.discriminator = Discriminator(model.discriminator_width)

  def forward(self, image: Tensor, label: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` twice to `logits` and `judged`."""
    logits = self.generator(image)
    fake = torch.sigmoid(logits)
    frozen = {
      name: value.detach()
      for name, value in self.discriminator.named_parameters()
    }
    judged = {
      'fake': self.discriminator(image, fake.detach()),
      'real': self.discriminator(image, label),
      'fooled': torch.func.functional_call(
        self.discriminator, frozen, (image, fake)
      ),
    }
    return {'logits': logits, 'judged': judged}
