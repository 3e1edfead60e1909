"""Losses and pixel metrics as sums, which add up over devices and batches.

The network's `logits` are those of the probability that a pixel is inside a
cell: labels are 1 there and 0 on membrane. A tanh output is `tanh(logits / 2)`,
the same probability in -1..1. If a batch has a `weight` for each pixel, every
loss multiplies by it.
"""

from collections.abc import Callable, Mapping
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from skipnet_jax.models import network

Array = jax.Array
Outputs = network.Outputs
Batch = dict[str, Array]
# Sums, by name: arrays in a step, floats in a record.
Sums = Mapping[str, Any]


class Loss(NamedTuple):
  """A loss that is a function of sums over pixels.

  Attributes:
    sums: maps `(outputs, batch)` to a dict of float32 scalars, which add up
      over devices and batches.
    value: maps such sums to the loss, in their type.
  """

  sums: Callable[[Outputs, Batch], dict[str, Array]]
  value: Callable[[Sums], Any]


class Terms(NamedTuple):
  """Weights of the further terms of a training step's loss.

  Attributes:
    auxiliary: weight of every auxiliary output's loss, by the step.
    adversarial: weight of the generator's adversarial loss.
  """

  auxiliary: Callable[[Array], Array | float] = lambda step: 1.0
  adversarial: float = 0.0


NO_TERMS = Terms()


def make_terms(
  config: ml_collections.ConfigDict, steps_per_epoch: int
) -> Terms:
  """The weights given in a config's `train` section."""
  weights = jnp.asarray(config.auxiliary, jnp.float32)
  ends = jnp.asarray(config.auxiliary_at, jnp.int32) * steps_per_epoch
  return Terms(lambda step: weights[jnp.sum(step >= ends)], config.adversarial)


def training_sums(
  loss: Loss, outputs: Outputs, batch: Batch
) -> dict[str, dict[str, Array]]:
  """The sums for `training_value`, by output.

  The outputs are `logits`, `auxiliary/<name>`, and `judged` if the network has
  a discriminator.
  """
  sums = {'logits': loss.sums(outputs, batch)}
  for name, logits in outputs.get('auxiliary', {}).items():
    sums[f'auxiliary/{name}'] = loss.sums({'logits': logits}, batch)
  if 'judged' in outputs:
    judged = outputs['judged']
    # Binary cross-entropies: softplus(-x) for the target 1, softplus(x) for 0.
    sums['judged'] = {
      'real': jnp.sum(jax.nn.softplus(-judged['real'])),
      'fake': jnp.sum(jax.nn.softplus(judged['fake'])),
      'fooled': jnp.sum(jax.nn.softplus(-judged['fooled'])),
      'patches': jnp.asarray(judged['real'].size, jnp.float32),
    }
  return sums


def training_value(
  loss: Loss, terms: Terms, sums: dict[str, dict[str, Array]], step: Array
) -> tuple[Array, dict[str, Array]]:
  """The loss that a step minimises, and its parts for the records."""
  value = loss.value(sums['logits'])
  parts: dict[str, Array] = {}
  auxiliary = [v for k, v in sums.items() if k.startswith('auxiliary/')]
  if auxiliary:
    parts['auxiliary'] = functools.reduce(
      operator.add, map(loss.value, auxiliary)
    )
    value = value + terms.auxiliary(step) * parts['auxiliary']
  if 'judged' in sums:
    judged = dict(sums['judged'])
    patches = judged.pop('patches')
    parts |= {f'judged_{k}': v / patches for k, v in judged.items()}
    value = value + terms.adversarial * parts['judged_fooled']
    value = value + parts['judged_real'] + parts['judged_fake']
  return value, parts


def prediction(outputs: Outputs) -> Array:
  """Probability that a pixel is inside a cell, `[b, y, x, 1]` float32."""
  return jax.nn.sigmoid(outputs['logits'])


def pixel_sums(outputs: Outputs, batch: Batch) -> dict[str, Array]:
  """Sums of BCE, of correct pixels (threshold 0.5), and the pixel count."""
  logits, label, mask = outputs['logits'], batch['label'], batch['mask']
  bce = optax.sigmoid_binary_cross_entropy(logits, label)
  correct = ((logits > 0) == (label > 0.5)).astype(jnp.float32)
  return {
    'bce': jnp.sum(bce * mask),
    'correct': jnp.sum(correct * mask),
    'pixels': jnp.sum(mask),
  }


def _weight(batch: Batch) -> Array:
  return batch['mask'] * batch.get('weight', 1.0)


def _ratio(sums: Sums) -> Any:
  return sums['sum'] / sums['weight']


def _mean(loss: Callable[[Array, Array], Array]) -> Loss:
  """The weighted mean of `loss(logits, label)` over the pixels."""

  def sums(outputs: Outputs, batch: Batch) -> dict[str, Array]:
    weight = _weight(batch)
    values = loss(outputs['logits'], batch['label'])
    return {'sum': jnp.sum(values * weight), 'weight': jnp.sum(weight)}

  return Loss(sums, _ratio)


def _smooth_l1(logits: Array, label: Array) -> Array:
  return optax.huber_loss(jnp.tanh(logits / 2), 2 * label - 1, delta=1.0)


def _dice_sums(outputs: Outputs, batch: Batch) -> dict[str, Array]:
  weight = _weight(batch)
  o, y = jax.nn.sigmoid(-outputs['logits']), 1 - batch['label']
  return {
    'overlap': jnp.sum(o * y * weight),
    'total': jnp.sum((o + y) * weight),
  }


def _dice(sums: Sums) -> Any:
  return -(2 * sums['overlap'] + 1) / (sums['total'] + 1)


# 'bce': weighted mean of the binary cross-entropy over the pixels, in nats.
# 'dice': -(2 sum(o y) + 1) / (sum(o) + sum(y) + 1) over all pixels of the
# batch, where o and y are of the membrane (Drozdzal et al. 2016, section 2.2).
# 'bce_dice': the sum of these two.
# 'smooth_l1': mean of 0.5 d^2 below |d| = 1 and |d| - 0.5 above, where d is the
# difference of the tanh output from -1 on membrane and 1 inside (Guo et al.
# 2019).
_BCE = _mean(optax.sigmoid_binary_cross_entropy)
_DICE = Loss(_dice_sums, _dice)
LOSSES = {
  'bce': _BCE,
  'dice': _DICE,
  'bce_dice': Loss(
    sums=lambda *given: _BCE.sums(*given) | _DICE.sums(*given),
    value=lambda sums: _ratio(sums) + _dice(sums),
  ),
  'smooth_l1': _mean(_smooth_l1),
}
