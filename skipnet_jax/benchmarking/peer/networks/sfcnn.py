"""SFCNN in PyTorch, the counterpart of `models.sfcnn`."""

import numpy as np
import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import sfcnn

ORIENTATIONS = sfcnn.ORIENTATIONS


class SteerableConv(nn.Module):
  """A convolution over positions and orientations.

  Args:
    channels: of the input, at each orientation.
    features: of the output, likewise.
    kernel_size: side of the kernel, in pixels.
    lift: whether the input is an image, which has no orientations.
  """

  atoms: Tensor
  relative: Tensor

  def __init__(
    self, channels: int, features: int, kernel_size: int, lift: bool
  ):
    super().__init__()
    inputs = 1 if lift else ORIENTATIONS
    atoms = np.array(sfcnn.basis(kernel_size))
    output, source = np.mgrid[:ORIENTATIONS, :inputs]
    self.weight = nn.Parameter(
      torch.zeros(features, channels, atoms.shape[1], inputs)
    )
    self.bias = nn.Parameter(torch.zeros(features))
    # Constants: they move with the module and are not in its state_dict.
    self.register_buffer('atoms', torch.tensor(atoms), persistent=False)
    relative = torch.tensor((source - output) % inputs)
    self.register_buffer('relative', relative, persistent=False)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, o c, y, x]`, or `[b, c, y, x]`, to `[b, o features, y, x]`."""
    weight = self.weight[..., self.relative]
    kernel = torch.einsum('oqyx,fcqos->ofscyx', self.atoms, weight)
    side = kernel.shape[-1]
    kernel = kernel.flatten(2, 3).flatten(0, 1)
    return functional.conv2d(
      x, kernel, self.bias.repeat(ORIENTATIONS), padding=side // 2
    )


class OrientedNorm(nn.Module):
  """BatchNorm of each channel over all orientations, then ReLU."""

  def __init__(self, channels: int):
    super().__init__()
    self.norm = torch_layers.norm(channels)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, o c, y, x]` to the same shape."""
    b, _, height, width = x.shape
    x = x.unflatten(1, (ORIENTATIONS, -1)).transpose(1, 2)
    x = self.norm(x.reshape(b, -1, ORIENTATIONS * height, width))
    x = functional.relu(x, inplace=True).unflatten(2, (ORIENTATIONS, height))
    return x.transpose(1, 2).reshape(b, -1, height, width)


class TorchSFCNN(nn.Module):
  """SFCNN (Weiler et al. 2018)."""

  def __init__(self, model: sfcnn.SFCNN):
    super().__init__()
    self.long_skips = model.long_skips

    def level(name, channels, features):
      for i, width in ((1, channels), (2, features)):
        conv = SteerableConv(
          width,
          features,
          model.kernel_size,
          lift=(name, i) == ('down_0', 1),
        )
        self.add_module(f'{name}_conv_{i}', conv)
        self.add_module(f'{name}_norm_{i}', OrientedNorm(features))

    channels = 1
    for i in range(sfcnn.DEPTH + 1):
      features = model.base_width * 2**i
      level(f'down_{i}', channels, features)
      channels = features
    for i in reversed(range(sfcnn.DEPTH)):
      features = model.base_width * 2**i
      level(f'up_{i}', channels + features * self.long_skips, features)
      channels = features
    self.classifier = nn.Conv2d(channels, 1, 1)

  def _level(self, name: str, x: Tensor) -> Tensor:
    for i in (1, 2):
      x = self.get_submodule(f'{name}_conv_{i}')(x)
      x = self.get_submodule(f'{name}_norm_{i}')(x)
    return x

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits `[b, 1, y, x]`."""
    x, down = image, []
    for i in range(sfcnn.DEPTH + 1):
      x = self._level(f'down_{i}', x)
      if i < sfcnn.DEPTH:
        down.append(x)
        x = functional.max_pool2d(x, 2)
    for i in reversed(range(sfcnn.DEPTH)):
      x = functional.interpolate(x, scale_factor=2.0, mode='nearest')
      if self.long_skips:
        both = [t.unflatten(1, (ORIENTATIONS, -1)) for t in (down[i], x)]
        x = torch.cat(both, 2).flatten(1, 2)
      x = self._level(f'up_{i}', x)
    x = x.unflatten(1, (ORIENTATIONS, -1)).mean(1)
    return {'logits': self.classifier(x)}
