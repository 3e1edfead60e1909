"""What a network makes of a batch, for two programs of it to be compared.

In float32, rounding turns over single ReLUs whose input is nearly zero. In 140
convolutions that alone moved the gradient by up to 3e-3 of its norm from that
in float64, and at other times by 3e-6. With the bias of every BatchNorm raised
by RAISED, few inputs are near zero: there the same networks differ by 1e-5.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import network
from skipnet_jax.step import losses
from skipnet_jax.step import step as step_lib

CLOSE = 1e-4  # Of the norm, in float32, with raised biases.
# Of the gradient's, where there is no BatchNorm: nothing keeps ReLUs from
# turning over. The outputs, which are continuous there, stay CLOSE.
TURNED = 1e-2
RAISED = 4.0

# A batch by name, of NumPy's or JAX's arrays.
HostBatch = Mapping[str, np.ndarray | jax.Array]


def raise_biases(variables: dict[str, Any]) -> dict[str, Any]:
  """Variables of a Flax network with the BatchNorms' biases raised."""
  flat = flax.traverse_util.flatten_dict(variables, keep_empty_nodes=True)
  for path in flat:
    # Only a BatchNorm has a scale.
    if path[-1] == 'bias' and (*path[:-1], 'scale') in flat:
      flat[path] = flat[path] + RAISED
  return flax.traverse_util.unflatten_dict(flat)


def limit(part: str, variables: dict[str, Any]) -> float:
  """How far two programs may be apart in float32, at raised biases.

  Args:
    part: of what `point` returns.
    variables: params and batch_stats.
  """
  turned = part == 'gradient' and not variables.get('batch_stats')
  return TURNED if turned else CLOSE


@functools.lru_cache(2)
def _compiled(
  model: network.Network, loss: str, terms: losses.Terms
) -> Callable[..., Any]:
  """Compiles a pass forward and backward; the same for equal arguments."""
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
    device: where; None: JAX's default.
    loss: a key of `losses.LOSSES`.
    terms: what other outputs add to it, at step 0.

  Returns:
    On the host: logits `[b, y, x, 1]`, loss, gradient (as params), statistics
    (as batch_stats, after the step).
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
