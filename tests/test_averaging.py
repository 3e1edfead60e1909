"""Predictions averaged for a study's tables."""

import json
import shutil

import pytest

from skipnet_jax.runs import trained as runs_lib
from skipnet_jax.studies import averaging
from skipnet_jax.studies import plan
from skipnet_jax.studies import results

WAYS = {'plain': {}, 'two samples': {'mc_samples': 2}, 'eight': {'tta': True}}


@pytest.fixture
def study(finished, tmp_path):
  """Two rows with the same finished run in fold 5, the first also in 4."""
  path, config, _ = finished
  folder = tmp_path / 'study'
  rows = {'a': 'a', 'b': 'b'}
  row_of = {'a_5': 'a', 'b_5': 'b', 'a_4': 'a', 'b_4': 'b'}
  for name in ('a_5', 'b_5', 'a_4'):
    shutil.copytree(path, folder / name)
  made = plan.Study(
    name='made',
    title='Made',
    rows={row: plan.Row('long_short') for row in rows},
    runs=dict.fromkeys(row_of, config),
    row_of=row_of,
    compared='v_rand',
    orderings=(),
  )
  assert set(results.read(made, folder)) == {'a_5', 'b_5', 'a_4'}
  return made, folder


def test_every_finished_run_is_scored_once_in_each_way(
  study, finished, monkeypatch
):
  study, folder = study
  averaging.measure(study, folder, WAYS, lambda _: None)
  found = json.loads((folder / 'a_4' / averaging.FILE).read_text())
  assert found.pop('checkpoint')['best_epoch'] == finished[2]['best_epoch']
  assert set(found) == set(WAYS)
  plain = found['plain']
  assert plain['v_rand'] == pytest.approx(finished[2]['v_rand'], abs=1e-4)
  assert len({row['v_info'] for row in found.values()}) == 3
  rows = averaging.table(study, folder, WAYS).rows
  assert [row[:3] for row in rows] == [
    ['a', 'plain', 2],
    ['a', 'two samples', 2],
    ['a', 'eight', 2],
    ['b', 'plain', 1],
    ['b', 'two samples', 1],
    ['b', 'eight', 1],
  ]
  assert rows[3][3] == f'{plain["v_rand"]:.4f}'

  def refuse(_):
    raise AssertionError('nothing is to be done')

  monkeypatch.setattr(runs_lib, 'open_run', refuse)
  averaging.measure(study, folder, WAYS, lambda _: None)
  assert averaging.table(study, folder, WAYS).rows == rows


def test_scores_of_an_earlier_checkpoint_are_made_again(study):
  study, folder = study
  averaging.measure(study, folder, {'plain': {}}, lambda _: None)
  file = folder / 'a_4' / averaging.FILE
  right = json.loads(file.read_text())
  summary = results.read(study, folder)['a_4']
  for change in ({'best_epoch': 99}, {'best_val_bce': 0.123}):
    old = right['checkpoint'] | change
    file.write_text(json.dumps({'plain': {'v_rand': 9}, 'checkpoint': old}))
    averaging.measure(study, folder, {'plain': {}}, lambda _: None)
    assert json.loads(file.read_text()) == right
  assert averaging.kept(file, summary) == right
  file.write_text(json.dumps({'plain': {'v_rand': 9}}))
  assert 'plain' not in averaging.kept(file, summary)
