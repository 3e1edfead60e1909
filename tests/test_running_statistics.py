"""Validation with batch statistics, against a network's own forward pass."""

import csv
import shutil

import conftest
import jax
import numpy as np
import optax
import pytest

from skipnet_jax.analysis import measure
from skipnet_jax.runs import trained

PROGRAM = 'tools/running_statistics.py'
CONFIG = f'--config={conftest.ROOT}/experiments/gradient_flow.py:smoke'
TINY = (
  '--variant=c_long_r3',
  '--config.variants.c_long_r3.model.repetitions=(1,1,1,1,1,1,1)',
  '--config.data.slices=3',
  '--config.data.valid=1-2',
  '--config.train.batch_size=1',
)


def test_batch_statistics_are_those_of_the_validation_slices(command, tmp_path):
  run, table = tmp_path / 'run', tmp_path / 'table.csv'
  paths = f'--workdir={run}', f'--output={table}'
  done = command(PROGRAM, CONFIG, *TINY, *paths)
  assert done.code == 0, done
  with table.open() as file:
    rows = list(csv.DictReader(file))
  assert [row['epoch'] for row in rows] == ['1', '2']
  _, latest = trained.open_states(run)
  opened = trained.open_run(run)
  data = trained.load_data(opened)
  batch = measure.centre_batch(opened.config, data, 256, data.valid)
  model = opened.model.clone(dropout=0.0)
  outputs, _ = model.apply(
    latest.variables(),
    batch['image'],
    train=True,
    mutable=['batch_stats'],
  )
  expected = optax.sigmoid_binary_cross_entropy(
    outputs['logits'], np.asarray(batch['label'], np.float32)
  ).mean()
  found = float(rows[-1]['valid_batch_bce'])
  assert found == pytest.approx(float(jax.device_get(expected)), rel=1e-4)
  assert found != pytest.approx(float(rows[-1]['valid_bce']), rel=1e-3)


def test_an_unknown_variant_is_refused(command, tmp_path):
  done = command(
    PROGRAM,
    CONFIG,
    '--variant=e',
    f'--workdir={tmp_path}/run',
    f'--output={tmp_path}/t.csv',
  )
  assert done.code == 2
  assert "--variant is 'e'; give one of a_long_short_r9, b_" in done.err


def test_wrong_outputs_are_refused_before_any_training(
  command, tmp_path, finished
):
  (tmp_path / 'mine.csv').write_text('mine')
  run = tmp_path / 'run'
  (tmp_path / 'other').mkdir()
  # Of a run that `train` began.
  shutil.copy(finished[0] / 'metrics.jsonl', tmp_path / 'other')
  for workdir, output, words in (
    (run, 'mine.csv', 'mine.csv exists'),
    (run, 'no/t.csv', 'is missing: make it'),
    (tmp_path / 'other', 't.csv', 'without these measurements'),
  ):
    paths = f'--workdir={workdir}', f'--output={tmp_path / output}'
    done = command(PROGRAM, CONFIG, *TINY, *paths)
    assert done.code == 2, done
    assert words in done.err
  assert not run.exists()
  assert (tmp_path / 'mine.csv').read_text() == 'mine'
