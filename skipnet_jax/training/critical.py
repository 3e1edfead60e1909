"""The critical sharpness after an epoch, for its record."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import measure
from skipnet_jax.analysis import sharpness
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import prepare

# Side of the window, in pixels.
_SIDE = 256


class CriticalSharpness:
  """Measures it on one training window; compiles when it is made.

  The window is the centre of the first training slice, not augmented. The loss
  is that of the output, L2 included, with batch statistics and without dropout.

  Args:
    prepared: devices, data, network and steps.
    state: one copy of a state, for its shapes.
  """

  def __init__(self, prepared: prepare.Prepared, state: state_lib.TrainState):
    config, training = prepared.config, prepared.training
    self._accumulate = config.optim.accumulate
    self._schedule = training.schedule
    model = training.model.clone(axis_name=None)
    model = model.clone(dropout=0.0) if model.dropout else model
    batch = measure.centre_batch(config, prepared.data, _SIDE)
    loss = measure.objective(config.train.loss)

    def value(params: Any, state: state_lib.TrainState) -> jax.Array:
      at = state.replace(params=params).variables()
      return gradient_flow.loss_at(model, at, batch, loss, train=True)

    def direction(state: state_lib.TrainState) -> Any:
      # The optimizer adds L2 itself. Optax has no type for our vectors.
      params: Any = state.params
      gradient = jax.grad(value)(params, state)
      step, _ = training.optimizer.update(gradient, state.opt_state, params)
      return step

    def after(
      state: state_lib.TrainState, step: Any, factor: jax.Array
    ) -> jax.Array:
      moved = jax.tree.map(lambda x, u: x + factor * u, state.params, step)
      objective = sharpness.training_objective(
        lambda tree: value(moved, state), training.l2
      )
      return objective(moved.tree())

    placed = self._place(state)
    self._direction = jax.jit(direction).lower(placed).compile()
    step = jax.eval_shape(direction, placed)
    one = jnp.float32(1)
    self._after = jax.jit(after).lower(placed, step, one).compile()

  def _place(self, state: state_lib.TrainState) -> state_lib.TrainState:
    host = parallel_lib.to_host(state.replace(key=None))
    return jax.device_put(host, jax.local_devices()[0])

  def __call__(self, state: state_lib.TrainState) -> dict[str, float]:
    """The number for an epoch's record, of one copy of its last state.

    Returns:
      critical_sharpness, and its ratio to 2 / learning rate; {} where the
      learning rate is 0, or no step of any length raises the loss.
    """
    updates = int(state.step) // self._accumulate
    rate = float(np.asarray(self._schedule(updates)))
    placed = self._place(state)
    step = self._direction(placed)
    if not rate or not float(optax.tree.norm(step)):
      return {}
    factor = sharpness.critical_factor(
      lambda f: float(self._after(placed, step, jnp.float32(f)))
    )
    if factor is None:
      return {}
    return {
      'critical_sharpness': 2 / (rate * factor),
      'critical_sharpness_ratio': 1 / factor,
    }
