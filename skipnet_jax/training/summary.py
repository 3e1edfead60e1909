"""What a run says at its beginning and at its end."""

import pathlib
from typing import Any

import jax
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.runs import run_log
from skipnet_jax.training import prepare


def banner(prepared: prepare.Prepared, path: pathlib.Path) -> str:
  """The lines that begin a run: what is trained, on what, where to.

  Args:
    prepared: what is trained.
    path: the run's folder.
  """
  c, p, pipe = prepared.config, prepared.parallel, prepared.pipeline
  training, data = prepared.training, prepared.data
  # A backward pass does twice the work of a forward pass.
  flops = 3 * pipe.batch_size * sum(row.flops for row in training.table)
  lines = [
    f'{c.experiment or c.model.name}: {c.model.name}, '
    f'{len(training.kernels)} convolutions, '
    f'{training.parameters:,} parameters, {c.model.dtype}',
    f'data:    {data.name}, {len(pipe.train)} slices to train, '
    f'{len(pipe.valid)} to validate, examples '
    f'{pipe.window[0]}x{pipe.window[1]}',
    f'devices: {len(p.devices)} x {p.devices[0].device_kind}, mode {p.mode}'
    + (f', {jax.process_count()} processes' if p.mode == 'sharded' else ''),
    f'step:    batch {pipe.batch_size}, {c.train.loss}, {c.optim.name}, '
    f'about {flops / 1e9:,.3g} GFLOPs; {pipe.steps_per_epoch} steps an '
    f'epoch, {c.train.epochs} epochs',
    f'workdir: {path} (config {config_identity.hash_of(c)})',
    f'To beat: validation BCE {data.constant_bce(data.valid):.4f} of '
    "predicting the validation slices' share of membrane everywhere",
  ]
  more = filter(None, [data.warning, data.remedy])
  return '\n'.join([*lines, *more])


def losses(
  prepared: prepare.Prepared, epochs: int, best: progress_lib.Progress
) -> dict[str, Any]:
  """The part of summary.json that the best checkpoint tells.

  Args:
    prepared: what was trained.
    epochs: that are done.
    best: the best checkpoint's.
  """
  record, config = best.best_record or {}, prepared.config
  return {
    'experiment': config.experiment or config.model.name,
    'dataset': prepared.data.name,
    'parameters': prepared.training.parameters,
    'epochs': epochs,
    'best_epoch': best.best_epoch,
    'best_val_loss': record['valid_loss'],
    'best_val_loss_with_l2': record['valid_loss_with_l2'],
    'best_val_bce': record['valid_bce'],
    'constant_val_bce': prepared.data.constant_bce(prepared.data.valid),
    'train_loss_at_best': record['train_loss'],
    'train_loss_with_l2_at_best': record['train_loss_with_l2'],
  }


def scores(
  prepared: prepare.Prepared,
  path: pathlib.Path,
  seconds: float,
  found: dict[str, Any],
) -> dict[str, Any]:
  """The part that the scores and the clock tell.

  Args:
    prepared: what was trained.
    path: the run's folder.
    seconds: of all epochs.
    found: the content of a scores.json.
  """
  records = run_log.read_records(path / 'metrics.jsonl')
  rates = [record['images_per_second'] for record in records]
  part = {
    'v_rand': found['v_rand'],
    'v_info': found['v_info'],
    'threshold_v_rand': found['threshold_v_rand'],
    'seconds': round(seconds, 3),
    'images_per_second': float(np.median(rates)),
  }
  if prepared.data.warning:
    part['warning'] = prepared.data.warning
  return part


def format_summary(summary: dict[str, Any], path: pathlib.Path) -> str:
  """The summary as the lines that end a run."""
  lines = [
    '',
    f'{summary["experiment"]} on {summary["dataset"]}: '
    f'{summary["epochs"]} epochs, best after {summary["best_epoch"]}',
    f'validation loss {summary["best_val_loss"]:.4f} (with L2 '
    f'{summary["best_val_loss_with_l2"]:.4f}), BCE '
    f'{summary["best_val_bce"]:.4f}, constant prediction '
    f'{summary["constant_val_bce"]:.4f}',
    f'V_rand {summary["v_rand"]:.4f}  V_info {summary["v_info"]:.4f}',
    f'results: {path}/summary.json, metrics.jsonl, samples/',
  ]
  if 'warning' in summary:
    lines.append(summary['warning'])
  return '\n'.join(lines)
