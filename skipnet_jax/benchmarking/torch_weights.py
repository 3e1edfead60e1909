"""Flax arrays as PyTorch's, under its names and in its layout."""

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


def to_torch(variables: dict[str, Any]) -> dict[str, torch.Tensor]:
  """Flax arrays under PyTorch's names and in its layout.

  Args:
    variables: collections of an unscanned `FCResNet`, params and batch_stats,
      or the gradient of one.

  Returns:
    Name as in `state_dict` to a tensor on the host, of the same dtype.
  """
  found = {}
  for tree in variables.values():
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
      value = np.array(leaf)
      if path[-1] == 'kernel':
        value = value.transpose(3, 2, 0, 1)
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
