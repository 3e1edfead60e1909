"""What is measured of an experiment's network at one point of its training."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from skipnet_jax import models
from skipnet_jax import streams
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import propagation
from skipnet_jax.analysis import routes as routes_lib
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.models import fc_resnet
from skipnet_jax.step import losses

SEEDS = tuple(range(10))


@dataclasses.dataclass(frozen=True)
class Point:
  """The gradient of the loss at one point, by layer.

  Attributes:
    layers: convolutions in forward order, `l` names.
    grad_l2: L2 norm of each kernel's gradient, `[l]` float64.
    shares: for each of `routes.ROUTES`, the part <g_route, g> / <g, g> of each
      layer's gradient g, `[l]` float64; they add up to 1. NaN where g is 0.
    lengths: by number of residual branches passed; None without short skips.
    window: sides of what was looked at, in pixels.
  """

  layers: tuple[str, ...]
  grad_l2: np.ndarray
  shares: dict[str, np.ndarray]
  lengths: routes_lib.PathLengths | None
  window: tuple[int, int]


def centre_batch(
  config: ml_collections.ConfigDict, data: sources.DataSet, side: int
) -> gradient_flow.Batch:
  """The first training slice's centre, not augmented.

  Args:
    config: of the experiment.
    data: its data set.
    side: of the window in pixels, at most; a multiple of 32.

  Returns:
    image, label and mask, `[1, y, x, c]` float32.

  Raises:
    InputError: a window that the pipeline refuses.
  """
  config = config.copy_and_resolve_references()
  config.train.batch_size = 1
  pipeline = pipeline_lib.make_pipeline(config, data, 1)
  y, x = pipeline.window
  window = min(side, y), min(side, x)
  corner = [(s - w) // 2 for s, w in zip(pipeline.size, window, strict=True)]
  plan = {
    'index': np.array(data.train[:1], np.int32),
    'offset': np.array([corner], np.int32),
  }
  arrays = pipeline_lib.host_arrays(data)
  cut = dataclasses.replace(pipeline, window=window)
  seen = jnp.zeros((1, 2), jnp.int32)
  raw = cut.read_host(arrays, plan)
  return jax.tree.map(jnp.asarray, cut.eval_batch(raw, seen))


def _without_dropout(config: ml_collections.ConfigDict):
  """The network as measured: no dropout, so that a point has one gradient."""
  fields = config.model.to_dict()
  if 'dropout' in fields:
    fields['dropout'] = 0.0
  return models.build_model(ml_collections.ConfigDict(fields)).unrolled()


@functools.cache
def _objective(name: str):
  """The loss of that name; the same function, so that it compiles once."""
  loss = losses.LOSSES[name]
  return lambda outputs, batch: loss.value(loss.sums(outputs, batch))


def initial_variables(
  config: ml_collections.ConfigDict,
) -> gradient_flow.Variables:
  """Those with which a run of this config begins, up to rounding."""
  key = streams.key_at(jax.random.key(config.seed), 'init')
  model = models.build_model(config.model)
  shape = model.input_shape(model.init_size())
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  # Not jitted: `propagate` draws by the same small compiled functions.
  return dict(model.lazy_init(key, image, train=False))


def convolutions(config: ml_collections.ConfigDict) -> list[str]:
  """Names of an experiment's convolutions in forward order.

  Raises:
    InputError: a model without convolutions.
  """
  model = _without_dropout(config)
  return gradient_flow.conv_names(model, model.input_shape(model.init_size()))


def at_points(
  config: ml_collections.ConfigDict,
  moments: dict[str, gradient_flow.Variables],
  batch: gradient_flow.Batch,
  layers: Sequence[str],
) -> dict[str, Point]:
  """The gradient of an experiment's loss, by layer and by route.

  Batch statistics, no dropout.

  Args:
    config: of the experiment.
    moments: variables by name of the point.
    batch: from `centre_batch`.
    layers: its convolutions in forward order.
  """
  points, routes = {}, None
  for moment, variables in moments.items():
    # Of a checkpoint they are bound to a device, and would compile anew.
    variables = jax.device_put(fc_resnet.unroll(variables), jax.devices()[0])
    routes = (
      routes.at(variables)
      if routes
      else routes_lib.Routes(
        _without_dropout(config),
        variables,
        batch,
        _objective(config.train.loss),
        layers=layers,
      )
    )
    y, x = batch['image'].shape[1:3]
    points[moment] = _take(routes, (y, x))
  return points


def _take(routes: routes_lib.Routes, window: tuple[int, int]) -> Point:
  whole, parts = routes.whole(), routes.by_skip()

  def product(a, b):
    return float(np.vdot(np.asarray(a, np.float64), np.asarray(b, np.float64)))

  squares = np.array([product(g, g) for g in whole.values()])
  shares = {}
  for route, gradients in parts.items():
    products = [product(gradients[name], g) for name, g in whole.items()]
    shares[route] = np.where(
      squares > 0, products / np.where(squares > 0, squares, 1), np.nan
    )
  return Point(
    layers=routes.layers,
    grad_l2=np.sqrt(squares),
    shares=shares,
    lengths=routes.by_length() if routes.branches else None,
    window=window,
  )


def at_init(
  config: ml_collections.ConfigDict,
  batch: gradient_flow.Batch,
  layers: Sequence[str],
) -> propagation.Propagation:
  """Signal propagation over `SEEDS`, batch statistics, no dropout.

  Args:
    config: of the experiment.
    batch: from `centre_batch`.
    layers: its convolutions in forward order.
  """
  return propagation.propagate(
    _without_dropout(config),
    batch,
    _objective(config.train.loss),
    SEEDS,
    layers=layers,
  )
