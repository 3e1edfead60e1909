"""Folders of runs that were never trained, for tests of what reads them."""

import json

import jax
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.data import sources
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import flat
from skipnet_jax.step import state as state_lib


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
  """A state whose running statistics are those of no new network.

  Drawn here: nothing is compiled.
  """
  training = build_lib.build(config, (64, 64), 4)
  rng = np.random.default_rng(config.seed)

  def draw(path, x):
    name = path[-1].key
    if name == 'kernel':
      values = rng.normal(0, np.sqrt(2 / np.prod(x.shape[:-1])), x.shape)
    elif name in ('var', 'mean'):
      low, high = (0.5, 1.5) if name == 'var' else (-0.3, 0.3)
      values = rng.uniform(low, high, x.shape)
    else:
      values = np.full(x.shape, name == 'scale')
    return jax.numpy.asarray(values, x.dtype)

  like = training.abstract_state
  drawn = jax.tree_util.tree_map_with_path(draw, like.variables())
  state = state_lib.TrainState(
    step=jax.numpy.asarray(0, like.step.dtype),
    params=flat.join(drawn['params']),
    batch_stats=flat.join(drawn['batch_stats']),
    averaged_stats=flat.join(
      jax.tree.map(lambda x: x + 1, drawn['batch_stats'])
      if config.optim.ema
      else {}
    ),
    opt_state=jax.tree.map(
      lambda x: jax.numpy.asarray(np.zeros(x.shape, x.dtype)), like.opt_state
    ),
    key=jax.random.key(config.seed),
  )
  return training.model, state


def add_records(path, epochs=4):
  """Writes metrics.jsonl and gradient_flow.npz of a run; returns its layers."""
  config = workdir.read_config(path)
  model = models.build_model(config.model)
  names = gradient_flow.conv_names(model, (1, 64, 64, 1))
  rng = np.random.default_rng(len(names))
  file = flow_file.FlowFile(path / 'gradient_flow.npz', names, 0, 0, print)
  lines = []
  for epoch in range(1, epochs + 1):
    flow = rng.uniform(1e-4, 1e-2, (5, len(names))).astype(np.float32)
    file.add_steps(np.stack([flow[1:] * (1 + step) for step in range(4)]))
    file.append(flow[0], flow[1:])
    record = dict.fromkeys(run_log.FIELDS, 1.0)
    record |= {'epoch': epoch, 'step': 4 * epoch}
    record |= {
      'critical_sharpness': 2e3 * epoch,
      'critical_sharpness_ratio': float(epoch),
      'learning_rate': 1e-3,
    }
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
  workdir.describe(path, config, dataset.identity())
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
