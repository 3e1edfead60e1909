"""One pure training step and one pure evaluation step.

`(state, batch) -> (state, metrics)`. Metrics are sums with counts; `metrics`
makes means of them. `parallel` has the three ways to run a step. A third step
estimates BatchNorm's statistics for averaged parameters.
"""

from collections.abc import Callable, Sequence
import contextlib
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import optax

from skipnet_jax import streams
from skipnet_jax.models import accelerator_layers
from skipnet_jax.models import fused_block
from skipnet_jax.models import fused_norm as norm_lib
from skipnet_jax.models import network
from skipnet_jax.models import tpu_layers
from skipnet_jax.step import flat
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import telemetry

TrainState = state_lib.TrainState
Batch = losses.Batch
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

# An epoch's last batches, by which statistics are estimated, are at most these.
_ESTIMATE_BATCHES = 50


def _rngs(state: TrainState) -> dict[str, jax.Array]:
  """The random keys of a step."""
  return {'dropout': streams.key_at(state.key, 'dropout', state.step)}


def apply_training(
  model: network.Network,
  params: Any,
  batch_stats: Any,
  batch: Batch,
  rngs: dict[str, jax.Array] | None = None,
) -> tuple[losses.Outputs, Any]:
  """Outputs of a pass as in training, and the batch_stats after it."""
  label: dict[str, Any] = {'label': batch['label']} if model.adversarial else {}
  outputs, updated = model.apply(
    {'params': params, 'batch_stats': batch_stats},
    batch['image'],
    train=True,
    mutable=['batch_stats'],
    rngs=rngs,
    **label,
  )
  return outputs, updated.get('batch_stats', {})


def make_train_step(
  model: network.Network,
  optimizer: optax.GradientTransformation,
  loss: losses.Loss,
  *,
  l2: float = 0.0,
  record: Sequence[str] = (),
  axis_name: str | None = None,
  terms: losses.Terms = losses.NO_TERMS,
  form: str = 'plain',
) -> Step:
  """Makes the training step.

  A step whose loss or gradient is not finite changes nothing, so that the state
  stays at the step that failed.

  The arguments are attributes of `build.Training`, but `record` has the layers
  whose kernel updates are recorded.

  Returns:
    `(state, batch) -> (state, metrics)`. Metrics are float32 scalars to be
    summed: loss (without L2), l2, grad_norm, steps (divide these three by it);
    bce, correct, pixels; nonfinite (1 for a step that changed nothing);
    `part/<name>` of `losses.training_value` (divide by steps). With `record`
    also flow `[4, layers]`, see `telemetry.Kernels.step_flow`.
  """

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    variables = state.variables(apart=form == 'tpu')

    def objective(params):
      with contextlib.ExitStack() as forms:
        # What is entered first sees a call first.
        if form == 'pallas':
          forms.enter_context(fused_block.instead_of_blocks(state.params.find))
        if form == 'tpu':
          forms.enter_context(tpu_layers.instead_of_layers())
        if form != 'plain':
          forms.enter_context(norm_lib.instead_of_flax())
          forms.enter_context(accelerator_layers.instead_of_layers())
        outputs, batch_stats = apply_training(
          model, params, variables['batch_stats'], batch, _rngs(state)
        )
      sums = (
        losses.training_sums(loss, outputs, batch),
        losses.pixel_sums(outputs, batch),
      )
      if axis_name is not None:
        sums = lax.psum(sums, axis_name)
      value, parts = losses.training_value(loss, terms, sums[0], state.step)
      return value, (parts, sums[1], batch_stats)

    (value, (parts, pixels, batch_stats)), array_grads = jax.value_and_grad(
      objective, has_aux=True
    )(variables['params'])
    # Each array's gradient by a whole vector would be a whole vector.
    grads: Any = flat.join(array_grads, state.params.layout)
    if axis_name is not None:
      # Each device computes the whole loss, so the transposed psum has added
      # every gradient once per device: their mean is the gradient.
      grads = lax.pmean(grads, axis_name)
    # Optax has no type for other trees than its own.
    params: Any = state.params
    updates: Any
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    squared_g, squared_w = map(optim.squares, (grads, params))
    recorded = {}
    if record:
      kernels = telemetry.Kernels(record, params.layout)
      recorded['flow'], *known = kernels.step_flow(params, grads, updates)
      # The record has these two sums.
      for each, of_kernels in zip((squared_g, squared_w), known, strict=True):
        each.vectors['network']['kernel'] = of_kernels
    grad_norm = jnp.sqrt(sum(jax.tree.leaves(squared_g)))
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

    old = state.replace(key=None)
    new = old.replace(
      step=state.step + 1,
      params=optax.apply_updates(params, updates),
      batch_stats=flat.join(batch_stats, state.batch_stats.layout),
      opt_state=opt_state,
    )
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    metrics = {
      'loss': value,
      'l2': optim.l2_penalty(squared_w, l2),
      'grad_norm': grad_norm,
      'steps': jnp.ones(()),
      'nonfinite': (~finite).astype(jnp.float32),
      **pixels,
      **{f'part/{name}': part for name, part in parts.items()},
      **recorded,
    }
    return new.replace(key=state.key), metrics

  return step


def estimate_batches(steps_per_epoch: int) -> int:
  """From how many batches, the last of an epoch, statistics are estimated."""
  return min(steps_per_epoch, _ESTIMATE_BATCHES)


def _with_momentum(momentum: jax.Array) -> Any:
  """In this context, every BatchNorm has this momentum instead of its own."""

  def intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: Any
  ) -> Any:
    module = context.module
    if not isinstance(module, nn.BatchNorm):
      return next_fun(*args, **kwargs)
    own = module.momentum
    # Flax lets nobody assign to a module's fields.
    object.__setattr__(module, 'momentum', momentum)
    try:
      return next_fun(*args, **kwargs)
    finally:
      object.__setattr__(module, 'momentum', own)

  return nn.intercept_methods(intercept)


def make_estimate_step(model: network.Network, steps_per_epoch: int) -> Step:
  """Makes the step that estimates statistics for the averaged parameters.

  Stochastic weight averaging (Izmailov et al. 2018, section 3.2) needs it: the
  running statistics are those of the parameters of each step. After an epoch it
  is called with the epoch's last `estimate_batches` batches, and `state.step`
  as they were trained. `averaged_stats` are then the means of BatchNorm's
  statistics over these batches, with dropout as in training.

  Returns:
    `(state, batch) -> (state, metrics)`, without metrics. It changes
    `averaged_stats` and adds one to `step`.
  """
  first = steps_per_epoch - estimate_batches(steps_per_epoch)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    before = (state.step % steps_per_epoch - first).astype(jnp.float32)
    variables = state.averaged().variables()
    # Of n earlier batches, the mean has the weight n / (n + 1).
    with _with_momentum(before / (before + 1)):
      _, averaged_stats = apply_training(
        model, **variables, batch=batch, rngs=_rngs(state)
      )
    averaged = flat.join(averaged_stats, state.averaged_stats.layout)
    return state.replace(step=state.step + 1, averaged_stats=averaged), {}

  return step


def make_eval_step(
  model: network.Network,
  loss: losses.Loss,
  *,
  l2: float = 0.0,
  axis_name: str | None = None,
) -> Callable[[TrainState, Batch], Metrics]:
  """Makes the evaluation step: averaged parameters, no dropout.

  BatchNorm uses running statistics, or those of the averaged parameters. The
  arguments are those of `make_train_step`.

  Returns:
    `(state, batch) -> metrics`: sums over the pixels whose mask is 1, those of
    the loss as `loss/<name>`, and those of `telemetry.gate_sums`.
  """

  def step(state: TrainState, batch: Batch) -> Metrics:
    state = state.averaged()
    outputs, sown = model.apply(
      state.variables(), batch['image'], train=False, mutable=['gates']
    )
    sums = losses.pixel_sums(outputs, batch) | {
      f'loss/{k}': v for k, v in loss.sums(outputs, batch).items()
    }
    sums |= telemetry.gate_sums(sown.get('gates', {}), batch['mask'])
    if axis_name is not None:
      sums = lax.psum(sums, axis_name)
    penalty = optim.l2_penalty(optim.squares(state.params), l2)
    return sums | {'l2': penalty, 'batches': jnp.ones(())}

  return step
