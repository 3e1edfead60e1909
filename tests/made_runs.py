"""Folders of runs that were never trained, for tests of what reads them."""

import json

import jax
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.data import sources
from skipnet_jax.training import checkpoint
from skipnet_jax.training import optim
from skipnet_jax.training import state as state_lib
from skipnet_jax.training import telemetry
from skipnet_jax.training import workdir


def small_config(**changes):
  """FC-ResNet with narrow simple blocks, on a synthetic stack of 64x64."""
  config = config_lib.get_default()
  config.experiment = 'made'
  config.model = models.model_config(
    'fc_resnet',
    base_width=4,
    repetitions=(1, 1, 1, 2, 1, 1, 1),
    blocks='simple',
    dropout=0.3,
  )
  config.data.update(source='synthetic', slices=6, size=64, valid='4-5')
  config.train.epochs = 1
  config.update_from_flattened_dict(changes)
  return config


def small_state(config):
  """A state whose running statistics are those of no new network."""
  model = models.build_model(config.model)
  schedule = optim.make_schedule(config.optim, 4, config.train.epochs)
  optimizer = optim.make_optimizer(config.optim, schedule)
  state = state_lib.create_state(model, optimizer, config.seed)
  rng = np.random.default_rng(config.seed)

  def shift(path, x):
    low, high = (0.5, 1.5) if path[-1].key == 'var' else (-0.3, 0.3)
    return jax.numpy.asarray(rng.uniform(low, high, x.shape), x.dtype)

  stats = jax.tree_util.tree_map_with_path(shift, state.batch_stats)
  return model, state.replace(batch_stats=stats)


def add_records(path, epochs=4):
  """Writes metrics.jsonl and gradient_flow.npz of a run; returns its layers."""
  config = workdir.read_config(path)
  model = models.build_model(config.model)
  names = gradient_flow.conv_names(model, (1, 64, 64, 1))
  rng = np.random.default_rng(len(names))
  file = telemetry.FlowFile(path / 'gradient_flow.npz', names, 0, print)
  lines = []
  for epoch in range(1, epochs + 1):
    flow = rng.uniform(1e-4, 1e-2, (5, len(names))).astype(np.float32)
    file.append(flow[0], flow[1:])
    record = {'epoch': epoch, 'step': 4 * epoch}
    for part in ('train', 'valid'):
      record |= {f'{part}_loss': 1 / epoch, f'{part}_loss_with_l2': 2 / epoch}
      record |= {f'{part}_bce': 1 / epoch, f'{part}_accuracy': epoch / 10}
    lines.append(json.dumps(record) + '\n')
  (path / 'metrics.jsonl').write_text(''.join(lines))
  return names


def make_run(path, state=None, **changes):
  """Writes the folder of a run with a best checkpoint; returns its path."""
  config = small_config(**changes)
  path.mkdir()
  dataset = sources.load(config)
  workdir.describe(
    path, config, {'name': dataset.name, 'fingerprint': dataset.fingerprint()}
  )
  if state is None:
    _, state = small_state(config)
  checkpoints = checkpoint.Checkpoints(path)
  checkpoints.save(state, {'step': 4, 'best_epoch': 1}, best=True)
  checkpoints.close()
  return path


def make_pair(folder):
  """Two recorded runs that differ in their networks alone; their paths."""
  paths = folder / 'both', folder / 'long'
  for path, short in zip(paths, (True, False), strict=True):
    make_run(path, **{'model.short_skips': short})
    add_records(path)
  return paths
