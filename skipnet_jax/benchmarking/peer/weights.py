"""Converts Flax variables and batches to PyTorch's names and layout."""

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
# The names of transposed convolutions end in it, in every network.
_TRANSPOSED = '_up'


def to_torch(variables: dict[str, Any]) -> dict[str, torch.Tensor]:
  """Converts Flax variables to a PyTorch state dict.

  Args:
    variables: collections of an unscanned network, such as params, or a tree
      with the same paths.

  Returns:
    Name as in `state_dict` to a tensor on the host, of the same dtype.
  """
  state = {}
  for tree in variables.values():
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
      value = np.array(leaf)
      if path[-1] == 'kernel':
        transposed = path[-2].endswith(_TRANSPOSED)
        value = value.transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1))
      name = '.'.join((*path[:-1], _NAMES[path[-1]]))
      state[name] = torch.from_numpy(np.ascontiguousarray(value))
  return state


def load(network: nn.Module, variables: dict[str, Any]) -> None:
  """Copies the Flax network's parameters and statistics into a network.

  Raises:
    RuntimeError: a name or a shape differs.
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
  """Converts a batch to tensors `[b, c, y, x]`.

  Args:
    arrays: image, label and perhaps weight `[b, y, x, c]`; the rest is ignored.
    place: a device, or a tensor whose device and dtype the result gets.
  """
  return {
    name: image(arrays[name]).to(place)
    for name in ('image', 'label', 'weight')
    if name in arrays
  }
