"""FC-ResNet in PyTorch, the counterpart of `models.fc_resnet`.

As in the Flax network, 1x1 convolutions run on the small side of every
resampling.
"""

from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import blocks
from skipnet_jax.models import fc_resnet


class ShortSkip(nn.Module):
  """Adds a block's input, resampled and projected, to its residual path."""

  def __init__(self, channels: int, features: int, resample: str):
    super().__init__()
    self.resample = resample
    self.projection = None
    if channels != features:
      step = 2 if resample == 'down' else 1
      self.projection = torch_layers.Pointwise(channels, features, step)

  def forward(self, residual: Tensor, x: Tensor) -> Tensor:
    """Adds x to residual, in place."""
    if self.projection is not None:
      x = self.projection(x)
    elif self.resample == 'down':
      x = x[:, :, ::2, ::2]
    if self.resample == 'up':
      x = functional.interpolate(x, scale_factor=2.0, mode='nearest')
    residual += x
    return residual


class Block(nn.Module):
  """A pre-activation block.

  simple: BN, ReLU, [max pool], 3x3, dropout, [repeat];
  basic: BN, ReLU, 3x3, dropout, BN, ReLU, [repeat], 3x3;
  bottleneck: BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, [repeat], dropout.

  Args:
    kind: 'simple', 'basic' or 'bottleneck'.
    channels: of the input.
    features: of the output.
    resample: 'none', 'down' or 'up', by a factor of two.
    short_skip: whether to add the input to the output.
    batch_norm: whether BatchNorm precedes each ReLU.
    dropout: its rate.
  """

  def __init__(
    self,
    kind: str,
    channels: int,
    features: int,
    resample: str,
    *,
    short_skip: bool,
    batch_norm: bool,
    dropout: float,
  ):
    super().__init__()
    down = resample == 'down'
    drop = nn.Dropout(dropout)
    repeat = nn.Upsample(scale_factor=2.0) if resample == 'up' else None

    def relu(number, width):
      norm = torch_layers.norm(width) if batch_norm else None
      self.add_module(f'norm_{number}', norm)
      # In place only after a BatchNorm: the skip needs the block's input.
      self.add_module(f'relu_{number}', nn.ReLU(inplace=batch_norm))

    # These modules run in the order in which they are set; None is skipped.
    relu(1, channels)
    if kind == 'simple':
      self.pool = nn.MaxPool2d(2) if down else None
      self.conv_1 = nn.Conv2d(channels, features, 3, padding=1)
      self.drop, self.repeat = drop, repeat
    elif kind == 'basic':
      self.conv_1 = nn.Conv2d(channels, features, 3, 1 + down, padding=1)
      self.drop = drop
      relu(2, features)
      self.repeat = repeat
      self.conv_2 = nn.Conv2d(features, features, 3, padding=1)
    else:
      inner = features // 4
      self.conv_1 = torch_layers.Pointwise(channels, inner, 1 + down)
      relu(2, inner)
      self.conv_2 = nn.Conv2d(inner, inner, 3, padding=1)
      relu(3, inner)
      self.conv_3 = nn.Conv2d(inner, features, 1)
      self.repeat, self.drop = repeat, drop
    self.short_skip = None
    if short_skip:
      self.short_skip = ShortSkip(channels, features, resample)

  def forward(self, x: Tensor) -> Tensor:
    """Maps `[b, channels, y, x]` to `[b, features, y', x']`."""
    residual = x
    for name, module in self.named_children():
      if name != 'short_skip':
        residual = module(residual)
    if self.short_skip is None:
      return residual
    return self.short_skip(residual, x)


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
    """Maps `[b, decoder or encoder, y, x]` to `[b, features, y, x]`."""
    return self.decoder(decoder) + self.encoder(encoder)


class TorchFCResNet(nn.Module):
  """Table 1 of Drozdzal et al. 2016."""

  def __init__(self, model: fc_resnet.FCResNet):
    super().__init__()
    base = model.base_width
    stages = zip(
      fc_resnet.MAIN_STAGES, model.kinds(), model.repetitions, strict=True
    )
    main = {name: (kind, count) for name, kind, count in stages}

    def stage(name, channels, down=False, up=False):
      kind, repetitions = main.get(name, ('simple', 1))
      repetitions = max(repetitions, down + up)
      width = base * 2 ** fc_resnet.MAIN_STAGES.get(name, 0)
      width *= blocks.BLOCKS[kind][1]
      repeated = nn.Sequential()
      for i in range(1, repetitions + 1):
        resample = 'none'
        if down and i == 1:
          resample = 'down'
        elif up and i == repetitions:
          resample = 'up'
        block = Block(
          kind,
          channels,
          width,
          resample,
          short_skip=model.short_skips,
          batch_norm=model.batch_norm,
          dropout=model.dropout,
        )
        repeated.add_module(f'block_{i}', block)
        channels = width
      self.add_module(name, repeated)
      return width

    def join(i, decoder, encoder):
      if not model.long_skips:
        return decoder
      features = base * 2 ** fc_resnet.MAIN_STAGES.get(f'up_{i}', 0)
      both = model.long_skip_projection == 'both'
      skip = LongSkip(decoder, encoder, features, both)
      self.add_module(f'long_skip_up_{i}', skip)
      return skip.features

    self.batch_norm = model.batch_norm
    self.long_skips = model.long_skips
    self.down_1 = nn.Conv2d(model.slices, base, 3, padding=1)
    widths = [base]
    for i in (2, 3, 4, 5):
      widths.append(stage(f'down_{i}', widths[-1], down=True))
    x = stage('across', widths[-1], down=True, up=True)
    for i in (1, 2, 3, 4):
      x = stage(f'up_{i}', join(i, x, widths[-i]), up=True)
    self.up_5 = nn.Conv2d(x, base, 3, padding=1)
    x = join(5, base, base)
    self.norm = torch_layers.norm(x) if model.batch_norm else nn.Identity()
    self.classifier = nn.Conv2d(x, 1, 1)

  def _join(self, i: int, x: Tensor, down: Tensor) -> Tensor:
    if not self.long_skips:
      return x
    return self.get_submodule(f'long_skip_up_{i}')(x, down)

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, slices, y, x]` to logits `[b, 1, y, x]`."""
    down = [self.down_1(image)]
    for i in (2, 3, 4, 5):
      down.append(self.get_submodule(f'down_{i}')(down[-1]))
    x = self.get_submodule('across')(down[-1])
    for i in (1, 2, 3, 4):
      x = self.get_submodule(f'up_{i}')(self._join(i, x, down[-i]))
    x = self._join(5, self.up_5(x), down[0])
    x = functional.relu(self.norm(x), inplace=self.batch_norm)
    return {'logits': self.classifier(x)}
