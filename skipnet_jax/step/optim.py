"""Optimizers and schedules of a config, from optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from skipnet_jax import errors

Params = Any
_OWN = jax.tree_util.DictKey('discriminator')


def is_kernel(path: tuple, _: jax.Array) -> bool:
  """Whether a leaf of the parameters is a kernel, which L2 applies to."""
  return path[-1].key == 'kernel'


def _kernel_mask(params: Params) -> Params:
  return jax.tree_util.tree_map_with_path(is_kernel, params)


def squares(tree: Params) -> Params:
  """The sum of squares of each leaf."""
  return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), tree)


def l2_penalty(squared: Params, coefficient: float) -> jax.Array:
  """The loss's L2 term: `coefficient * sum(w^2)` over the kernels, float32.

  Args:
    squared: `squares` of the parameters.
    coefficient: as the config's optim.l2.
  """
  leaves = jax.tree_util.tree_leaves_with_path(squared)
  kernels = (leaf for path, leaf in leaves if is_kernel(path, leaf))
  return coefficient * sum(kernels, jnp.zeros((), jnp.float32))


def make_schedule(
  config: ml_collections.ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
  """Learning rate by the number of updates, of the config's `optim` section.

  `epochs` is the length of the run, at whose end a cosine and a cooldown are
  zero.
  """

  def updates(epoch_count: int) -> int:
    return epoch_count * steps_per_epoch // config.accumulate

  rate = config.learning_rate
  if config.schedule == 'step':
    every = range(config.step_epochs, epochs + 1, config.step_epochs)
    bounds = config.step_at or every
    factors: dict[int, float] = {}
    for epoch in bounds:
      # With `accumulate`, several may fall on one update.
      at = updates(epoch)
      factors[at] = factors.get(at, 1.0) * config.step_factor
    schedule = optax.piecewise_constant_schedule(rate, factors)
  elif config.schedule == 'cosine':
    schedule = optax.cosine_decay_schedule(rate, max(1, updates(epochs)))
  else:
    schedule = optax.constant_schedule(rate)
  for field in ('warmup_epochs', 'cooldown_epochs'):
    if config[field] and not updates(config[field]):
      raise errors.InputError(
        f'optim.{field} is {config[field]}, but with optim.accumulate='
        f'{config.accumulate} and {steps_per_epoch} steps an epoch no update '
        'falls into it: give more epochs.'
      )
  if warmup := updates(config.warmup_epochs):
    schedule = _scaled(schedule, lambda n: (n + 1) / warmup)
  if cooldown := updates(config.cooldown_epochs):
    end = updates(epochs)
    schedule = _scaled(schedule, lambda n: jnp.maximum(0, end - n) / cooldown)
  return schedule


def _scaled(schedule: optax.Schedule, ramp: optax.Schedule) -> optax.Schedule:
  return lambda n: schedule(n) * jnp.minimum(1.0, ramp(n))


class EmaState(NamedTuple):
  """Averaged parameters; `eval_params` finds them by the field's name."""

  ema_count: jax.Array
  ema_params: Params


def _track_ema(decay: float) -> optax.GradientTransformation:
  def init(params):
    return EmaState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(updates, state, params=None):
    new = optax.apply_updates(params, updates)
    # A small decay at first, so that the initial weights are soon forgotten.
    rate = jnp.minimum(decay, (1 + state.ema_count) / (10 + state.ema_count))
    average = jax.tree.map(
      lambda e, p: e + (1 - rate) * (p - e), state.ema_params, new
    )
    return updates, EmaState(state.ema_count + 1, average)

  return optax.GradientTransformation(init, update)


def make_optimizer(
  config: ml_collections.ConfigDict,
  schedule: optax.Schedule,
  adversarial: bool = False,
) -> optax.GradientTransformation:
  """The optimizer of the config's `optim` section.

  L2 enters as its gradient `2 * l2 * w` before the optimizer, as if the penalty
  were part of the loss; with adamw it is decoupled weight decay. In an
  adversarial network, the parameters under `discriminator` have their own
  optimizer of the same kind, with `discriminator_learning_rate`.
  """
  eps, b1, b2 = config.eps, config.momentum, config.decay
  make = {
    'rmsprop': lambda rate: optax.rmsprop(
      rate, b2, eps, momentum=b1 or None, eps_in_sqrt=False
    ),
    'sgd': lambda rate: optax.sgd(rate, momentum=b1 or None),
    'adam': lambda rate: optax.adam(rate, b1, b2, eps),
    'adamw': lambda rate: optax.adamw(
      rate, b1, b2, eps, weight_decay=config.l2, mask=_kernel_mask
    ),
  }[config.name]
  chain: list[optax.GradientTransformation] = [make(schedule)]
  if adversarial:
    factor = config.discriminator_learning_rate / config.learning_rate
    own = make(lambda count: factor * schedule(count))
    chain = [
      optax.partition(
        {'own': own, 'others': make(schedule)},
        lambda params: jax.tree_util.tree_map_with_path(
          lambda path, _: 'own' if _OWN in path else 'others', params
        ),
      )
    ]
  if config.l2 and config.name != 'adamw':
    chain.insert(0, optax.add_decayed_weights(2 * config.l2, _kernel_mask))
  if config.ema:
    chain.append(_track_ema(config.ema))
  optimizer = optax.chain(*chain)
  if config.accumulate > 1:
    multi = optax.MultiSteps(optimizer, config.accumulate)
    return multi.gradient_transformation()
  return optimizer


def eval_params(params: Params, opt_state: Any) -> Params:
  """The averaged parameters if the optimizer keeps them, else `params`."""
  return optax.tree.get(opt_state, 'ema_params', params)
