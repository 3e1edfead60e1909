"""FCN+LSTM in PyTorch, the counterpart of `models.fcn_lstm`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from skipnet_jax.benchmarking.peer.networks import layers as torch_layers
from skipnet_jax.benchmarking.peer.networks import unet as torch_unet
from skipnet_jax.models import fcn_lstm

KERNEL_SIZE = 5  # Of the LSTM.


class ConvLSTM(nn.Module):
  """One direction of a convolutional LSTM."""

  def __init__(self, channels: int, features: int):
    super().__init__()
    self.features = features
    self.gates = nn.Conv2d(
      channels + features, 4 * features, KERNEL_SIZE, padding=KERNEL_SIZE // 2
    )

  def forward(self, sequence: Sequence[Tensor]) -> list[Tensor]:
    """Maps slices `[b, c, y, x]` to states `[b, features, y, x]`."""
    first = sequence[0]
    b, _, height, width = first.shape
    cell = hidden = first.new_zeros((b, self.features, height, width))
    states = []
    for x in sequence:
      z = self.gates(torch.cat([x, hidden], 1))
      i, f, g, o = z.chunk(4, 1)
      # The forget gate's bias starts at 1.
      cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * torch.tanh(g)
      hidden = torch.sigmoid(o) * torch.tanh(cell)
      states.append(hidden)
    return states


class TorchFCNLSTM(nn.Module):
  """FCN+LSTM (Chen et al. 2016)."""

  def __init__(self, model: fcn_lstm.FCNLSTM):
    super().__init__()
    width, hidden = model.base_width, model.hidden

    def scale(channels: int) -> torch_unet.ContractAndExpand:
      return torch_unet.ContractAndExpand(
        channels, width, long_skips=model.long_skips
      )

    self.coarse = scale(1)
    self.coarse_up = torch_layers.transposed(width, width)
    self.fine = scale(1 + width)
    self.lstm_layers = model.lstm_layers
    for i in range(1, model.lstm_layers + 1):
      channels = width if i == 1 else 2 * hidden
      both = {name: ConvLSTM(channels, hidden) for name in ('up', 'down')}
      self.add_module(f'lstm_{i}', nn.ModuleDict(both))
    self.classifier = nn.Conv2d(2 * hidden, 1, 1)

  def forward(self, image: Tensor) -> torch_layers.Outputs:
    """Maps `[b, slices, y, x]` to the middle slice's logits `[b, 1, y, x]`."""
    b, slices, height, width = image.shape
    pages = image.reshape(b * slices, 1, height, width)
    coarse = self.coarse_up(
      self.coarse.features(functional.avg_pool2d(pages, 2))
    )
    features = self.fine.features(
      torch.cat([pages, functional.relu(coarse)], 1)
    )
    sequence = features.unflatten(0, (b, slices)).unbind(1)
    first, last = 0, slices
    for i in range(1, self.lstm_layers + 1):
      if i == self.lstm_layers:
        # Nothing reads the last layer's other slices.
        first, last = slices // 2, slices // 2 + 1
      up = self.get_submodule(f'lstm_{i}.up')(sequence[:last])[first:]
      down = self.get_submodule(f'lstm_{i}.down')(sequence[first:][::-1])
      down = down[::-1][: last - first]
      sequence = [torch.cat(both, 1) for both in zip(up, down, strict=True)]
    return {'logits': self.classifier(sequence[0])}
