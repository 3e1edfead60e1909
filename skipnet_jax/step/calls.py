"""A step of `build.Training` and its data pipeline as one compiled call."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.step import step as step_lib
from skipnet_jax.step import telemetry

Pipeline = pipeline_lib.Pipeline
Parallel = parallel_lib.Parallel

# Equal arguments give the same call, which JAX compiles once in a process. Only
# a few are cached: on a CPU, a program takes two memory mappings per kernel,
# some 10,000 for 140 convolutions, and Linux gives a process 65,530.
_cached = functools.lru_cache(2)


@_cached
def make_train_call(
  step: step_lib.Step, pipeline: Pipeline, parallel: Parallel, steps: int
) -> jax.stages.Wrapped:
  """Compiles `(state, data) -> (state, metrics)` for several steps.

  The pipeline makes each step's batch from the data set on the device. More
  than one step run in `lax.scan`, and their metrics are summed, except for
  `flow`, which is `[steps, 4, layers]` then.
  """

  def one(state, data):
    plan = parallel.divide(pipeline.plan(state.key, state.step))
    raw = pipeline.read(data, plan)
    batch = parallel.constrain(pipeline.train_batch(raw, plan['key']))
    return step(state, batch)

  def many(state, data):
    state, metrics = lax.scan(lambda s, _: one(s, data), state, length=steps)
    return state, {
      name: value if name == 'flow' else jnp.sum(value, axis=0)
      for name, value in metrics.items()
    }

  return parallel.compile(one if steps == 1 else many, donate=True)


@_cached
def make_step_call(
  step: step_lib.Step, parallel: Parallel
) -> jax.stages.Wrapped:
  """Compiles `(state, batch) -> (state, metrics)`, the batch on the devices."""
  return parallel.compile(
    lambda state, batch: step(state, parallel.constrain(batch)), donate=True
  )


@_cached
def make_host_train_call(
  step: step_lib.Step, pipeline: Pipeline, parallel: Parallel
) -> jax.stages.Wrapped:
  """Compiles `(state, (raw, keys)) -> (state, metrics)` for data on the host.

  `raw` are the windows of `Pipeline.read_host` and `keys` the data of the
  plan's random keys, both placed by `Parallel.place_batch`.
  """

  def one(state, data):
    raw, keys = data
    batch = pipeline.train_batch(raw, jax.random.wrap_key_data(keys))
    return step(state, parallel.constrain(batch))

  return parallel.compile(one, donate=True)


def make_eval_call(
  step: Callable, pipeline: Pipeline, parallel: Parallel
) -> jax.stages.Wrapped:
  """Compiles `(state, raw, seen) -> metrics` for one evaluation batch."""
  # An evaluation batch depends neither on the split nor on the batch size.
  any_split = dataclasses.replace(
    pipeline, train=(), valid=(), batch_size=1, epoch_steps=0
  )
  return _eval_call(step, any_split, parallel)


@_cached
def _eval_call(step, pipeline, parallel):
  def call(state, raw, seen):
    return step(state, parallel.constrain(pipeline.eval_batch(raw, seen)))

  return parallel.compile(call)


@_cached
def make_kernel_calls(
  names: tuple[str, ...], parallel: Parallel
) -> tuple[Callable[[Any], jax.Array], Callable[[Any, Any], jax.Array]]:
  """Compiles a copy of the kernels, and their change since then.

  They are `params -> vector` and `(vector, params) -> net change` of the layers
  `names`, see `telemetry.Kernels`.
  """
  return (
    parallel.compile(lambda params: jnp.copy(telemetry.vector(params))),
    parallel.compile(
      lambda before, params: telemetry.Kernels(names, params.layout).net_change(
        before, params
      )
    ),
  )
