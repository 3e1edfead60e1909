"""Finds the layer that causes a loss that is not finite."""

from typing import NoReturn

import jax

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax import streams
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import layer_table
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import prepare


def fail(prepared: prepare.Prepared, state: state_lib.TrainState) -> NoReturn:
  """Raises RunError that names the step and the layer.

  Args:
    prepared: the parts of the run.
    state: before the step, as replicated.
  """
  state = prepared.parallel.unreplicate(state)
  host = parallel_lib.to_host(state.replace(key=None))
  step = int(host.step)
  key = jax.random.key(prepared.config.seed)
  plan = jax.jit(prepared.pipeline.plan)(key, step)
  raw = prepared.pipeline.read_host(prepared.arrays, plan)
  batch = jax.jit(prepared.pipeline.train_batch)(raw, plan['key'])
  layer = layer_table.first_nonfinite(
    models.build_model(prepared.config.model).unrolled(),
    fc_resnet.unroll(host.variables()),
    batch['image'],
    {'dropout': streams.key_at(key, 'dropout', step)},
  )
  cause = (
    f'the first layer whose output is not finite is {layer}'
    if layer
    else 'all layers have finite outputs, so the gradient is not finite'
  )
  raise errors.RunError(
    f'The loss or its gradient is not finite at step {step}: {cause}. Lower '
    'optim.learning_rate; the earlier checkpoints are kept.'
  )
