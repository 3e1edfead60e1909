"""Measures the network of an experiment, for the figures of a report."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from skipnet_jax import models
from skipnet_jax import streams
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import joins as joins_lib
from skipnet_jax.analysis import lesions as lesions_lib
from skipnet_jax.analysis import propagation
from skipnet_jax.analysis import routes as routes_lib
from skipnet_jax.analysis import sharpness as sharpness_lib
from skipnet_jax.data import data_set
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.models import fc_resnet
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import losses
from skipnet_jax.step import state as state_lib

SEEDS = tuple(range(10))
# Of the Hessian with a vector, for each eigenvalue.
_PRODUCTS = 12


@dataclasses.dataclass(frozen=True)
class Point:
  """The gradient of the loss by layer, for one set of parameters.

  Attributes:
    layers: convolutions in forward order, `l` names.
    grad_l2: L2 norm of each kernel's gradient, `[l]` float64.
    shares: for each of `routes.ROUTES`, the part <g_route, g> / <g, g> of each
      layer's gradient g, `[l]` float64; they add up to 1. NaN where g is 0.
    lengths: the gradient by path length; None without short skips.
    window: sides of the image, in pixels.
    found: the skips that were found in a network that names none.
  """

  layers: tuple[str, ...]
  grad_l2: np.ndarray
  shares: dict[str, np.ndarray]
  lengths: routes_lib.PathLengths | None
  window: tuple[int, int]
  found: tuple[joins_lib.Join, ...] = ()


def centre_batch(
  config: ml_collections.ConfigDict,
  data: data_set.DataSet,
  side: int,
  slices: Sequence[int] = (),
) -> gradient_flow.Batch:
  """The centre of some slices, by default of the first for training.

  It is not augmented, and has at most `side` pixels in y and x, a multiple of
  32.

  Returns:
    image, label and mask, `[z, y, x, c]` float32.

  Raises:
    InputError: a window that does not fit the data set.
  """
  config = config.copy_and_resolve_references()
  config.train.batch_size = 1
  pipeline = pipeline_lib.make_pipeline(config, data, 1)
  chosen = slices or data.train[:1]
  y, x = pipeline.window
  window = min(side, y), min(side, x)
  corner = [(s - w) // 2 for s, w in zip(pipeline.size, window, strict=True)]
  plan = {
    'index': np.array(chosen, np.int32),
    'offset': np.array([corner] * len(chosen), np.int32),
  }
  pipeline = dataclasses.replace(pipeline, window=window)
  raw = pipeline.read_host(pipeline_lib.host_arrays(data), plan)
  batch = pipeline.eval_batch(raw, jnp.zeros((len(chosen), 2), jnp.int32))
  return jax.tree.map(jnp.asarray, batch)


@functools.cache
def objective(name: str) -> gradient_flow.LossFunction:
  """The loss function of that name; cached, so that JAX compiles it once."""
  loss = losses.LOSSES[name]
  return lambda outputs, batch: loss.value(loss.sums(outputs, batch))


def initial_variables(
  config: ml_collections.ConfigDict,
) -> gradient_flow.Variables:
  """The variables with which a run of this config begins, up to rounding."""
  key = streams.key_at(jax.random.key(config.seed), 'init')
  model = models.build_model(config.model)
  shape = model.input_shape(model.init_size())
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  # Not jitted: `propagate` compiles and uses the same small functions.
  return dict(model.lazy_init(key, image, train=False))


def measure(
  config: ml_collections.ConfigDict,
  moments: dict[str, gradient_flow.Variables],
  batch: gradient_flow.Batch,
) -> tuple[dict[str, Point], propagation.Propagation]:
  """The gradient at some moments of training, propagation at initialisation.

  Both with batch statistics, without dropout; propagation is over `SEEDS`.
  `moments` are variables by moment of training, `batch` is from `centre_batch`.

  Raises:
    InputError: a network without convolutions.
  """
  model, loss = models.build_model(config.model), objective(config.train.loss)
  model = (model.clone(dropout=0.0) if model.dropout else model).unrolled()
  layers = gradient_flow.conv_names(model, batch['image'].shape)
  # Variables of a checkpoint are bound to a device: JAX would compile again.
  placed = {
    moment: jax.device_put(fc_resnet.unroll(variables), jax.devices()[0])
    for moment, variables in moments.items()
  }
  # In parallel: both mostly compile, on one core each.
  with futures.ThreadPoolExecutor(1) as pool:
    signal = pool.submit(
      propagation.propagate, model, batch, loss, SEEDS, layers=layers
    )
    first = next(iter(placed.values()))
    routes = routes_lib.Routes(model, first, batch, loss, layers=layers)
    y, x = batch['image'].shape[1:3]
    points = {
      moment: _point(routes.at(variables), (y, x))
      for moment, variables in placed.items()
    }
    return points, signal.result()


def lesions(
  config: ml_collections.ConfigDict,
  variables: gradient_flow.Variables,
  batch: gradient_flow.Batch,
) -> lesions_lib.Lesions | None:
  """What a trained network loses without each branch; None without skips.

  `batch` is from `centre_batch`, of the slices on which it is measured.
  """
  model = models.build_model(config.model).unrolled()
  placed = jax.device_put(fc_resnet.unroll(variables), jax.devices()[0])
  inside = np.asarray(batch['label'])[..., 0] > 0.5
  return lesions_lib.measure(model, placed, np.asarray(batch['image']), inside)


@dataclasses.dataclass(frozen=True)
class Sharp:
  """The sharpness of the training loss at one moment.

  Attributes:
    plain: of the loss itself.
    preconditioned: as RMSprop sees it; None before its first step, or of
      another optimizer.
    limit: 2 / the learning rate: above it, a step along that direction grows.
  """

  plain: sharpness_lib.Sharpness
  preconditioned: sharpness_lib.Sharpness | None
  limit: float


def sharpness(
  config: ml_collections.ConfigDict,
  training: build_lib.Training,
  states: dict[str, state_lib.TrainState],
  batch: gradient_flow.Batch,
) -> dict[str, Sharp]:
  """The sharpness at some moments of training, L2 included, without dropout.

  Args:
    config: of a run.
    training: of this config, for its schedule.
    states: by moment.
    batch: from `centre_batch`; with batch statistics.
  """
  model, loss = models.build_model(config.model), objective(config.train.loss)
  model = model.clone(dropout=0.0) if model.dropout else model
  # Of the statistics, training uses none.
  first = next(iter(states.values())).variables()

  def value(params):
    at = first | {'params': params}
    return gradient_flow.loss_at(model, at, batch, loss, train=True)

  with_l2 = sharpness_lib.training_objective(value, training.l2)
  hessian = sharpness_lib.Hessian(with_l2)
  found = {}
  for moment, state in states.items():
    params = jax.device_put(state.params.tree(), jax.devices()[0])
    scale = None
    # An adversarial network has two optimizers.
    averages = optax.tree.get_all_with_path(state.opt_state, 'nu')
    if config.optim.name == 'rmsprop' and len(averages) == 1:
      ((_, average),) = averages
      scale = sharpness_lib.rmsprop_scale(average.tree(), config.optim.eps)
    updates = int(state.step) // config.optim.accumulate
    rate = float(np.asarray(training.schedule(updates)))
    found[moment] = Sharp(
      hessian.largest(params, products=_PRODUCTS),
      None
      if scale is None
      else hessian.largest(params, scale, products=_PRODUCTS),
      2 / rate if rate else np.inf,
    )
  return found


def _point(routes: routes_lib.Routes, window: tuple[int, int]) -> Point:
  whole = routes.whole()

  def products(gradients):
    return np.array(
      [
        np.vdot(gradients[name].astype(np.float64), g.astype(np.float64))
        for name, g in whole.items()
      ]
    )

  squares = products(whole)
  nonzero = np.where(squares > 0, squares, np.nan)
  return Point(
    layers=routes.layers,
    grad_l2=np.sqrt(squares),
    shares={r: products(g) / nonzero for r, g in routes.by_skip().items()},
    lengths=routes.by_length() if routes.branches else None,
    window=window,
    found=routes.found,
  )
