"""Compares two implementations of a network: PyTorch's, or another device's.

In float32, rounding flips ReLUs whose input is near zero. In 140 convolutions
this alone changed the gradient by 3e-6 to 3e-3 of its norm, relative to
float64. With BIAS_SHIFT added to the bias of every BatchNorm, few inputs are
near zero, and the same networks differ by 1e-5.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import errors
from skipnet_jax.models import network
from skipnet_jax.step import losses
from skipnet_jax.step import step as step_lib

# Of the norm, in float32, with shifted biases.
TOLERANCE = 1e-4
# Of the gradient without BatchNorm, where rounding flips ReLUs. The outputs are
# continuous there and stay within TOLERANCE.
FLIPPED_TOLERANCE = 1e-2
BIAS_SHIFT = 4.0

HostBatch = Mapping[str, np.ndarray | jax.Array]


def shift_biases(variables: dict[str, Any]) -> dict[str, Any]:
  """Adds BIAS_SHIFT to the bias of every BatchNorm of a Flax network."""
  flat = flax.traverse_util.flatten_dict(variables, keep_empty_nodes=True)
  for path in flat:
    # Only a BatchNorm has a scale.
    if path[-1] == 'bias' and (*path[:-1], 'scale') in flat:
      flat[path] = flat[path] + BIAS_SHIFT
  return flax.traverse_util.unflatten_dict(flat)


def tolerance(part: str, variables: dict[str, Any]) -> float:
  """The largest relative difference in float32, with shifted biases.

  `part` is a key of what `point` returns.
  """
  flipped = part == 'gradient' and not variables.get('batch_stats')
  return FLIPPED_TOLERANCE if flipped else TOLERANCE


def norm(tree: Any) -> float:
  """L2 norm of all arrays of a tree, in float64."""
  leaves = (np.asarray(x, np.float64) for x in jax.tree.leaves(tree))
  return math.hypot(*map(np.linalg.norm, leaves))


def distance(a: Any, b: Any, least: float = 0.0) -> float:
  """Norm of a - b over the norm of b, or over `least` if that is larger.

  Both are trees of the same arrays, by two implementations.
  """
  apart = norm(jax.tree.map(lambda x, y: np.asarray(x, np.float64) - y, a, b))
  size = max(norm(b), least)
  if not size:
    return math.inf if apart else 0.0
  return apart / size


def check(
  distances: Mapping[str, float], tolerances: Mapping[str, float], message: str
) -> None:
  """Compares each distance with its tolerance.

  Raises:
    RunError: `message` and the first distance that is too large, or NaN.
  """
  for name, value in distances.items():
    if not value <= tolerances[name]:
      raise errors.RunError(
        f'{message}: {name} differs by {value:.1e} of its norm, and '
        f'{tolerances[name]:.1e} is allowed.'
      )


@functools.lru_cache(2)
def _compiled(
  model: network.Network, loss: str, terms: losses.Terms
) -> Callable[..., Any]:
  """One forward and backward pass, compiled; cached by its arguments."""
  chosen = losses.LOSSES[loss]

  @jax.jit
  def run(params, batch_stats, batch):
    def objective(params):
      outputs, after = step_lib.apply_training(
        model, params, batch_stats, batch
      )
      whole = batch | {'mask': jnp.ones_like(batch['label'])}
      sums = losses.training_sums(chosen, outputs, whole)
      step = jnp.zeros((), jnp.int32)
      value, _ = losses.training_value(chosen, terms, sums, step)
      return value, (outputs['logits'], after)

    return jax.value_and_grad(objective, has_aux=True)(params)

  return run


def point(
  model: network.Network,
  variables: dict[str, Any],
  batch: HostBatch,
  dtype: str,
  device: Any = None,
  loss: str = 'bce',
  terms: losses.Terms = losses.NO_TERMS,
) -> dict[str, Any]:
  """Runs a network forward and backward once, in full precision.

  Args:
    model: its dropout and dtype are set here.
    variables: params and batch_stats.
    batch: image `[b, y, x, slices]`, label and perhaps weight `[b, y, x, 1]`,
      numpy.
    dtype: 'float32' or 'float64', of everything.
    device: None for JAX's default device.
    loss: a key of `losses.LOSSES`.
    terms: weights of the losses of other outputs, at step 0.

  Returns:
    On the host: logits `[b, y, x, 1]`, loss, gradient (a tree like params),
    statistics (batch_stats after the step).
  """
  fields: dict[str, Any] = {'dropout': 0.0} if model.dropout else {}
  model = model.clone(**fields, dtype=dtype)
  batch = {k: batch[k] for k in ('image', 'label', 'weight') if k in batch}
  run = _compiled(model, loss, terms)

  # Flax's BatchNorm mixes dtypes for any compute dtype but float32.
  with (
    jax.enable_x64(dtype == 'float64'),
    jax.numpy_dtype_promotion('standard'),
    jax.default_matmul_precision('highest'),
  ):
    given = jax.tree.map(
      lambda x: np.asarray(x).astype(dtype),
      (
        variables['params'],
        variables.get('batch_stats', {}),
        batch,
      ),
    )
    placed = jax.device_put(given, device)
    (value, (logits, stats)), grads = jax.device_get(run(*placed))
  return {
    'logits': logits,
    'loss': value,
    'gradient': grads,
    'statistics': stats,
  }
