"""F-CLmser-S in PyTorch, the counterpart of `models.clmser`."""

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import clmser


def _leaky_relu(x: Tensor) -> Tensor:
  return functional.leaky_relu(x, 0.01, inplace=True)


class ChannelGate(nn.Module):
  """Multiplies each channel by a weight computed from the channels' means."""

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
  """Multiplies each pixel by a weight computed from the channels' mean."""

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
  """F-CLmser-S (Guo et al. 2019) and its ablations."""

  unbiased_variance = True  # The Flax network's running variance.

  def __init__(self, model: clmser.F_CLmser_S):
    super().__init__()
    d = model.base_width
    self.pad = model.pad
    self.long_skips = model.long_skips
    self.gates = set(model.gates.split('+')) if model.long_skips else set()

    def norm(channels, features):
      return torch_layers.ConvNorm(channels, features, bias=False)

    def stage(name, channels, features):
      self.add_module(f'{name}_conv', norm(channels, features))
      block = torch_layers.ResidualBlock(
        features, 2, short_skip=model.short_skips, relu=True, bias=False
      )
      self.add_module(name, block)

    def double(channels):
      kernel = model.deconv_kernel
      return torch_layers.transposed(channels, channels, kernel, bias=False)

    self.encoder_1 = norm(1, d)
    self.encoder_2 = norm(d, 2 * d)
    for i in (1, 2, 3, 4):
      stage(f'down_{i}', 2**i * d, 2 ** (i + 1) * d)
    self.bridge_conv = nn.Conv2d(32 * d, 32 * d, 3, padding=1, bias=False)
    self.bridge_up = double(32 * d)
    for i in (4, 3, 2, 1):
      stage(f'up_{i}', 2 ** (i + 1) * d, 2**i * d)
      self.add_module(f'up_{i}_up', double(2**i * d))
    for i in (3, 2, 1):
      if 'cg' in self.gates:
        self.add_module(f'channel_gate_{i}', ChannelGate(2 ** (i + 1) * d))
      if self.gates & {'pg', 'full_pg'}:
        self.add_module(f'pixel_gate_{i}', PixelGate())
    if 'full_pg' in self.gates:
      self.pixel_gate_encoder_2 = PixelGate()
      self.pixel_gate_encoder_1 = PixelGate()
    if 'gm' in self.gates:
      self.confidence_up = double(2 * d)
      self.confidence_mask_2 = ConfidenceMask(2 * d, model.gamma)
      self.confidence_mask_1 = ConfidenceMask(2 * d, model.gamma)
    self.last_conv = norm(2 * d, d)
    self.classifier = nn.Conv2d(d, 1, 3, padding=1, bias=False)

  def _stage(self, name: str, x: Tensor) -> Tensor:
    return self.get_submodule(name)(self.get_submodule(f'{name}_conv')(x))

  def _up(self, i: int, x: Tensor) -> Tensor:
    return _leaky_relu(self.get_submodule(f'up_{i}_up')(x))

  def _skip(self, x: Tensor, down: Tensor, i: int) -> Tensor:
    """Adds the gated output of stage i of the contracting path."""
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
    x = _leaky_relu(self.bridge_up(functional.relu(x, inplace=True)))
    for i in (4, 3, 2, 1):
      # The deepest stage of the contracting path has no long skip.
      if self.long_skips and i < 4:
        x = self._skip(x, down[i], i)
      x = self._stage(f'up_{i}', x)
      if i > 1:
        x = self._up(i, x)
    x = self._full_resolution(x, encoder_1, encoder_2)
    # The paper's output is the tanh of half the logits.
    logits = 2 * self.classifier(x)
    return {'logits': torch_layers.centre(logits, image.shape[2:])}

  def _full_resolution(
    self, half: Tensor, encoder_1: Tensor, encoder_2: Tensor
  ) -> Tensor:
    """The classifier's input, from the output of up_1 at half resolution."""
    x = self._up(1, half)
    if not self.long_skips:
      return self.last_conv(x)
    if 'gm' in self.gates:
      upsampled = _leaky_relu(self.confidence_up(half))
      encoder_2 = self.confidence_mask_2(upsampled) * encoder_2
    if 'full_pg' in self.gates:
      encoder_2 = self.pixel_gate_encoder_2(encoder_2)
      encoder_1 = self.pixel_gate_encoder_1(encoder_1)
    x = x + encoder_2
    if 'gm' in self.gates:
      encoder_1 = self.confidence_mask_1(x) * encoder_1
    return self.last_conv(x) + encoder_1
