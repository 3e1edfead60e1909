"""Checks that a Flax and a PyTorch network compute the same function.

Both run one training step without dropout. Compared are logits, loss, gradient
and the running statistics after the step, each by `agreement.distance`. In
float64 the gradient of every layer must also agree, with kernel and bias (or
scale and bias) as one: a bias before a BatchNorm has no gradient but rounding.

In float32 both networks get the bias shift of `agreement`.
"""

import copy
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

EXACT = 1e-9  # Tolerance in float64; every system was within 2e-12.
# A layer's difference is divided by at least this share of the whole gradient.
SMALLEST_SHARE = 1e-6
# Side of the compared crop: XLA has no fast float64 convolution on a CPU.
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
  """Runs the Flax network: `agreement.point` under PyTorch's names."""
  point = agreement.point(
    model, variables, batch, dtype, loss=loss, terms=terms
  )
  gradient = torch_weights.to_torch({'params': point['gradient']})
  statistics = torch_weights.to_torch({'batch_stats': point['statistics']})
  return {
    'logits': _arrays({'': torch_weights.image(point['logits'])}),
    'loss': {'': np.asarray(point['loss'], np.float64)},
    'gradient': _arrays(gradient),
    'statistics': _arrays(statistics),
  }


def _shift_biases(network: torch.nn.Module) -> torch.nn.Module:
  network = copy.deepcopy(network)
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.bias.data += agreement.BIAS_SHIFT
  return network


def theirs(
  network: torch.nn.Module,
  batch: agreement.HostBatch,
  dtype: str,
  loss: str = 'bce',
  terms: losses.Terms = losses.NO_TERMS,
) -> Point:
  """Runs a copy of the PyTorch network; arguments as in `agreement.point`."""
  network = copy.deepcopy(network).to(getattr(torch, dtype)).train()
  tensors = torch_weights.batch(batch, next(network.parameters()))
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
  unbiased = getattr(network, 'unbiased_variance', False)
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
    if kind == 'running_var' and not unbiased:
      # PyTorch averages the unbiased variance, most Flax networks the biased
      # one.
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


def _distances(a: Point, b: Point) -> dict[str, float]:
  return {
    part: agreement.distance({name: a[part][name] for name in arrays}, arrays)
    for part, arrays in b.items()
  }


def _by_layer(a: Point, b: Point) -> dict[str, float]:
  """`agreement.distance` of each layer's gradient."""
  ours, theirs = a['gradient'], b['gradient']
  least = SMALLEST_SHARE * agreement.norm(theirs)
  layers: dict[str, list[str]] = {}
  for name in theirs:
    layers.setdefault(name.rpartition('.')[0], []).append(name)
  return {
    layer: agreement.distance(
      [ours[name] for name in names], [theirs[name] for name in names], least
    )
    for layer, names in layers.items()
  }


def _crop(batch: agreement.HostBatch) -> dict[str, np.ndarray]:
  """The centre of the first example."""
  y, x = (max(0, (side - SIDE) // 2) for side in batch['image'].shape[1:3])
  return {
    name: np.asarray(batch[name])[:1, y : y + SIDE, x : x + SIDE]
    for name in batch.keys() & {'image', 'label', 'weight'}
  }


def check(
  model: network.Network,
  variables: dict[str, Any],
  network: torch.nn.Module,
  batch: agreement.HostBatch,
  loss: str = 'bce',
  terms: losses.Terms = losses.NO_TERMS,
) -> dict[str, Any]:
  """Compares both networks on the centre of the first example.

  Args:
    model: an unscanned network of `models.MODELS`.
    variables: its params and batch_stats, float32.
    network: the PyTorch network with the same weights.
    batch: image, label and perhaps weight `[b, y, x, 1]`.
    loss: a key of `losses.LOSSES`.
    terms: weights of the losses of other outputs.

  Returns:
    Relative differences. `float64`: logits, loss, gradient, statistics;
    worst_layer, the largest of one layer's gradient, and worst, that layer's
    name. `float32`: the first four, with shifted biases. `image_size` `[y, x]`.

  Raises:
    RunError: a difference is above its tolerance, or a parameter is missing.
  """
  unshared = torch_weights.to_torch(variables).keys() ^ {
    name
    for name in network.state_dict()
    if not name.endswith('num_batches_tracked')
  }
  if unshared:
    raise errors.RunError(
      'The PyTorch network has other parameters: only one side has '
      f'{", ".join(sorted(unshared))}.'
    )
  batch = _crop(batch)
  our = ours(model, variables, batch, 'float64', loss, terms)
  their = theirs(network, batch, 'float64', loss, terms)
  exact, layers = _distances(our, their), _by_layer(our, their)
  worst = max(layers, key=layers.__getitem__)
  shifted = agreement.shift_biases(variables)
  close = _distances(
    ours(model, shifted, batch, 'float32', loss, terms),
    theirs(_shift_biases(network), batch, 'float32', loss, terms),
  )
  distances = {f'{part} in float64': exact[part] for part in exact}
  distances[f'gradient of {worst} in float64'] = layers[worst]
  tolerances = dict.fromkeys(distances, EXACT)
  for part in close:
    distances[f'{part} in float32'] = close[part]
    tolerances[f'{part} in float32'] = agreement.tolerance(part, variables)
  agreement.check(
    distances,
    tolerances,
    'The PyTorch network does not agree with the Flax network, so a race would '
    'compare different work',
  )
  return {
    'image_size': list(batch['image'].shape[1:3]),
    'float64': exact | {'worst_layer': layers[worst], 'worst': worst},
    'float32': close,
  }
