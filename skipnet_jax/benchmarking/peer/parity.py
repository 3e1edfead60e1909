"""Whether the Flax and the PyTorch network are one function.

Compared without dropout and with batch statistics, each as the norm of the
difference over the norm: logits, loss, gradient, and the running statistics
after the step. In float64 the gradient of every layer must agree (kernel with
bias, scale with bias: a bias before a BatchNorm has no gradient but rounding).

In float32 both have raised biases, see `agreement`. Without BatchNorm there are
none to raise: what is strict there is float64, and the outputs in float32.
"""

from collections.abc import Iterable
import copy
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from skipnet_jax import errors
from skipnet_jax.benchmarking.peer import losses as torch_losses
from skipnet_jax.benchmarking.peer import weights as torch_weights
from skipnet_jax.models import network
from skipnet_jax.step import agreement
from skipnet_jax.step import losses

EXACT = 1e-9  # In float64; every system was within 2e-12.
# Of the whole gradient: a layer's is not compared with less.
LEAST = 1e-6
# The centre of one example: XLA has no fast float64 convolution on a CPU.
SIDE = 128

# logits, loss, gradient and statistics by name, as float64 numpy arrays.
Point = dict[str, dict[str, np.ndarray]]


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
  # Copies: PyTorch changes its statistics in place.
  return {
    name: tensor.detach().cpu().numpy().astype(np.float64)
    for name, tensor in tensors.items()
  }


def ours(
  model: network.Network,
  variables: dict[str, Any],
  batch: agreement.HostBatch,
  dtype: str,
  loss: str = 'bce',
  terms: losses.Terms = losses.NO_TERMS,
) -> Point:
  """What the Flax network makes of a batch.

  Args:
    model: an unscanned network; its dropout and dtype are set here.
    variables: params and batch_stats.
    batch: image, label and perhaps weight `[b, y, x, 1]`, numpy.
    dtype: 'float32' or 'float64', of everything.
    loss: a key of `losses.LOSSES`.
    terms: what other outputs add to it.
  """
  found = agreement.point(
    model, variables, batch, dtype, loss=loss, terms=terms
  )
  gradient, stats = found['gradient'], found['statistics']
  logits = np.asarray(found['logits'], np.float64)
  return {
    'logits': {'': logits.transpose(0, 3, 1, 2)},
    'loss': {'': np.asarray(found['loss'], np.float64)},
    'gradient': _arrays(torch_weights.to_torch({'params': gradient})),
    'statistics': _arrays(torch_weights.to_torch({'batch_stats': stats})),
  }


def _raised_network(network: torch.nn.Module) -> torch.nn.Module:
  network = copy.deepcopy(network)
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.bias.data += agreement.RAISED
  return network


def theirs(
  network: torch.nn.Module,
  batch: agreement.HostBatch,
  dtype: str,
  loss: str = 'bce',
  terms: losses.Terms = losses.NO_TERMS,
) -> Point:
  """What the PyTorch network makes of it; the network is left as it is."""
  network = copy.deepcopy(network).to(getattr(torch, dtype)).train()
  place = next(network.parameters())
  tensors = torch_weights.batch(batch, place)
  image = tensors.pop('image').to(memory_format=torch.channels_last)
  count = {}
  for name, module in network.named_modules():
    if isinstance(module, torch.nn.Dropout):
      module.p = 0.0
    if isinstance(module, torch.nn.BatchNorm2d):
      module.register_forward_hook(
        lambda _, inputs, output, name=name: count.update(
          {name: output.numel() // output.shape[1]}
        )
      )
  before = _arrays(dict(network.named_buffers()))
  weights = float(terms.auxiliary(jnp.zeros((), int))), terms.adversarial
  outputs = torch_losses.apply(network, image, tensors['label'])
  value = torch_losses.objective(loss, weights, outputs, **tensors)
  value.backward()
  gradient = {
    name: parameter.grad
    for name, parameter in network.named_parameters()
    if parameter.grad is not None
  }
  statistics = {}
  for name, after in _arrays(dict(network.named_buffers())).items():
    layer, _, kind = name.rpartition('.')
    if kind == 'running_var':
      # PyTorch averages the unbiased variance, Flax the biased one.
      kept = 0.9 * before[name]
      after = kept + (after - kept) * (count[layer] - 1) / count[layer]
    if kind in ('running_mean', 'running_var'):
      statistics[name] = after
  return {
    'logits': _arrays({'': outputs['logits']}),
    'loss': _arrays({'': value}),
    'gradient': _arrays(gradient),
    'statistics': statistics,
  }


def _norm(arrays: Iterable[np.ndarray]) -> float:
  return float(np.sqrt(sum(np.sum(np.square(array)) for array in arrays)))


def _distance(
  a: dict[str, np.ndarray],
  b: dict[str, np.ndarray],
  names: Iterable[str],
  least: float = 0.0,
) -> float:
  """Norm of a - b over that of b, at least `least`, of all named arrays."""
  names = list(names)
  apart = _norm(a[name] - b[name] for name in names)
  size = max(_norm(b[name] for name in names), least)
  if not size:
    return math.inf if apart else 0.0
  return apart / size


def _distances(a: Point, b: Point) -> dict[str, float]:
  return {part: _distance(a[part], b[part], b[part]) for part in b}


def _by_layer(a: Point, b: Point) -> dict[str, float]:
  least = LEAST * _norm(b['gradient'].values())
  layers: dict[str, list[str]] = {}
  for name in b['gradient']:
    layers.setdefault(name.rpartition('.')[0], []).append(name)
  return {
    layer: _distance(a['gradient'], b['gradient'], names, least)
    for layer, names in layers.items()
  }


def _centre(batch: agreement.HostBatch) -> dict[str, np.ndarray]:
  found = {}
  for name in batch.keys() & {'image', 'label', 'weight'}:
    array = np.asarray(batch[name])
    y, x = (max(0, (side - SIDE) // 2) for side in array.shape[1:3])
    found[name] = array[:1, y : y + SIDE, x : x + SIDE]
  return found


def check(
  model: network.Network,
  variables: dict[str, Any],
  network: torch.nn.Module,
  batch: agreement.HostBatch,
  loss: str = 'bce',
  terms: losses.Terms = losses.NO_TERMS,
) -> dict[str, Any]:
  """Compares both on the centre of the first example.

  Args:
    model: an unscanned network of `models.MODELS`.
    variables: its params and batch_stats, float32.
    network: what they were loaded into.
    batch: image, label and perhaps weight `[b, y, x, 1]`.
    loss: a key of `losses.LOSSES`.
    terms: what other outputs add to it.

  Returns:
    The relative differences: `float64` (logits, loss, gradient, statistics;
    worst_layer, of one layer's gradient, and worst, its name), `float32` (the
    first four, at raised biases); `image_size` `[y, x]`.

  Raises:
    RunError: they do not agree.
  """
  unshared = torch_weights.to_torch(variables).keys() ^ {
    name
    for name in network.state_dict()
    if not name.endswith('num_batches_tracked')
  }
  if unshared:
    raise errors.RunError(
      'The PyTorch network is another one: only one side has '
      f'{", ".join(sorted(unshared))}.'
    )
  batch = _centre(batch)
  our = ours(model, variables, batch, 'float64', loss, terms)
  their = theirs(network, batch, 'float64', loss, terms)
  exact, layers = _distances(our, their), _by_layer(our, their)
  layer = max(layers, key=layers.__getitem__)
  close = _distances(
    ours(
      model,
      agreement.raise_biases(variables),
      batch,
      'float32',
      loss,
      terms,
    ),
    theirs(_raised_network(network), batch, 'float32', loss, terms),
  )
  judged = [(f'{part} in float64', exact[part], EXACT) for part in exact]
  judged.append((f'gradient of {layer} in float64', layers[layer], EXACT))
  judged += [
    (f'{part} in float32', close[part], agreement.limit(part, variables))
    for part in close
  ]
  for what, found, limit in judged:
    # Not `found > limit`: NaN is no agreement.
    if not found <= limit:
      raise errors.RunError(
        f'The PyTorch network does not agree: {what} differs by {found:.1e} of '
        f'its norm, and {limit:.1e} is allowed. A race would compare different '
        'work.'
      )
  return {
    'image_size': list(batch['image'].shape[1:3]),
    'float64': exact | {'worst_layer': layers[layer], 'worst': layer},
    'float32': close,
  }
