"""Builds all parts of a config's training in one place.

Whatever trains, times, compiles ahead of time, races or analyses a config takes
its step from here, so that all of them use the same step.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
from typing import Any

import jax
import ml_collections
import optax

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import layer_table
from skipnet_jax.models import network
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib

ConfigDict = ml_collections.ConfigDict
Table = tuple[layer_table.Layer, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
  """The parts of one config's training; each is made on first use.

  Attributes:
    model: the network, with the mapped axis if there is one.
    optimizer: applies L2 and the schedule itself.
    schedule: learning rate by the number of updates.
    loss: sums over pixels, and their value.
    terms: weights of the losses of auxiliary outputs and a discriminator.
    window: sides y and x of an example, in pixels.
    steps_per_epoch: number of batches in an epoch.
    l2: coefficient of the reported L2 term.
    axis_name: mapped axis of a pmapped call, or None.
    record: whether a training step records the update of each kernel.
    form: of the training step: 'plain'; 'gpu', with `models.fused_norm` and
      `models.accelerator_layers`; 'tpu', also with `models.tpu_layers`; or
      'pallas', for GPUs, also with `models.fused_block`.
  """

  model: network.Network
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  loss: losses.Loss
  terms: losses.Terms
  window: tuple[int, int]
  steps_per_epoch: int
  l2: float
  axis_name: str | None
  record: bool
  form: str

  @functools.cached_property
  def table(self) -> Table:
    """The layers that a prediction calls, in order, for one image."""
    return _layers(self.model.unrolled().clone(axis_name=None), self.window)

  @functools.cached_property
  def discriminator(self) -> Table:
    """The layers of a discriminator, called twice, for one image."""
    if not self.model.adversarial:
      return ()
    rows = _layers(self.model.clone(axis_name=None), self.window, label=True)
    predicts = {row.name for row in self.table}
    return tuple(row for row in rows if row.name not in predicts)

  @functools.cached_property
  def kernels(self) -> tuple[str, ...]:
    """Names of the layers with a kernel, in call order."""
    return tuple(row.name for row in self.table if row.flops)

  @functools.cached_property
  def parameters(self) -> int:
    """Number of trainable parameters, including a discriminator's."""
    variables = state_lib.abstract_variables(self.model)
    return state_lib.parameter_count(variables['params'])

  @functools.cached_property
  def abstract_state(self) -> state_lib.TrainState:
    """Shapes and dtypes of the state on one device; computes nothing."""
    return state_lib.abstract_state(self.model, self.optimizer)

  @functools.cached_property
  def train_step(self) -> step_lib.Step:
    """`(state, batch) -> (state, metrics)`, see `step.make_train_step`."""
    return step_lib.make_train_step(
      self.model,
      self.optimizer,
      self.loss,
      l2=self.l2,
      record=self.kernels if self.record else (),
      axis_name=self.axis_name,
      terms=self.terms,
      form=self.form,
    )

  @functools.cached_property
  def estimate_step(self) -> step_lib.Step | None:
    """See `step.make_estimate_step`; None without averages or BatchNorm."""
    if not self.abstract_state.averaged_stats.vectors:
      return None
    return step_lib.make_estimate_step(self.model, self.steps_per_epoch)

  @functools.cached_property
  def eval_step(self) -> Callable:
    """`(state, batch) -> metrics`, see `step.make_eval_step`."""
    return step_lib.make_eval_step(
      self.model, self.loss, l2=self.l2, axis_name=self.axis_name
    )

  def create_state(self, seed: int) -> state_lib.TrainState:
    """The state before the first step, a pure function of the run's seed."""
    return state_lib.create_state(self.model, self.optimizer, seed)

  def begin(self, variables: Any, seed: int) -> state_lib.TrainState:
    """The state before the first step, with given variables."""
    return state_lib.begin_at(self.optimizer, variables, seed)


@functools.lru_cache(16)
def _layers(
  model: network.Network, window: tuple[int, int], label: bool = False
) -> Table:
  variables = state_lib.abstract_variables(model)
  shape = model.input_shape(window)
  return tuple(
    layer_table.layer_table(model, shape, variables=variables, label=label)
  )


def build(
  config: ConfigDict,
  window: Sequence[int],
  steps_per_epoch: int,
  axis_name: str | None = None,
  *,
  record: bool = True,
  platform: str | None = None,
) -> Training:
  """Builds the parts of a config's training; compiles nothing.

  Equal arguments give the same object while it is cached. JAX identifies a
  function by its object, so another run of the same network in this process
  traces and compiles nothing again.

  Of the validated config, only model, optim and train matter. An epoch, the
  unit of schedules, has `steps_per_epoch` batches. The step is made for
  `platform`, 'cpu', 'gpu' or 'tpu', by default that of this process. The other
  arguments are attributes of `Training`.

  Raises:
    InputError: a network that cannot be built, a window it cannot take, or
      kernels that the platform does not have.
  """
  sections = json.loads(config.to_json())
  optim_, train = sections['optim'], sections['train']
  constant = optim_['schedule'] == 'constant' and not optim_['cooldown_epochs']
  settings = {
    'model': sections['model'],
    'optim': optim_,
    'train': {
      name: train[name]
      for name in ('loss', 'auxiliary', 'auxiliary_at', 'adversarial')
    },
    # A constant rate does not depend on the length of the run.
    'epochs': 0 if constant else train['epochs'],
  }
  text = json.dumps(settings, sort_keys=True)
  y, x = window
  platform = platform or jax.default_backend()
  form = {'cpu': 'plain', 'tpu': 'tpu'}.get(platform, 'gpu')
  if train['kernels'] == 'pallas':
    if platform != 'gpu':
      raise errors.InputError(
        f'train.kernels is pallas, but JAX runs on a {platform}, and these '
        'kernels are for GPUs: set train.kernels to xla.'
      )
    form = 'pallas'
  training = _build(text, (y, x), steps_per_epoch, axis_name, record, form)
  training.model.check_size(training.window)
  return training


@functools.lru_cache(8)
def _build(
  settings: str,
  window: tuple[int, int],
  steps_per_epoch: int,
  axis_name: str | None,
  record: bool,
  form: str,
) -> Training:
  c = ConfigDict(json.loads(settings))
  model = models.build_model(c.model, axis_name)
  schedule = optim.make_schedule(c.optim, steps_per_epoch, c.epochs)
  return Training(
    model=model,
    optimizer=optim.make_optimizer(c.optim, schedule, model.adversarial),
    schedule=schedule,
    loss=losses.LOSSES[c.train.loss],
    terms=losses.make_terms(c.train, steps_per_epoch),
    window=window,
    steps_per_epoch=steps_per_epoch,
    l2=c.optim.l2,
    axis_name=axis_name,
    record=record,
    form=form,
  )
