"""Training steps in the forms for GPUs and TPUs: those of the form for CPUs."""

import dataclasses
import functools

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
import systems

from skipnet_jax import models
from skipnet_jax.step import build

# Of the other systems, the form for TPUs is that for GPUs.
SPLIT = ('fc_resnet', 'polymtl')
# Three layers compile for half a minute.
SMALLER = {'fcn_lstm': {'lstm_layers': 1}}


@functools.cache
def two_steps(name, platform):
  """The state of an experiment's small network after two steps, in float64.

  Returns:
    The change of each parameter, the rest of the state, and the metrics of the
    second step.
  """
  config = conftest.experiment(systems.EXPERIMENTS[name]).get_config('smoke')
  fields = systems.SYSTEMS[name].small | SMALLER.get(name, {})
  config.model = models.model_config(name, **fields)
  window = models.build_model(config.model).init_size()
  training = build.build(config, window, 2, platform=platform)
  # No config may ask for it.
  model = training.model.clone(dtype='float64')
  training = dataclasses.replace(training, model=model)
  variables = small_networks.draw(model, model.input_shape(window))
  state = before = jax.tree.map(
    lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
    training.begin(variables, 0),
  )
  batch = small_networks.make_batch(window, np.float64, slices=model.slices)
  step = jax.jit(training.train_step)
  for _ in range(2):
    state, metrics = step(state, batch)
  change = jax.tree.map(jnp.subtract, state.params, before.params)
  return change, state.replace(key=None), metrics


def assert_equal(found, expected):
  for a, b in zip(
    *map(jax.tree_util.tree_leaves_with_path, (found, expected)), strict=True
  ):
    scale = max(1e-12, float(np.abs(b[1]).max()))
    error = float(np.abs(a[1] - b[1]).max()) / scale
    # Adam divides a gradient that is zero but for rounding by 1e-8.
    assert error < 1e-6, (jax.tree_util.keystr(a[0]), error, scale)


@pytest.mark.parametrize(
  ('name', 'platform'),
  [
    *((name, 'gpu') for name in systems.SYSTEMS),
    *((name, 'tpu') for name in SPLIT),
  ],
)
def test_updates_and_record_are_those_of_the_form_for_cpus(name, platform):
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    found, expected = (two_steps(name, p) for p in (platform, 'cpu'))
  assert_equal(found, expected)
