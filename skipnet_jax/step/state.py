"""The state of training, which holds only arrays."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from skipnet_jax import streams
from skipnet_jax.models import network
from skipnet_jax.step import flat
from skipnet_jax.step import optim


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes and a checkpoint holds.

  Attributes:
    step: number of finished steps, int32 scalar.
    params: parameters, float32, as vectors; `params.tree()` is Flax's tree.
    batch_stats: BatchNorm's running statistics, likewise; empty without it.
    averaged_stats: those of the averaged parameters, estimated by
      `step.make_estimate_step`; empty if the optimizer keeps none.
    opt_state: optax's state, averaged parameters included, on vectors.
    key: the run's random key, which never changes.
  """

  step: jax.Array
  params: flat.Flat
  batch_stats: flat.Flat
  averaged_stats: flat.Flat
  opt_state: Any
  key: jax.Array

  def variables(self, apart: bool = False) -> dict[str, Any]:
    """Flax's trees of parameters and running statistics, see `Flat.tree`."""
    return {
      'params': self.params.tree(apart),
      'batch_stats': self.batch_stats.tree(apart),
    }

  def averaged(self) -> 'TrainState':
    """The state with averaged parameters, if the optimizer keeps them.

    BatchNorm's statistics are then those of the averaged parameters.
    """
    params = optim.eval_params(self.params, self.opt_state)
    if not self.averaged_stats.vectors:
      return self.replace(params=params)
    return self.replace(params=params, batch_stats=self.averaged_stats)


def _draw(model: network.Network, key: jax.Array) -> Any:
  image = jnp.zeros(model.input_shape(model.init_size()), jnp.float32)
  return model.init(streams.key_at(key, 'init'), image, train=False)


def begin(
  optimizer: optax.GradientTransformation, variables: Any, key: jax.Array
) -> TrainState:
  """The state before the first step, of a network's variables."""
  # Optax has no type for other trees than its own.
  params: Any = flat.join(variables['params'])
  batch_stats = flat.join(variables.get('batch_stats', {}))
  opt_state = optimizer.init(params)
  averages = optim.eval_params(params, opt_state) is not params
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    # A copy, because a call that reuses the state's buffers takes each once.
    averaged_stats=(
      jax.tree.map(jnp.copy, batch_stats) if averages else flat.join({})
    ),
    opt_state=opt_state,
    key=key,
  )


_compiled_begin = jax.jit(begin, static_argnums=0)


# It runs once: on a CPU, optimising hundreds of random draws would take as long
# as compiling a training step.
@functools.lru_cache(16)
def _compiled_draw(model: network.Network) -> jax.stages.Wrapped:
  cpu = jax.default_backend() == 'cpu'
  options = {'xla_backend_optimization_level': 0} if cpu else None
  return jax.jit(functools.partial(_draw, model), compiler_options=options)


def draw(model: network.Network, seed: int) -> Any:
  """A network's variables before the first step, of `seed` alone."""
  # The axis does not matter here: pmapped networks share the compilation.
  return _compiled_draw(model.clone(axis_name=None))(jax.random.key(seed))


def create_state(
  model: network.Network, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """The state before the first step: a pure function of its arguments."""
  return begin_at(optimizer, draw(model, seed), seed)


def begin_at(
  optimizer: optax.GradientTransformation, variables: Any, seed: int
) -> TrainState:
  """`begin`, compiled, with the random key of a run's seed."""
  return _compiled_begin(optimizer, variables, jax.random.key(seed))


@functools.lru_cache(8)
def abstract_variables(model: network.Network) -> Any:
  """Shapes and dtypes of a network's variables; computes nothing."""
  # Traced once for this and for `create_state`.
  compiled = _compiled_draw(model.clone(axis_name=None))
  return jax.eval_shape(compiled, jax.random.key(0))


def abstract_state(
  model: network.Network, optimizer: optax.GradientTransformation
) -> TrainState:
  """Shapes and dtypes of `create_state` on one device; computes nothing."""
  # Of this process, as the first device of all may be that of another.
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(
      functools.partial(begin, optimizer),
      abstract_variables(model),
      jax.random.key(0),
    ),
  )


def parameter_count(params: Any) -> int:
  """Number of trainable parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
