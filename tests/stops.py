"""Commands that stop before they would train or measure.

Flags, config, data set, folders and devices are checked as usual.
"""

import os
import pathlib

import numpy as np

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.analysis import depth
from skipnet_jax.analysis.page import comparison
from skipnet_jax.benchmarking import children
from skipnet_jax.benchmarking import journal
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import rows
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.aot import aot
from skipnet_jax.benchmarking.peer import race
from skipnet_jax.benchmarking.suite import device
from skipnet_jax.benchmarking.suite import suite
from skipnet_jax.data import border_weight
from skipnet_jax.data import isbi2012
from skipnet_jax.data import pipeline
from skipnet_jax.exporting import artefact
from skipnet_jax.prediction import blocks
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import inference
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.studies import speed
from skipnet_jax.training import loop
from skipnet_jax.training import prepare

# Where a command stops, and the test that runs what it would do there.
STOPS = (
  (loop, 'train_and_evaluate', 'test_loop; first the run is prepared'),
  (prepare, 'describe', 'test_cli; first the config is checked'),
  (inference.Predictor, '__call__', 'test_predict; it gives a constant'),
  (inference.Predictor, 'predict_slices', 'test_predict; the same'),
  (inference.Predictor, 'predict_windows', 'test_volumes; the same'),
  (inference.Predictor, 'compile', 'test_predict'),
  (artefact, 'write', 'test_export'),
  (edge_fit, 'of_run', 'test_edge_fit; as if edges were fitted'),
  (border_weight, 'border_weight', 'test_border_weight; it gives ones'),
  (isbi2012, 'download', 'test_isbi2012'),
  (comparison, 'at_init', 'test_gradflow'),
  (comparison, 'of_runs', 'test_gradflow'),
  (depth, '_train', 'test_depth'),
  (children, 'measure', 'test_children; rows are planned in this process'),
  (rows._Rows, 'measure_all', 'test_rows'),
  (workload.Bench, 'build', 'test_workload'),
  (pipeline.Pipeline, 'plan', 'test_pipeline'),
  (aot, 'predict', 'test_aot'),
  (race, 'race', 'test_torch_peer; first the config is checked'),
  (device, 'device_kind', 'test_accelerator_suite; as if it were there'),
  (suite, 'run', 'test_accelerator_suite'),
  (speed, 'measure', 'test_speed'),
)


def stack():
  """What stands in for the ISBI 2012 stacks: [30, 512, 512] uint8."""
  cells = np.random.default_rng(0).random((30, 8, 8)) > 0.4
  return np.kron(cells, np.ones((1, 64, 64))).astype(np.uint8) * 255


def check(config, workdir, *_):
  """All that a training does before it compiles."""
  config_checks.validate(config)
  prepared = prepare.prepare(config)
  workdir_lib.check(workdir, config, prepared.data.identity())


def check_described(config):
  """What is described may be a benchmark's."""
  if 'benchmark' in config:
    config, _ = plan.split(config)
  config_checks.validate(config)


def stop(name, first=lambda *_, **__: None):
  """A function that ends its command, after a check."""

  def call(*arguments, **keywords):
    first(*arguments, **keywords)
    raise errors.Stopped(f'Stopped before {name}.')

  return call


def put(monkeypatch, stack):
  """Stops commands as STOPS says; `stack` is both of the ISBI 2012 stacks."""

  def plan_rows(config, processes, say, *_):
    del processes
    rows.measure_all(journal.Journal(None, config=config), say)

  def constant(self, image, tiling, advance=lambda: None):
    del self, tiling, advance
    return np.full(image.shape[-2:], 0.75, np.float32), None

  def slices(self, images, size, tiling, advance):
    del self, tiling, advance
    return (np.full((2, *size), 0.75, np.float32) for _ in images)

  def windows(self, images, tiling, size, window, advance):
    return slices(self, images, [*map(len, window)], tiling, advance)

  instead = {
    'train_and_evaluate': stop('training', check),
    'describe': stop('the table', check_described),
    '__call__': constant,
    'predict_slices': slices,
    'predict_windows': windows,
    'compile': lambda *_: None,
    'of_run': lambda *_: (None, {'slices': [], 'training_scores': {}}),
    'device_kind': lambda name: name,
    'border_weight': lambda label, *_: np.ones(label.shape, np.float32),
    'download': lambda folder, *_, **__: folder,
    'race': stop('race', lambda config, **_: race.check_config(config)),
  }
  for owner, name, _ in STOPS:
    if owner is children:
      monkeypatch.setattr(owner, name, plan_rows)
    else:
      monkeypatch.setattr(owner, name, instead.get(name, stop(name)))
  # Of a command alone: the process of the tests may have had more than it may.
  monkeypatch.setattr(blocks, 'peak_memory', lambda: 10**9)
  monkeypatch.setattr(isbi2012, 'find', lambda *_: pathlib.Path())
  monkeypatch.setattr(isbi2012, 'load', lambda *_: (stack, stack))
  # tools/accelerator_suite.py sets them.
  for name in ('JAX_PLATFORMS', 'PYTHONPATH'):
    monkeypatch.setenv(name, os.environ.get(name, ''))
