"""A resumed run ends as an uninterrupted one, bit for bit.

Runs that are killed: test_chaos; runs that get SIGTERM: test_preemption.
"""

import itertools
import json
import os
import shutil
import time
import types

import jax
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.data import sources
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import lock
from skipnet_jax.runs import trained
from skipnet_jax.training import loop


def last_state(config, folder):
  """The latest checkpoint of a run, as numpy."""
  like = trained.build(config).abstract_state
  reader = checkpoint.Checkpoints(folder, create=False)
  warnings = []
  state, meta, _ = reader.restore_latest(like, warnings.append)
  reader.close()
  assert not warnings
  state = state.replace(key=jax.random.key_data(state.key))
  return jax.tree.map(np.asarray, state), meta


def records(folder):
  """metrics.jsonl without what a clock decides over."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  for row in rows:
    del row['seconds'], row['images_per_second']
  return rows


def assert_same(a, b):
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    np.testing.assert_array_equal(x, y, jax.tree_util.keystr(path))


@pytest.fixture(scope='module')
def four(smoke, tmp_path_factory):
  """A run of four epochs, to be copied."""
  folder = tmp_path_factory.mktemp('four') / 'run'
  loop.train_and_evaluate(smoke({'train.epochs': 4}), folder)
  return folder


def test_a_finished_run_resumes_for_more_epochs(
  smoke, finished, four, tmp_path, capsys, monkeypatch
):
  whole, config, _ = finished
  folder = shutil.copytree(four, tmp_path / 'run')
  _, before = last_state(config, folder)
  # The second process takes no time.
  clock = types.SimpleNamespace(perf_counter=lambda: 7.0)
  monkeypatch.setattr(loop, 'time', clock)
  capsys.readouterr()
  loop.train_and_evaluate(smoke({'train.epochs': 6}), folder)
  assert 'Resuming after epoch 4.' in capsys.readouterr().out
  state, after = last_state(config, folder)
  assert_same(state, last_state(config, whole)[0])
  assert records(folder) == records(whole)
  assert 0 < before['wall_seconds'] == after['wall_seconds']


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
  smoke, finished, four, tmp_path, capsys
):
  whole, config, _ = finished
  folder = shutil.copytree(four, tmp_path / 'run')
  newest = list((folder / 'checkpoints').glob('*/8'))
  assert {path.parent.name for path in newest} == {'latest', 'best'}
  for path in (file for step in newest for file in step.rglob('state/**/*')):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  capsys.readouterr()
  loop.train_and_evaluate(smoke({'train.epochs': 6}), folder)
  out = capsys.readouterr().out
  assert 'The checkpoint latest/8 is damaged' in out
  assert 'Resuming after epoch 3.' in out
  assert_same(last_state(config, folder)[0], last_state(config, whole)[0])
  assert records(folder) == records(whole)


def test_a_warm_start_resumes_without_its_source(smoke, finished, tmp_path):
  source, whole, folder = (tmp_path / name for name in ('source', 'a', 'b'))
  shutil.copytree(finished[0], source)
  changes = {'train.init_from': str(source), 'train.epochs': 2}
  config = smoke(changes)
  loop.train_and_evaluate(config, whole)
  loop.train_and_evaluate(smoke(changes | {'train.epochs': 1}), folder)
  shutil.rmtree(source)
  summary = loop.train_and_evaluate(config, folder)
  state, meta = last_state(config, folder)
  assert_same(state, last_state(config, whole)[0])
  assert records(folder) == records(whole)
  assert meta['init_from'] == summary['init_from']
  kept = [json.loads((x / 'config.json').read_text()) for x in (whole, folder)]
  assert kept[0] == kept[1]
  assert kept[0]['init_from'] == summary['init_from']
  assert summary['init_from']['path'] == str(source)


def test_checkpoints_of_another_run_are_refused(smoke, four, tmp_path):
  folder = shutil.copytree(four, tmp_path / 'run')
  path = folder / 'config.json'
  content = json.loads(path.read_text())
  content['config']['seed'] = 1
  path.write_text(json.dumps(content))
  before = (folder / 'metrics.jsonl').read_bytes()
  with pytest.raises(
    errors.InputError, match=r'another run: seed \(0, now 1\)'
  ):
    loop.train_and_evaluate(smoke({'train.epochs': 6, 'seed': 1}), folder)
  assert (folder / 'metrics.jsonl').read_bytes() == before
  assert json.loads(path.read_text()) == content


def test_checkpoints_of_other_data_are_refused(smoke, four, tmp_path):
  config = smoke({'train.epochs': 6, 'data.slices': 7, 'data.valid': '6'})
  folder = shutil.copytree(four, tmp_path / 'run')
  own = json.loads((folder / 'config.json').read_text())
  data = sources.load(config)
  own['dataset'] = data.identity()
  own['config'] = json.loads(config.to_json())
  (folder / 'config.json').write_text(json.dumps(own))
  with pytest.raises(errors.InputError, match=r'another run: .*data \(\w+-\w+'):
    loop.train_and_evaluate(config, folder)


def test_all_is_closed_if_restoring_fails(finished, monkeypatch):
  folder, config, _ = finished
  opened = []

  def fail(self, *_):
    opened.append(self)
    raise OSError('the disk is gone')

  def close(self):
    opened.remove(self)
    whole(self)

  whole = checkpoint.Checkpoints.close
  monkeypatch.setattr(checkpoint.Checkpoints, 'restore_latest', fail)
  monkeypatch.setattr(checkpoint.Checkpoints, 'close', close)
  with pytest.raises(OSError, match='the disk is gone'):
    loop.train_and_evaluate(config, folder)
  assert not opened
  # Nobody holds the folder any more.
  lock.claim(folder).close()


def test_a_clock_that_jumps_changes_nothing(
  smoke, finished, four, tmp_path, monkeypatch, capsys
):
  whole, config, _ = finished
  folder = shutil.copytree(four, tmp_path / 'run')
  # The oldest checkpoint seems the newest, and every look at the clock, from
  # any thread, is a day before or a year after the last.
  steps = sorted(
    (folder / 'checkpoints' / 'latest').iterdir(), key=lambda p: int(p.name)
  )
  assert len(steps) > 1
  for age, step in enumerate(steps):
    for path in (step, *step.rglob('*')):
      os.utime(path, (2e9 - 1e7 * age,) * 2)
  jumps, now = itertools.cycle((-86_400, 31_536_000)), time.time()
  monkeypatch.setattr(time, 'time', lambda: now + next(jumps))
  monkeypatch.setattr(time, 'time_ns', lambda: int(1e9 * (now + next(jumps))))
  capsys.readouterr()
  loop.train_and_evaluate(smoke({'train.epochs': 6}), folder)
  assert 'Resuming after epoch 4.' in capsys.readouterr().out
  monkeypatch.undo()
  assert_same(last_state(config, folder)[0], last_state(config, whole)[0])
  assert records(folder) == records(whole)
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  for row in map(json.loads, lines):
    assert 0 < row['seconds'] < 3600
    assert row['images_per_second'] > 0
