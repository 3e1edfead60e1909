"""Studies: their runs, their budget, and what their tables say."""

import csv
import json
import math
import pathlib

import numpy as np
import pytest

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax.runs import run_log
from skipnet_jax.studies import plan
from skipnet_jax.studies import results
from skipnet_jax.studies import runner
from skipnet_jax.studies import segmentation

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'


def study_of(name, repeats=2, scale='smoke'):
  return plan.make(name, scale, repeats, EXPERIMENTS)


@pytest.mark.parametrize('scale', ['small', 'paper', 'smoke'])
@pytest.mark.parametrize('name', plan.NAMES)
def test_every_study_can_be_planned_at_every_scale(name, scale):
  study = study_of(name, 2, scale)
  assert len(study.runs) == 2 * len(study.rows)
  assert set(study.row_of.values()) == set(study.rows)
  hashes = {config_identity.hash_of(config) for config in study.runs.values()}
  assert len(hashes) == len(study.runs)
  for better, worse in study.orderings:
    assert {better, worse} <= set(study.rows)


def test_seeds_come_one_after_the_other_and_folds_begin_with_the_papers():
  study = study_of('table_3', 3)
  seeds = [config.seed for config in study.runs.values()]
  assert seeds == [0] * 4 + [1] * 4 + [2] * 4
  networks = {
    (config.model.long_skips, config.model.short_skips)
    for config in study.runs.values()
  }
  assert len(networks) == 4
  folds = study_of('table_2', 6)
  assert [c.data.valid for c in folds.runs.values()][:2] == ['fold:5/6'] * 2
  assert {c.data.valid for c in folds.runs.values()} == {
    f'fold:{k}/6' for k in range(6)
  }
  with pytest.raises(errors.InputError, match='6 folds'):
    study_of('table_2', 7)


def test_what_differs_between_rows_is_the_rows_subject():
  study = study_of('gates', 1, 'paper')
  differences = config_identity.varied(list(study.runs.values()))
  assert list(differences) == ['model.gates']
  study = study_of('table_3', 1, 'small')
  differences = config_identity.varied(list(study.runs.values()))
  assert set(differences) == {'model.long_skips', 'model.short_skips'}


def write_run(folder, study, name, epochs, loss, summary=True):
  """A run's files after some epochs, without any training."""
  path = folder / name
  path.mkdir(parents=True)
  records = [
    dict.fromkeys(run_log.FIELDS, epoch)
    | {
      'seconds': 3.0,
      'train_loss': 2 * loss + 1 / epoch,
      'valid_loss': loss + 1 / epoch,
      'train_bce': 2 * loss + 1 / epoch,
      'valid_bce': loss + 1 / epoch,
      'train_accuracy': 0.5,
      'valid_accuracy': 0.6,
    }
    for epoch in range(1, epochs + 1)
  ]
  lines = [json.dumps(record) + '\n' for record in records]
  (path / 'metrics.jsonl').write_text(''.join(lines))
  if summary:
    found = dict.fromkeys(results.SCORES, loss)
    found |= {'epochs': epochs, 'parameters': 7, 'dataset': 'made'}
    found |= {'seconds': 3.0 * epochs, 'experiment': study.row_of[name]}
    (path / 'summary.json').write_text(json.dumps(found))
    (path / 'environment.json').write_text('{"date": "today", "git": "abc"}')


LOSSES = {
  'long_and_short': (0.1, 0.2),
  'short_only': (0.3, 0.3),
  'long_only': (0.05, 0.4),
}


@pytest.fixture
def half_done(tmp_path):
  """table_3 with two seeds, of which `neither` has not begun."""
  study = study_of('table_3', 2)
  for label, losses in LOSSES.items():
    for seed, loss in enumerate(losses):
      write_run(tmp_path, study, f'{label}_{seed}', 2, loss)
  write_run(tmp_path, study, 'neither_0', 1, 0.5, summary=False)
  return study, tmp_path


def test_status_tells_what_is_left_and_how_long(half_done):
  study, folder = half_done
  rows = {row.name: row for row in runner.progress(study, folder)}
  assert rows['short_only_1'].finished
  assert (rows['neither_0'].done, rows['neither_0'].epochs) == (1, 2)
  assert not rows['neither_1'].done
  left = runner.estimate(study, list(rows.values()))
  assert left['neither_0'] == 3.0
  assert left['neither_1'] == 6.0
  assert left['short_only_0'] == 0
  text = runner.format_status(study, folder)
  assert '6 of 8 runs are done; about 0 min of training are left' in text
  assert 'begun' in text


def test_nothing_is_known_before_the_first_epoch(tmp_path):
  study = study_of('table_3', 1)
  assert 'not known yet' in runner.format_status(study, tmp_path)


def test_scores_have_mean_least_and_most(half_done):
  study, folder = half_done
  table = results.score_table(study, results.read(study, folder))
  rows = {row[0]: row for row in table.rows}
  assert set(rows) == {'long and short', 'short only', 'long only'}
  loss = table.columns.index('validation loss')
  assert rows['long and short'][loss] == '0.1500 (0.1000 to 0.2000)'
  assert rows['long and short'][table.columns.index('runs')] == 2
  published = table.columns.index('published validation loss')
  assert rows['long and short'][published] == '.162'


def test_orderings_are_judged_seed_by_seed(half_done):
  study, folder = half_done
  table = results.ordering_table(study, results.read(study, folder))
  rows = {row[0]: row[1:] for row in table.rows}
  assert rows['long and short beats short only'][:2] == ['2 of 2', '-0.1500']
  assert rows['long and short beats long only'][0] == '1 of 2'
  assert 'long and short beats neither' not in rows


def test_every_row_is_drawn_in_a_colour_of_its_own(tmp_path):
  study = study_of('systems', 1)
  rows = list(study.rows)
  assert len(rows) == 14
  for loss, name in enumerate(study.runs):
    write_run(tmp_path, study, name, 2, loss)
  made = results.curves(study, tmp_path)
  drawn = []
  for ax in made.figure.axes:
    lines = [x for x in ax.get_lines() if not x.get_label().startswith('_')]
    names = [line.get_label() for line in lines]
    assert names[0] == rows[0]
    assert len({line.get_color() for line in lines}) == len(names)
    drawn += names[1:]
    # The median of one run is that run: its loss, plus one over the epoch.
    if 'accuracy' not in ax.get_ylabel():
      for line in lines:
        loss = rows.index(line.get_label())
        np.testing.assert_allclose(line.get_ydata(), [loss + 1, loss + 0.5])
  assert sorted(drawn) == sorted(2 * rows[1:])
  # Losses differ, so all are compared in BCE; each row once.
  assert len(made.rows) == len(rows) * 4 * 2


def test_segmentations_are_compared_run_by_run(tmp_path):
  study = study_of('recipe', 2)
  ways = segmentation.WAYS[2], segmentation.WAYS[7]
  assert ways == ('multicut', 'multicut, 8 orientations')
  for label, values in {'base': (0.5, 0.7), 'EMA': (0.6, 0.6)}.items():
    for fold, value in zip((5, 4), values, strict=True):
      path = tmp_path / f'{label}_{fold}'
      path.mkdir()
      scores = {way: {'v_rand': value, 'v_info': 0.9} for way in ways}
      (path / segmentation.FILE).write_text(json.dumps(scores))
  table = segmentation.table(study, tmp_path)
  assert [row[:2] for row in table.rows] == [
    [label, way] for label in ('base', 'EMA') for way in ways
  ]
  assert table.rows[2][2:] == [
    *(2, '0.6000 (0.6000 to 0.6000)', '1 of 2'),
    *('0.9000 (0.9000 to 0.9000)', '0 of 2'),
  ]
  assert table.rows[0][4] == '-'


def test_the_paired_test_is_student_s():
  a, b = [0.10, 0.22, 0.31], [0.15, 0.25, 0.41]
  found = results.paired(a, b, lower=True)
  d = np.subtract(a, b)
  t = d.mean() / (d.std(ddof=1) / math.sqrt(3))
  # The t distribution with two degrees of freedom in closed form.
  assert found['p'] == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))
  assert found['wins'] == 3
  assert found['difference'] == pytest.approx(-0.06)
  assert results.paired(a, b, lower=False)['p'] == pytest.approx(1 - found['p'])
  assert math.isnan(results.paired([1.0], [2.0], lower=True)['p'])


def test_the_folder_of_results_holds_all(half_done, tmp_path):
  study, folder = half_done
  output = tmp_path / 'out'
  text = results.write(study, folder, output)
  assert '| long and short | .162 | .163 | 7 | 2 |' in text
  assert {p.name for p in output.iterdir()} >= {
    'report.html',
    'table.md',
    'table.csv',
    'runs.json',
    'curves.png',
    'curves.csv',
  }
  with (output / 'table.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert rows[0]['run'] == 'long_and_short_0'
  assert len(rows) == 6
  kept = json.loads((output / 'runs.json').read_text())
  assert set(kept['configs']) == set(study.runs)
  assert kept['trained_by']['short_only_1'] == {'date': 'today', 'git': 'abc'}
  # Again over what is there.
  assert results.write(study, folder, output) == text


def test_a_budget_ends_a_run_and_the_next_call_goes_on(drawn, tmp_path):
  study = study_of('table_3', 1)
  for name in ('long_only_0', 'neither_0'):
    del study.runs[name]
  for config in study.runs.values():
    config.model.blocks = 'simple'
    config.model.base_width = 2
    config.model.repetitions = (1,) * 7
    config.model.dropout = 0.0
    config.data.augment.update(flip=False, rotation=0.0, shear=0.0, warp=0.0)
    config.log.tensorboard = False
  said = []
  ticks = iter(range(10**6))
  # Three looks at the clock before the first run, then one after each step.
  assert not runner.train(
    study, tmp_path, budget=5.0, say=said.append, clock=lambda: next(ticks)
  )
  assert 'Stopped as its time is over after epoch' in said[-1]
  assert not (tmp_path / 'long_and_short_0' / 'summary.json').exists()
  assert runner.train(study, tmp_path, budget=None, say=said.append)
  assert len(results.read(study, tmp_path)) == 2
  before = (tmp_path / 'short_only_0' / 'summary.json').stat().st_mtime_ns
  assert runner.train(study, tmp_path, budget=None, say=said.append)
  after = (tmp_path / 'short_only_0' / 'summary.json').stat().st_mtime_ns
  assert before == after
