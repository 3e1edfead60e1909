"""What a run shows at its end and on the way: pictures and a summary."""

import math
import pathlib
from typing import Any

import jax
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import plots
from skipnet_jax.data import sources
from skipnet_jax.data import volume
from skipnet_jax.prediction import gate_maps
from skipnet_jax.prediction import inference
from skipnet_jax.runs import run_log


def banner(run: Any) -> str:
  """The lines that begin a run: what is trained, on what.

  Args:
    run: a `loop.Run`.
  """
  c, p, pipe = run.config, run.parallel, run.pipeline
  # A backward pass does twice the work of a forward pass.
  flops = 3 * pipe.batch_size * sum(row.flops for row in run.training.table)
  lines = [
    f'{c.experiment or c.model.name}: {c.model.name}, '
    f'{len(run.training.kernels)} convolutions, '
    f'{run.training.parameters:,} parameters, {c.model.dtype}',
    f'data:    {run.data.name}, {len(pipe.train)} slices to train, '
    f'{len(pipe.valid)} to validate, examples '
    f'{pipe.window[0]}x{pipe.window[1]}',
    f'devices: {len(p.devices)} x {p.devices[0].device_kind}, mode {p.mode}'
    + (f', {jax.process_count()} processes' if p.mode == 'sharded' else ''),
    f'step:    batch {pipe.batch_size}, {c.train.loss}, {c.optim.name}, '
    f'about {flops / 1e9:,.3g} GFLOPs; {pipe.steps_per_epoch} steps an '
    f'epoch, {c.train.epochs} epochs',
    f'workdir: {run.path} (config {config_identity.hash_of(c)})',
    f'To beat: validation BCE {run.constant_bce:.4f} of predicting '
    "the validation slices' share of membrane everywhere",
  ]
  more = filter(None, [run.data.warning, run.data.remedy])
  return '\n'.join([*lines, *more])


def losses(run: Any, meta: dict[str, Any]) -> dict[str, Any]:
  """The part of summary.json that the best checkpoint's `meta` tells."""
  record = meta['best_record']
  return {
    'experiment': run.config.experiment or run.config.model.name,
    'dataset': run.data.name,
    'parameters': run.training.parameters,
    'epochs': run.meta['epoch'],
    'best_epoch': meta['best_epoch'],
    'best_val_loss': record['valid_loss'],
    'best_val_loss_with_l2': record['valid_loss_with_l2'],
    'best_val_bce': record['valid_bce'],
    'constant_val_bce': run.constant_bce,
    'train_loss_at_best': record['train_loss'],
    'train_loss_with_l2_at_best': record['train_loss_with_l2'],
  }


def scores(run: Any, found: dict[str, Any]) -> dict[str, Any]:
  """The part that `run_predictor.score_slices` and the clock tell."""
  records = run_log.read_records(run.path / 'metrics.jsonl')
  rates = [record['images_per_second'] for record in records]
  part = {
    'v_rand': found['v_rand'],
    'v_info': found['v_info'],
    'threshold_v_rand': found['threshold_v_rand'],
    'seconds': round(run.meta['seconds'], 3),
    'images_per_second': float(np.median(rates)),
  }
  if run.data.warning:
    part['warning'] = run.data.warning
  return part


def constant_bce(data: sources.DataSet) -> float:
  """BCE, in nats, of predicting the validation slices' own share everywhere."""
  p = float(np.mean([data.label[z].mean() for z in data.valid]))
  return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def side_by_side(
  image: np.ndarray, label: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
  """Image, label and prediction, each `[y, x]`, as one `[y, 3x+8]` uint8."""
  gap = np.full((image.shape[0], 4), 1.0)
  row = np.hstack(
    [plots.stretch(image), gap, label.astype(float), gap, prediction]
  )
  return np.round(255 * row).astype(np.uint8)


def has_samples(folder: pathlib.Path, name: str, data: sources.DataSet) -> bool:
  """Whether `write_samples` has ended there under this name."""
  return (folder / f'{name}_slice_{data.valid[0]:03d}.png').exists()


def write_samples(
  folder: pathlib.Path,
  name: str,
  predictor: inference.Predictor,
  data: sources.DataSet,
  count: int,
  step: int,
  log: run_log.RunLog,
) -> None:
  """Writes `side_by_side` of the first `count` validation slices as PNG.

  And, for a network with pixel gates, what they let through; for one with a
  normaliser, the slice beside what that makes of it.
  """
  folder.mkdir(exist_ok=True)
  tiling = predictor.tiling(data.image.shape[1:], say=log.say)
  # The first slice's picture comes last: see `has_samples`.
  for z in reversed(data.valid[:count]):
    pages = data.around(z, predictor.slices)
    masks = predictor.gates(pages)
    if masks:
      picture = gate_maps.gate_panel(data.image[z], masks)
      volume.write_png(folder / f'{name}_slice_{z:03d}_gates.png', picture)
      log.picture(f'gates_{z:03d}', picture, step)
    normalised = predictor.normalised(pages)
    if normalised is not None:
      both = [plots.stretch(p) for p in (data.image[z], normalised)]
      picture = np.round(255 * np.hstack(both)).astype(np.uint8)
      path = folder / f'{name}_slice_{z:03d}_normalised.png'
      volume.write_png(path, picture)
      log.picture(f'normalised_{z:03d}', picture, step)
    mean, _ = predictor(pages, tiling)
    picture = side_by_side(data.image[z], data.label[z], mean)
    volume.write_png(folder / f'{name}_slice_{z:03d}.png', picture)
    log.picture(f'slice_{z:03d}', picture, step)


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
