"""Losses and pixel metrics as sums, so that devices and batches add up.

Every network gives `logits`, of the probability that a pixel is inside a cell:
labels are 1 there and 0 on membrane. A tanh output is `tanh(logits / 2)`, the
same probability in -1..1. Where a batch has a `weight` of its pixels, every
loss counts them by it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Outputs = dict[str, Array]
Batch = dict[str, Array]


class Loss(NamedTuple):
  """A loss that is a function of sums over pixels.

  Attributes:
    sums: `(outputs, batch)` to a dict of float32 scalars that add up over
      devices and batches.
    value: the loss of such (added up) sums, a float32 scalar.
  """

  sums: Callable[[Outputs, Batch], dict[str, Array]]
  value: Callable[[dict[str, Array]], Array]


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


def _mean(loss: Callable[[Array, Array], Array]) -> Loss:
  """The mean over the pixels that count of `loss(logits, label)`."""

  def sums(outputs: Outputs, batch: Batch) -> dict[str, Array]:
    weight = _weight(batch)
    values = loss(outputs['logits'], batch['label'])
    return {'sum': jnp.sum(values * weight), 'weight': jnp.sum(weight)}

  return Loss(sums, lambda sums: sums['sum'] / sums['weight'])


def _smooth_l1(logits: Array, label: Array) -> Array:
  return optax.huber_loss(jnp.tanh(logits / 2), 2 * label - 1, delta=1.0)


def _dice_sums(outputs: Outputs, batch: Batch) -> dict[str, Array]:
  # Membrane is the positive class.
  weight = _weight(batch)
  o, y = jax.nn.sigmoid(-outputs['logits']), 1 - batch['label']
  return {
    'overlap': jnp.sum(o * y * weight),
    'total': jnp.sum((o + y) * weight),
  }


# 'bce': mean binary cross-entropy over the pixels that count, in nats.
# 'dice': -(2 sum(o y) + 1) / (sum(o) + sum(y) + 1) over all pixels of the batch
# together, o and y of the membrane (Drozdzal et al. 2016, section 2.2).
# 'bce_dice': the sum of these two.
# 'smooth_l1': mean of 0.5 d^2 below |d| = 1 and |d| - 0.5 above, d the
# difference of the tanh output from -1 on membrane and 1 inside (Guo et al.
# 2019).
_BCE = _mean(optax.sigmoid_binary_cross_entropy)
_DICE = Loss(
  sums=_dice_sums,
  value=lambda sums: -(2 * sums['overlap'] + 1) / (sums['total'] + 1),
)
LOSSES = {
  'bce': _BCE,
  'dice': _DICE,
  'bce_dice': Loss(
    sums=lambda *given: _BCE.sums(*given) | _DICE.sums(*given),
    value=lambda sums: _BCE.value(sums) + _DICE.value(sums),
  ),
  'smooth_l1': _mean(_smooth_l1),
}
