"""Speed of a study's rows: what is timed, and what the table says of it."""

import dataclasses
import json
import pathlib

import pytest

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.benchmarking.timing import turns
from skipnet_jax.models import layer_table
from skipnet_jax.studies import plan
from skipnet_jax.studies import speed

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'


@pytest.fixture(scope='module')
def study():
  """Two rows with two seeds each."""
  whole = plan.make('table_3', 'smoke', 2, EXPERIMENTS)
  rows = ('short only', 'neither')
  runs = {n: c for n, c in whole.runs.items() if whole.row_of[n] in rows}
  for config in runs.values():
    config.model.blocks = 'simple'
    config.model.base_width = 2
    config.model.repetitions = (1,) * 7
    config.model.batch_norm = False
    config.model.dropout = 0.0
  return dataclasses.replace(
    whole,
    rows={label: whole.rows[label] for label in rows},
    runs=runs,
    row_of={name: whole.row_of[name] for name in runs},
  )


def test_a_step_of_every_row_is_timed_in_every_round(study, tmp_path):
  speed.write(tmp_path / 'study', speed.measure(study, 3, lambda _: None))
  found = json.loads((tmp_path / 'study' / speed.FILE).read_text())
  assert list(found['rows']) == ['short only', 'neither']
  assert found['rounds'] == 3
  for name in ('short_only_0', 'neither_0'):
    config = study.runs[name]
    row = found['rows'][study.row_of[name]]
    assert row['error'] is None
    assert row['first_call_s'] > max(row['seconds']) > 0
    assert len(row['seconds']) == 3
    assert row['batch'] == config.train.batch_size
    model = models.build_model(config.model)
    size = (config.data.size,) * 2
    table = layer_table.layer_table(model, model.input_shape(size))
    assert row['flops'] == row['batch'] * flops.training(table)
  # Round by round over the first row.
  pairs = zip(*(r['seconds'] for r in found['rows'].values()), strict=True)
  ratios = [b / a for a, b in pairs]
  assert found['rows']['neither']['against']['pairs'] == pytest.approx(ratios)
  assert len(speed.table(found).rows) == 2


def made(**rows):
  """As `measure` gives it, of rows given as batch, FLOPs and seconds."""
  found = {}
  first = next(iter(rows.values()))
  for label, (batch, count, seconds) in rows.items():
    row = {'first_call_s': 9.0, 'error': None, 'batch': batch, 'flops': count}
    if seconds is None:
      row |= {'first_call_s': None, 'error': 'out of memory'}
    else:
      row['seconds'] = seconds
      if first[2] is not None:
        row['against'] = turns.ratio(seconds, first[2])
    found[label] = row
  return {'device': 'cpu', 'cpu_cores': 2, 'rounds': 3, 'rows': found}


def test_images_a_second_are_compared_and_not_seconds():
  # Half the images in a quarter, a half and a third of the time.
  table = speed.table(
    made(a=(4, 8e9, [2.0, 2.0, 3.0]), b=(2, 6e9, [0.5, 1.0, 1.0]))
  )
  assert table.rows == [
    ['a', '8', '2', '1 (1 to 1)', '4'],
    ['b', '6', '2', '1.5 (1.2 to 1.71)', '6'],
  ]
  assert "over a's" in table.columns
  assert '3 rounds' in table.text


def test_a_failed_row_is_named_and_the_others_are_shown():
  table = speed.table(made(a=(1, 8e9, None), b=(2, 6e9, [0.5, 1.0, 1.0])))
  assert table.rows == [
    ['a', 'failed: out of memory', '-', '-', '-'],
    ['b', '6', '2', '-', '6'],
  ]


def test_no_round_is_refused_before_anything_is_compiled(study):
  said = []
  with pytest.raises(errors.InputError, match='rounds is 0'):
    speed.measure(study, 0, said.append)
  assert not said
