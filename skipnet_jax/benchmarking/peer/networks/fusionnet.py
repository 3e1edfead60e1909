"""FusionNet in PyTorch, the counterpart of `models.fusionnet`."""

from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.models import fusionnet


class TorchFusionNet(nn.Module):
  """FusionNet (Quan et al. 2016)."""

  def __init__(self, model: fusionnet.FusionNet):
    super().__init__()
    base = model.base_width
    self.long_skips = model.long_skips

    def level(name, channels, features):
      for i, width in ((1, channels), (2, features)):
        conv = torch_layers.ConvNorm(width, features, bias=True)
        self.add_module(f'{name}_conv_{i}', conv)
      block = torch_layers.ResidualBlock(
        features, 3, short_skip=model.short_skips, relu=False, bias=True
      )
      self.add_module(name, block)

    for i in (0, 1, 2, 3):
      level(f'down_{i}', base * 2 ** (i - 1) if i else 1, base * 2**i)
    level('bridge', 8 * base, 16 * base)
    for i in (3, 2, 1, 0):
      features = base * 2**i
      self.add_module(
        f'up_{i}_up', torch_layers.transposed(2 * features, features, 3)
      )
      self.add_module(f'up_{i}_norm', torch_layers.norm(features))
      level(f'up_{i}', features, features)
    self.classifier = nn.Conv2d(base, 1, 1)

  def _level(self, name: str, x: Tensor) -> Tensor:
    for part in (f'{name}_conv_1', name, f'{name}_conv_2'):
      x = self.get_submodule(part)(x)
    return x

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, 1, y, x]` to logits `[b, 1, y, x]`; sides multiples of 16."""
    x, down = image, []
    for i in (0, 1, 2, 3):
      x = self._level(f'down_{i}', x)
      down.append(x)
      x = functional.max_pool2d(x, 2)
    x = self._level('bridge', x)
    for i in (3, 2, 1, 0):
      x = self.get_submodule(f'up_{i}_up')(x)
      x = self.get_submodule(f'up_{i}_norm')(x)
      x = functional.relu(x, inplace=True)
      if self.long_skips:
        x = x + down[i]
      x = self._level(f'up_{i}', x)
    return {'logits': self.classifier(x)}
