"""The FC-ResNet of `models.fc_resnet` written for PyTorch.

It imports torch, so that nothing imports it before a race is asked for.
The layers have the names and do the work of the Flax network, 1x1 convolutions
on the small side of every resampling included. Activations are
`[b, c, y, x]`.
"""

from collections import OrderedDict
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import blocks
from skipnet_jax.models import fc_resnet

Tensor: TypeAlias = torch.Tensor


def _up(x: Tensor) -> Tensor:
  return functional.interpolate(x, scale_factor=2.0, mode='nearest')


def _norm(channels: int, batch_norm: bool) -> nn.Module:
  return torch_layers.norm(channels) if batch_norm else nn.Identity()


class ShortSkip(nn.Module):
  """The sum of a block's residual path and its resampled, projected input."""

  def __init__(self, channels: int, features: int, resample: str):
    super().__init__()
    self.resample = resample
    self.projection = None
    if channels != features:
      stride = 2 if resample == 'down' else 1
      self.projection = nn.Conv2d(channels, features, 1, stride)

  def forward(self, residual: Tensor, x: Tensor) -> Tensor:
    """Adds x to residual, in place."""
    if self.projection is not None:
      x = self.projection(x)
    elif self.resample == 'down':
      x = x[:, :, ::2, ::2]
    if self.resample == 'up':
      x = _up(x)
    residual += x
    return residual


class Block(nn.Module):
  """What the three pre-activation blocks share.

  Args:
    channels: of the input.
    features: of the output.
    resample: 'none', 'down' or 'up', by a factor of two.
    short_skip: whether the input is added to the output.
    batch_norm: whether BatchNorm precedes each ReLU.
    dropout: rate on the residual path.
  """

  def __init__(
    self,
    channels: int,
    features: int,
    resample: str,
    *,
    short_skip: bool,
    batch_norm: bool,
    dropout: float,
  ):
    super().__init__()
    self.resample = resample
    self.batch_norm = batch_norm
    self.drop = nn.Dropout(dropout)
    self.short_skip = None
    if short_skip:
      self.short_skip = ShortSkip(channels, features, resample)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, c, y, x]` to `[b, features, y', x']`."""
    residual = self.residual(x)
    if self.short_skip is None:
      return residual
    return self.short_skip(residual, x)

  def residual(self, x: Tensor) -> Tensor:
    """The residual path: the same shapes."""
    raise TypeError('Block is abstract: use one of BLOCKS')

  def _relu(self, x: Tensor) -> Tensor:
    # In place only on what BatchNorm made: the skip needs the block's input.
    return functional.relu(x, inplace=self.batch_norm)

  def _repeat(self, x: Tensor) -> Tensor:
    return _up(x) if self.resample == 'up' else x


class SimpleBlock(Block):
  """BN, ReLU, [max pool], 3x3, dropout, [repeat]."""

  def __init__(self, channels: int, features: int, resample: str, **settings):
    super().__init__(channels, features, resample, **settings)
    self.norm_1 = _norm(channels, self.batch_norm)
    self.conv_1 = nn.Conv2d(channels, features, 3, padding=1)

  def residual(self, x: Tensor) -> Tensor:
    """The residual path."""
    x = self._relu(self.norm_1(x))
    if self.resample == 'down':
      x = functional.max_pool2d(x, 2)
    return self._repeat(self.drop(self.conv_1(x)))


class BasicBlock(Block):
  """BN, ReLU, 3x3, dropout, BN, ReLU, [repeat], 3x3."""

  def __init__(self, channels: int, features: int, resample: str, **settings):
    super().__init__(channels, features, resample, **settings)
    self.norm_1 = _norm(channels, self.batch_norm)
    down = resample == 'down'
    self.conv_1 = nn.Conv2d(
      channels, features, 3, stride=1 + down, padding=0 if down else 1
    )
    self.norm_2 = _norm(features, self.batch_norm)
    self.conv_2 = nn.Conv2d(features, features, 3, padding=1)

  def residual(self, x: Tensor) -> Tensor:
    """The residual path."""
    x = self._relu(self.norm_1(x))
    if self.resample == 'down':
      # 'SAME' with stride 2 pads below and to the right only.
      x = functional.pad(x, (0, 1, 0, 1))
    x = self._relu(self.norm_2(self.drop(self.conv_1(x))))
    return self.conv_2(self._repeat(x))


class BottleneckBlock(Block):
  """BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, [repeat], dropout."""

  def __init__(self, channels: int, features: int, resample: str, **settings):
    super().__init__(channels, features, resample, **settings)
    inner = features // 4
    self.norm_1 = _norm(channels, self.batch_norm)
    self.conv_1 = nn.Conv2d(channels, inner, 1, 1 + (resample == 'down'))
    self.norm_2 = _norm(inner, self.batch_norm)
    self.conv_2 = nn.Conv2d(inner, inner, 3, padding=1)
    self.norm_3 = _norm(inner, self.batch_norm)
    self.conv_3 = nn.Conv2d(inner, features, 1)

  def residual(self, x: Tensor) -> Tensor:
    """The residual path."""
    x = self.conv_1(self._relu(self.norm_1(x)))
    x = self.conv_2(self._relu(self.norm_2(x)))
    x = self.conv_3(self._relu(self.norm_3(x)))
    return self.drop(self._repeat(x))


BLOCKS = {
  'simple': SimpleBlock,
  'basic': BasicBlock,
  'bottleneck': BottleneckBlock,
}


class LongSkip(nn.Module):
  """The sum of expanding and contracting path, projected to one width."""

  def __init__(self, decoder: int, encoder: int, features: int, both: bool):
    super().__init__()
    self.features = features if both and decoder != encoder else encoder

    def project(channels):
      if channels == self.features:
        return nn.Identity()
      return nn.Conv2d(channels, self.features, 1)

    self.decoder = project(decoder)
    self.encoder = project(encoder)

  def forward(self, decoder: Tensor, encoder: Tensor) -> Tensor:
    """Adds both sides, `[b, features, y, x]`."""
    return self.decoder(decoder) + self.encoder(encoder)


class TorchFCResNet(nn.Module):
  """Table 1 of Drozdzal et al. 2016.

  Args:
    model: the Flax network whose fields it takes; `scan`, `dtype` and
      `axis_name` mean nothing here.
  """

  down_2: nn.Module
  down_3: nn.Module
  down_4: nn.Module
  down_5: nn.Module
  across: nn.Module
  up_1: nn.Module
  up_2: nn.Module
  up_3: nn.Module
  up_4: nn.Module
  long_skip_up_1: nn.Module
  long_skip_up_2: nn.Module
  long_skip_up_3: nn.Module
  long_skip_up_4: nn.Module
  long_skip_up_5: nn.Module

  def __init__(self, model: fc_resnet.FCResNet):
    super().__init__()
    base = model.base_width
    main = dict(
      zip(
        fc_resnet.MAIN_STAGES,
        zip(model.kinds(), model.repetitions, strict=True),
        strict=True,
      )
    )
    settings = dict(
      short_skip=model.short_skips,
      batch_norm=model.batch_norm,
      dropout=model.dropout,
    )

    def stage(name, channels, down=False, up=False):
      kind, repetitions = main.get(name, ('simple', 1))
      repetitions = max(repetitions, down + up)
      width = base * 2 ** fc_resnet.MAIN_STAGES.get(name, 0)
      width *= blocks.BLOCKS[kind][1]
      made = OrderedDict()
      for i in range(1, repetitions + 1):
        resample = 'none'
        if down and i == 1:
          resample = 'down'
        elif up and i == repetitions:
          resample = 'up'
        made[f'block_{i}'] = BLOCKS[kind](channels, width, resample, **settings)
        channels = width
      setattr(self, name, nn.Sequential(made))
      return width

    def join(name, decoder, encoder, power=0):
      if not model.long_skips:
        return decoder
      skip = LongSkip(
        decoder, encoder, base * 2**power, model.long_skip_projection == 'both'
      )
      setattr(self, f'long_skip_{name}', skip)
      return skip.features

    self.batch_norm = model.batch_norm
    self.long_skips = model.long_skips
    self.down_1 = nn.Conv2d(model.slices, base, 3, padding=1)
    down_2 = stage('down_2', base, down=True)
    down_3 = stage('down_3', down_2, down=True)
    down_4 = stage('down_4', down_3, down=True)
    down_5 = stage('down_5', down_4, down=True)
    x = stage('across', down_5, down=True, up=True)
    x = stage('up_1', join('up_1', x, down_5, 2), up=True)
    x = stage('up_2', join('up_2', x, down_4, 1), up=True)
    x = stage('up_3', join('up_3', x, down_3), up=True)
    x = stage('up_4', join('up_4', x, down_2), up=True)
    self.up_5 = nn.Conv2d(x, base, 3, padding=1)
    x = join('up_5', base, base)
    self.norm = _norm(x, model.batch_norm)
    self.classifier = nn.Conv2d(x, 1, 1)

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, slices, y, x]` to logits `[b, 1, y, x]`."""
    down_1 = self.down_1(image)
    down_2 = self.down_2(down_1)
    down_3 = self.down_3(down_2)
    down_4 = self.down_4(down_3)
    down_5 = self.down_5(down_4)
    x = self.across(down_5)
    x = self.up_1(self.long_skip_up_1(x, down_5) if self.long_skips else x)
    x = self.up_2(self.long_skip_up_2(x, down_4) if self.long_skips else x)
    x = self.up_3(self.long_skip_up_3(x, down_3) if self.long_skips else x)
    x = self.up_4(self.long_skip_up_4(x, down_2) if self.long_skips else x)
    x = self.up_5(x)
    x = self.long_skip_up_5(x, down_1) if self.long_skips else x
    x = functional.relu(self.norm(x), inplace=self.batch_norm)
    return {'logits': self.classifier(x)}
