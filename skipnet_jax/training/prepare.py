"""The parts of a run, built and checked before its folder is touched."""

import dataclasses
import math
import pathlib

import ml_collections

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.data import data_set
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.models import layer_table
from skipnet_jax.runs import workdir
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import parallel as parallel_lib
from skipnet_jax.training import warm_start


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A config with its devices, data and network; nothing is compiled.

  Attributes:
    config: a validated config.
    parallel: where to run.
    data: the stacks and their split.
    pipeline: makes the batches.
    training: model, optimizer, loss, steps.
    arrays: the data set on the host, as the pipeline reads it.
  """

  config: ml_collections.ConfigDict
  parallel: parallel_lib.Parallel
  data: data_set.DataSet
  pipeline: pipeline_lib.Pipeline
  training: build_lib.Training
  arrays: pipeline_lib.Arrays


def prepare(config: ml_collections.ConfigDict) -> Prepared:
  """Builds the parts of a run from a validated config.

  Raises:
    InputError: devices, data or a network that cannot be used.
  """
  parallel = parallel_lib.make_parallel(config.parallel)
  if config.train.deterministic:
    parallel_lib.require_determinism(parallel.devices[0].platform)
  data = sources.load(config)
  pipeline = pipeline_lib.make_pipeline(config, data, len(parallel.devices))
  training = build_lib.build(
    config, pipeline.window, pipeline.steps_per_epoch, parallel.axis_name
  )
  _check_memory(config, parallel, training)
  arrays = pipeline_lib.host_arrays(data)
  return Prepared(config, parallel, data, pipeline, training, arrays)


def check(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Refuses a run that could not start, before others are trained.

  The network is not built, which takes seconds.

  Args:
    path: the run's folder; may be missing.
    config: a validated config.

  Raises:
    InputError: devices, data, weights to start from, or a folder that cannot be
      used.
  """
  parallel = parallel_lib.make_parallel(config.parallel)
  data = sources.load(config)
  pipeline_lib.make_pipeline(config, data, len(parallel.devices))
  workdir.check(path, config, data)
  if config.train.init_from and not (path / 'checkpoints').exists():
    warm_start.check_source(config.train.init_from)


def _check_memory(
  config: ml_collections.ConfigDict,
  parallel: parallel_lib.Parallel,
  training: build_lib.Training,
) -> None:
  """Refuses what no device can hold, before anything is allocated.

  Parameters and gradients are in float32, and the output of each layer exists
  at some time. Training needs a multiple of this.
  """
  size = 2 if config.model.dtype == 'bfloat16' else 4
  largest = max(math.prod(layer.shape) for layer in training.table)
  batch = config.train.batch_size // len(parallel.devices)
  need = {
    f'The network has {training.parameters:,} parameters, which take': (
      8 * training.parameters,
      'lower the sizes in config.model',
    ),
    f'train.batch_size is {config.train.batch_size:,}, and the largest layer '
    'then takes': (
      batch * size * largest,
      'lower train.batch_size, data.crop or the sizes in config.model',
    ),
  }
  available = parallel_lib.memory(parallel.devices[0])
  for problem, (wanted, remedy) in need.items():
    if wanted > available:
      raise errors.InputError(
        f'{problem} at least {wanted / 1e9:,.1f} GB of memory, but a device '
        f'has {available / 1e9:,.1f} GB: {remedy}.'
      )


def describe(config: ml_collections.ConfigDict) -> str:
  """The layer table of a config's network, and its number of parameters.

  A comparison of several networks has a table for each, at the config's depth;
  a benchmark that of the network that it measures.

  Raises:
    InputError: a config that cannot be used.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for section in {'benchmark', 'depths'} & set(config):
      del config[section]
  if 'variants' in config:
    variants = config_checks.variants(config).items()
    return '\n\n'.join(f'{name}:\n{describe(one)}' for name, one in variants)
  config_checks.validate(config)
  side = config.data.crop or config.data.size or 512
  training = build_lib.build(config, (side, side), 1)
  return layer_table.format_table(training.table, training.parameters)
