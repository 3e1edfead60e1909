"""The SFCNN of `models.sfcnn` written for PyTorch.

It imports torch, so that nothing imports it before a race is asked for. The
atoms of the filters are those of `models.steerable`.
"""

from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import sfcnn
from skipnet_jax.models import steerable

Tensor: TypeAlias = torch.Tensor
TURNS = steerable.ORIENTATIONS


class SteerableConv(nn.Module):
  """A convolution over positions and orientations.

  Args:
    channels: of the input, at each orientation.
    features: of the output, likewise.
    kernel_size: side of the kernel, in pixels.
    lift: whether the input is an image, without orientations.
  """

  atoms: Tensor
  turned: Tensor

  def __init__(
    self, channels: int, features: int, kernel_size: int, lift: bool
  ):
    super().__init__()
    seen = 1 if lift else TURNS
    atoms = np.array(steerable.basis(kernel_size))
    to, by = np.mgrid[:TURNS, :seen]
    self.weight = nn.Parameter(
      torch.zeros(features, channels, atoms.shape[1], seen)
    )
    self.bias = nn.Parameter(torch.zeros(features))
    # On meta devices too: what is constant is no part of the state.
    self.register_buffer('atoms', torch.tensor(atoms), persistent=False)
    self.register_buffer(
      'turned', torch.tensor((by - to) % seen), persistent=False
    )

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, o c, y, x]`, or `[b, c, y, x]`, to `[b, o features, y, x]`."""
    weight = self.weight[..., self.turned]
    kernel = torch.einsum('oqyx,fcqos->ofscyx', self.atoms, weight)
    side = kernel.shape[-1]
    kernel = kernel.flatten(2, 3).flatten(0, 1)
    return functional.conv2d(
      x, kernel, self.bias.repeat(TURNS), padding=side // 2
    )


class OrientedNorm(nn.Module):
  """BatchNorm of each channel over all orientations, then ReLU."""

  def __init__(self, channels: int):
    super().__init__()
    self.norm = torch_layers.norm(channels)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, o c, y, x]` to the same shape."""
    b, _, height, width = x.shape
    x = x.unflatten(1, (TURNS, -1)).transpose(1, 2)
    x = self.norm(x.reshape(b, -1, TURNS * height, width))
    x = functional.relu(x, inplace=True).unflatten(2, (TURNS, height))
    return x.transpose(1, 2).reshape(b, -1, height, width)


class TorchSFCNN(nn.Module):
  """SFCNN (Weiler et al. 2018).

  Args:
    model: the Flax network whose fields it takes.
  """

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
        both = [t.unflatten(1, (TURNS, -1)) for t in (down[i], x)]
        x = torch.cat(both, 2).flatten(1, 2)
      x = self._level(f'up_{i}', x)
    x = x.unflatten(1, (TURNS, -1)).mean(1)
    return {'logits': self.classifier(x)}
