"""Layers that the PyTorch networks share."""

from collections.abc import Sequence
from typing import Required, TypedDict

from torch import Tensor
from torch import nn
from torch.nn import functional


class Outputs(TypedDict, total=False):
  """Outputs of a network, under the names of the Flax networks' outputs.

  Attributes:
    logits: `[b, 1, y, x]`.
    auxiliary: more logits of that shape, each with a loss of its own.
    judged: the discriminator's logits for 'real', 'fake' and 'fooled'.
  """

  logits: Required[Tensor]
  auxiliary: dict[str, Tensor]
  judged: dict[str, Tensor]


class Pointwise(nn.Conv2d):
  """A 1x1 convolution of every `step`-th pixel.

  On CPUs without AVX-512, the derivative of PyTorch 2.13's own strided one
  writes beyond its memory: in channels_last, with few channels.
  """

  def __init__(self, channels: int, features: int, step: int = 1):
    super().__init__(channels, features, 1)
    self.step = step

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, c, y, x]` to `[b, features, y / step, x / step]`."""
    return super().forward(x[:, :, :: self.step, :: self.step])


def norm(channels: int) -> nn.BatchNorm2d:
  """BatchNorm with the epsilon and momentum of the Flax networks."""
  # PyTorch's momentum is one minus Flax's 0.9. Its running variance is the
  # unbiased one, Flax's is biased but in F-CLmser-S; neither enters a training
  # step.
  return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


def transposed(
  channels: int,
  features: int,
  kernel_size: int = 2,
  stride: int = 2,
  bias: bool = True,
) -> nn.ConvTranspose2d:
  """A transposed convolution that multiplies both sides by its stride."""
  rest = kernel_size - stride
  padding = (rest + 1) // 2
  return nn.ConvTranspose2d(
    channels,
    features,
    kernel_size,
    stride,
    padding,
    output_padding=2 * padding - rest,
    bias=bias,
  )


class ConvNorm(nn.Module):
  """A 3x3 convolution, BatchNorm and an optional ReLU."""

  def __init__(
    self, channels: int, features: int, *, bias: bool, relu: bool = True
  ):
    super().__init__()
    self.conv = nn.Conv2d(channels, features, 3, padding=1, bias=bias)
    self.norm = norm(features)
    self.relu = relu

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, channels, y, x]` to `[b, features, y, x]`."""
    x = self.norm(self.conv(x))
    return functional.relu(x, inplace=True) if self.relu else x


class ResidualBlock(nn.Module):
  """`ConvNorm` several times, and the sum with the input.

  Args:
    channels: of input and output.
    convolutions: their number; the last one has no ReLU.
    short_skip: whether to add the input.
    relu: whether to end with a ReLU.
    bias: whether the convolutions have one.
  """

  def __init__(
    self,
    channels: int,
    convolutions: int,
    *,
    short_skip: bool,
    relu: bool,
    bias: bool,
  ):
    super().__init__()
    self.short_skip = short_skip
    self.relu = relu
    for i in range(1, convolutions + 1):
      conv = ConvNorm(channels, channels, bias=bias, relu=i < convolutions)
      self.add_module(f'conv_{i}', conv)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, channels, y, x]` to the same shape."""
    residual = x
    for conv in self.children():
      residual = conv(residual)
    if self.short_skip:
      residual += x
    return functional.relu(residual, inplace=True) if self.relu else residual


def centre(x: Tensor, size: Sequence[int]) -> Tensor:
  """The middle of `[b, c, y, x]`, of this size; an odd rest is cut below."""
  height, width = size
  top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
  return x[:, :, top : top + height, left : left + width]


def mirror(x: Tensor, pad: Sequence[tuple[int, int]]) -> Tensor:
  """Pads by reflection, by `pad` pixels before and after, of y and of x."""
  # Order: left, right, top, bottom. PyTorch pads by less than a side at a time.
  rest = [*pad[1], *pad[0]]
  while any(rest):
    most = [x.shape[3] - 1] * 2 + [x.shape[2] - 1] * 2
    now = [min(a, b) for a, b in zip(rest, most, strict=True)]
    x = functional.pad(x, now, mode='reflect')
    rest = [a - b for a, b in zip(rest, now, strict=True)]
  return x
