"""The lines that a run prints at its beginning and its end; summary.json."""

import pathlib
from typing import Any

import jax
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import files
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.runs import run_log
from skipnet_jax.training import prepare
from skipnet_jax.training import warm_start


def banner(
  prepared: prepare.Prepared,
  path: pathlib.Path,
  init_from: warm_start.Record | None,
) -> str:
  """The first lines of a run in the folder `path`: network, data, devices.

  `init_from` is what a warm start began with.
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
    f'{pipe.window[0]}x{pipe.window[1]}, {data.inside_share():.0%} of the '
    'pixels inside cells',
    f'devices: {len(p.devices)} x {p.devices[0].device_kind}, mode {p.mode}'
    + (f', {jax.process_count()} processes' if p.mode == 'sharded' else ''),
    f'step:    batch {pipe.batch_size}, {c.train.loss}, {c.optim.name}, '
    f'about {flops / 1e9:,.3g} GFLOPs; {pipe.steps_per_epoch} steps an '
    f'epoch, {c.train.epochs} epochs',
    f'workdir: {path} (config {config_identity.hash_of(c)})',
    *([warm_start.describe(init_from, data.pixel_size)] if init_from else []),
    f'To beat: validation BCE {data.constant_bce(data.valid):.4f} of a '
    'constant prediction, the mean of the validation labels',
  ]
  return '\n'.join(
    [*lines, *filter(None, [data.warning, data.lacking(), data.remedy])]
  )


def is_finished(path: pathlib.Path, epochs: int) -> bool:
  """Whether the run in a folder has a summary of so many epochs or more."""
  trained = files.read_json(path / 'summary.json').get('epochs')
  return isinstance(trained, int) and trained >= epochs


def content(
  prepared: prepare.Prepared,
  path: pathlib.Path,
  last: progress_lib.Progress,
  best: progress_lib.Progress,
  scores: dict[str, Any] | None,
  init_from: warm_start.Record | None,
) -> dict[str, Any]:
  """The content of summary.json.

  Args:
    prepared: the parts of the run.
    path: the run's folder.
    last: the progress at the end of the run.
    best: the progress in the best checkpoint.
    scores: the content of a scores.json; None to leave out scores and speed.
    init_from: what a warm start began with; None to leave it out.
  """
  record, config, data = best.best_record or {}, prepared.config, prepared.data
  losses = {
    'experiment': config.experiment or config.model.name,
    'dataset': data.name,
    'parameters': prepared.training.parameters,
    'epochs': last.epoch,
    'best_epoch': best.best_epoch,
    'best_val_loss': record['valid_loss'],
    'best_val_loss_with_l2': record['valid_loss_with_l2'],
    'best_val_bce': record['valid_bce'],
    'constant_val_bce': data.constant_bce(data.valid),
    'train_loss_at_best': record['train_loss'],
    'train_loss_with_l2_at_best': record['train_loss_with_l2'],
    **({'init_from': init_from} if init_from else {}),
  }
  if scores is None:
    return losses
  records = run_log.readable_records(path / 'metrics.jsonl')
  # If the file is lost meanwhile, the checkpoint has the newest.
  records = records or {row['epoch']: row for row in last.records}
  rates = [record['images_per_second'] for record in records.values()]
  return {
    **losses,
    **{k: scores[k] for k in ('v_rand', 'v_info', 'threshold_v_rand')},
    'seconds': round(last.seconds, 3),
    'goodput': last.wall_seconds and round(last.seconds / last.wall_seconds, 4),
    'images_per_second': float(np.median(rates)),
    **({'warning': data.warning} if data.warning else {}),
  }


def format_summary(summary: dict[str, Any], path: pathlib.Path) -> str:
  """The last lines of a run."""
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
