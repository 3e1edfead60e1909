"""The F-CLmser-S of `models.clmser` written for PyTorch.

It imports torch, so that nothing imports it before a race is asked for.
"""

from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import clmser

Tensor: TypeAlias = torch.Tensor


def _leaky(x: Tensor) -> Tensor:
  return functional.leaky_relu(x, 0.01, inplace=True)


class ChannelGate(nn.Module):
  """Multiplies each channel by a weight that the channels' means give."""

  def __init__(self, channels: int):
    super().__init__()
    self.reduce = nn.Conv2d(channels, channels // 8, 1)
    self.expand = nn.Conv2d(channels // 8, channels, 1)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, c, y, x]` to the same shape."""
    mask = functional.adaptive_avg_pool2d(x, 1)
    mask = self.expand(functional.relu(self.reduce(mask)))
    return x * torch.sigmoid(mask)


class PixelGate(nn.Module):
  """Multiplies each pixel by a weight that its channels' mean gives."""

  def __init__(self):
    super().__init__()
    self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, c, y, x]` to the same shape."""
    return x * torch.sigmoid(self.conv(x.mean(1, keepdim=True)))


class ConfidenceMask(nn.Module):
  """`(1 - t^2)^gamma` of a provisional prediction t in -1..1."""

  def __init__(self, channels: int, gamma: int):
    super().__init__()
    self.conv = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
    self.gamma = gamma

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, c, y, x]` to a mask `[b, 1, y, x]`."""
    return (1 - torch.tanh(self.conv(x)).square()) ** self.gamma


class TorchFCLmserS(nn.Module):
  """F-CLmser-S (Guo et al. 2019) and its ablations.

  Args:
    model: the Flax network whose fields it takes; `dtype` and `axis_name` mean
      nothing here.
  """

  encoder_1: nn.Module
  encoder_2: nn.Module
  bridge_up: nn.Module
  up_1_up: nn.Module
  confidence_up: nn.Module
  last_conv: nn.Module

  def __init__(self, model: clmser.F_CLmser_S):
    super().__init__()
    d = model.base_width
    self.pad = model.pad
    self.long_skips = model.long_skips
    gates = set(model.gates.split('+')) if model.long_skips else set()
    self.gates = gates

    def norm(name, channels, features):
      conv = torch_layers.ConvNorm(channels, features, bias=False)
      self.add_module(name, conv)

    def stage(name, channels, features):
      norm(f'{name}_conv', channels, features)
      block = torch_layers.ResidualBlock(
        features, 2, short_skip=model.short_skips, relu=True, bias=False
      )
      self.add_module(name, block)

    def double(name, channels):
      kernel = model.deconv_kernel
      self.add_module(
        name, torch_layers.transposed(channels, channels, kernel, bias=False)
      )

    norm('encoder_1', 1, d)
    norm('encoder_2', d, 2 * d)
    for i in (1, 2, 3, 4):
      stage(f'down_{i}', 2**i * d, 2 ** (i + 1) * d)
    self.bridge_conv = nn.Conv2d(32 * d, 32 * d, 3, padding=1, bias=False)
    double('bridge_up', 32 * d)
    for i in (4, 3, 2, 1):
      stage(f'up_{i}', 2 ** (i + 1) * d, 2**i * d)
      double(f'up_{i}_up', 2**i * d)
    for i in (3, 2, 1):
      if 'cg' in gates:
        self.add_module(f'channel_gate_{i}', ChannelGate(2 ** (i + 1) * d))
      if gates & {'pg', 'full_pg'}:
        self.add_module(f'pixel_gate_{i}', PixelGate())
    if 'full_pg' in gates:
      self.pixel_gate_encoder_2 = PixelGate()
      self.pixel_gate_encoder_1 = PixelGate()
    if 'gm' in gates:
      double('confidence_up', 2 * d)
      self.confidence_mask_2 = ConfidenceMask(2 * d, model.gamma)
      self.confidence_mask_1 = ConfidenceMask(2 * d, model.gamma)
    norm('last_conv', 2 * d, d)
    self.classifier = nn.Conv2d(d, 1, 3, padding=1, bias=False)

  def _stage(self, name: str, x: Tensor) -> Tensor:
    return self.get_submodule(name)(self.get_submodule(f'{name}_conv')(x))

  def _skip(self, x: Tensor, down: Tensor, i: int) -> Tensor:
    """Adds what stage i of the contracting path lets through its gates."""
    if 'cg' in self.gates:
      down = self.get_submodule(f'channel_gate_{i}')(down)
    if self.gates & {'pg', 'full_pg'}:
      down = self.get_submodule(f'pixel_gate_{i}')(down)
    return x + down

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits `[b, 1, y, x]`; sides multiples of 32."""
    pad = (self.pad, self.pad)
    encoder_1 = self.encoder_1(torch_layers.mirror(image, (pad, pad)))
    encoder_2 = self.encoder_2(encoder_1)
    x, down = encoder_2, {}
    for i in (1, 2, 3, 4):
      x = down[i] = self._stage(f'down_{i}', functional.max_pool2d(x, 2))
    x = self.bridge_conv(functional.max_pool2d(x, 2))
    x = _leaky(self.bridge_up(functional.relu(x, inplace=True)))
    for i in (4, 3, 2, 1):
      # The deepest stage of the contracting path is not skipped.
      if self.long_skips and i < 4:
        x = self._skip(x, down[i], i)
      x = self._stage(f'up_{i}', x)
      if i > 1:
        x = _leaky(self.get_submodule(f'up_{i}_up')(x))
    x = self._full_resolution(x, encoder_1, encoder_2)
    # The paper's output is the tanh of half the logits.
    logits = 2 * self.classifier(x)
    return {'logits': torch_layers.centre(logits, image.shape[2:])}

  def _full_resolution(
    self, half: Tensor, encoder_1: Tensor, encoder_2: Tensor
  ) -> Tensor:
    """What the classifier sees, from up_1 at half resolution."""
    x = _leaky(self.up_1_up(half))
    if not self.long_skips:
      return self.last_conv(x)
    if 'gm' in self.gates:
      seen = _leaky(self.confidence_up(half))
      encoder_2 = self.confidence_mask_2(seen) * encoder_2
    if 'full_pg' in self.gates:
      encoder_2 = self.pixel_gate_encoder_2(encoder_2)
      encoder_1 = self.pixel_gate_encoder_1(encoder_1)
    x = x + encoder_2
    if 'gm' in self.gates:
      encoder_1 = self.confidence_mask_1(x) * encoder_1
    return self.last_conv(x) + encoder_1
