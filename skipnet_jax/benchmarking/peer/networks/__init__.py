"""The PyTorch counterpart of every network in `models.MODELS`.

The counterpart of `models.unet.UNet` is `TorchUNet` in `unet.py` here. It takes
its sizes and switches from the Flax network; `dtype`, `axis_name` and `scan`
have no effect. Layers have the names of their Flax counterparts. Activations
are `[b, c, y, x]`. Only code that needs PyTorch imports this package.
"""

import importlib

from torch import nn

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import network


def counterpart(kind: type[network.Network]) -> type[nn.Module]:
  """The PyTorch class of a Flax network.

  Raises:
    InputError: the network has no counterpart.
  """
  if kind not in models.MODELS.values():
    raise errors.InputError(
      f'{kind.__name__} has no counterpart in PyTorch; these networks have '
      f'one: {", ".join(known.__name__ for known in models.MODELS.values())}.'
    )
  module = kind.__module__.rpartition('.')[-1]
  found = importlib.import_module(f'{__name__}.{module}')
  return getattr(found, f'Torch{kind.__name__.replace("_", "")}')


def build(model: network.Network) -> nn.Module:
  """Builds the counterpart of a Flax network, with random weights.

  Args:
    model: one of `models.MODELS`, unscanned.

  Returns:
    A module that maps `[b, slices, y, x]` (and labels `[b, 1, y, x]` if its
    attribute `adversarial` is True) to `layers.Outputs`. Its parameters have
    the names and shapes that `weights.to_torch` gives.

  Raises:
    InputError: the network has no counterpart.
  """
  return counterpart(type(model))(model)
