"""Validates each epoch of a training with running and with batch statistics.

python tools/running_statistics.py --config=experiments/long_only.py:smoke \
  --workdir=runs/statistics --output=statistics.csv

Answers whether jumps of the validation loss come from BatchNorm's running
statistics: with the statistics of the validation slices themselves, and without
dropout, the same network then has none. --variant names one of the networks of
an experiment such as gradient_flow. Trains --workdir as `train` does.
"""

import pathlib
from typing import Any
from unittest import mock

from absl import flags
import jax
from ml_collections.config_flags import config_flags

from skipnet_jax import cli
from skipnet_jax import config_checks
from skipnet_jax import files
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import measure
from skipnet_jax.runs import run_log
from skipnet_jax.training import loop
from skipnet_jax.training import validation

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file.')
_VARIANT = flags.DEFINE_string('variant', None, 'Of config.variants, its name.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for the run.')
_OUTPUT = flags.DEFINE_string('output', None, 'CSV file, a row an epoch.')
# Of the windows, in pixels; the centres of the validation slices.
_SIDE = 256
_COLUMNS = ('epoch', 'train_bce', 'valid_bce', 'valid_batch_bce')


class _Both(validation.Validation):
  """Also computes the BCE with batch statistics."""

  def __init__(self, prepared: Any, state: Any):
    super().__init__(prepared, state)
    model = prepared.training.model.clone(axis_name=None)
    model = model.clone(dropout=0.0) if model.dropout else model
    data = prepared.data
    batch = measure.centre_batch(prepared.config, data, _SIDE, data.valid)
    self._batch_bce = jax.jit(
      lambda variables: gradient_flow.loss_at(
        model, variables, batch, measure.objective('bce'), train=True
      )
    )

  def __call__(self, state: Any) -> dict[str, float]:
    one = self._prepared.parallel.unreplicate(state)
    found = float(self._batch_bce(one.variables()))
    return super().__call__(state) | {'batch_bce': found}


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
  return [*run_log.readable_records(path).values()]


def main() -> None:
  """Trains, and writes the table."""
  config, workdir = _CONFIG.value, cli.require(_WORKDIR)
  output = pathlib.Path(cli.require(_OUTPUT))
  cli.require_config(config)
  if _VARIANT.value is not None:
    variants = config_checks.variants(config)
    if _VARIANT.value not in variants:
      cli.refuse(
        f'--variant is {_VARIANT.value!r}; give one of {", ".join(variants)}.'
      )
    config = variants[_VARIANT.value]
  files.check_outputs([output], overwrite=False, remedy='choose another name')
  if not output.parent.is_dir():
    cli.refuse(f'The folder {output.parent} of --output is missing: make it.')
  path = pathlib.Path(workdir, 'metrics.jsonl')
  if any('valid_batch_bce' not in r for r in _records(path)):
    cli.refuse(
      f'{workdir} has epochs of a training without these measurements: choose '
      'another --workdir.'
    )
  with mock.patch.object(validation, 'Validation', _Both):
    loop.train_and_evaluate(config, workdir)
  rows = [[each[name] for name in _COLUMNS] for each in _records(path)]
  files.write_csv(output, _COLUMNS, rows)


if __name__ == '__main__':
  cli.run(main, 'run the same command again to resume.')
