"""Flax arrays as PyTorch's, under its names and in its layout."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
import torch
from torch import nn

_NAMES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
# Transposed convolutions are called so, in every network.
_TRANSPOSED = '_up'


def to_torch(variables: dict[str, Any]) -> dict[str, torch.Tensor]:
  """Flax arrays under PyTorch's names and in its layout.

  Args:
    variables: collections of an unscanned network, params and batch_stats, or
      the gradient of one.

  Returns:
    Name as in `state_dict` to a tensor on the host, of the same dtype.
  """
  found = {}
  for tree in variables.values():
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
      value = np.array(leaf)
      if path[-1] == 'kernel':
        transposed = path[-2].endswith(_TRANSPOSED)
        value = value.transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1))
      name = '.'.join((*path[:-1], _NAMES[path[-1]]))
      found[name] = torch.from_numpy(np.ascontiguousarray(value))
  return found


def load(network: nn.Module, variables: dict[str, Any]) -> None:
  """Gives a network the parameters and statistics of the Flax one.

  Raises:
    RuntimeError: a name or a shape that the two do not share.
  """
  state = to_torch(variables)
  for name, value in network.state_dict().items():
    if name.endswith('num_batches_tracked'):
      state[name] = value
  network.load_state_dict(state)


def image(array: Any) -> torch.Tensor:
  """`[b, y, x, c]` as a tensor `[b, c, y, x]` on the host."""
  return torch.from_numpy(np.array(array).transpose(0, 3, 1, 2).copy())


def batch(arrays: Mapping[str, Any], place: Any) -> dict[str, torch.Tensor]:
  """What a training step needs of a batch, as tensors.

  Args:
    arrays: image, label and perhaps weight `[b, y, x, 1]`.
    place: a device, or a tensor whose device and dtype they take.

  Returns:
    The same names to tensors `[b, 1, y, x]`.
  """
  return {
    name: image(arrays[name]).to(place)
    for name in ('image', 'label', 'weight')
    if name in arrays
  }
