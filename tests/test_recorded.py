"""Runs' records, and which runs may be compared."""

import json
import shutil

import made_runs
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import recorded
from skipnet_jax.step import telemetry


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """Two runs that differ in their networks alone."""
  return made_runs.make_pair(tmp_path_factory.mktemp('recorded'))


@pytest.fixture
def copies(pair, tmp_path):
  """The pair, to be spoilt."""
  return [shutil.copytree(path, tmp_path / path.name) for path in pair]


def edit_config(path, change):
  content = json.loads((path / 'config.json').read_text())
  change(content)
  (path / 'config.json').write_text(json.dumps(content))


def test_a_run_is_read_as_it_was_written(finished):
  path, config, summary = finished
  run = recorded.open_run(path)
  assert run.name == path.name
  assert run.epochs == config.train.epochs
  assert run.summary['v_rand'] == summary['v_rand']
  assert run.config.model.base_width == config.model.base_width
  assert run.layers[0] == 'down_1'
  assert run.layers[-1] == 'classifier'
  for q in telemetry.QUANTITIES:
    assert run.flow[q].shape == (run.epochs, len(run.layers))
    assert (run.flow[q] > 0).all()
  losses = [r['valid_loss'] for r in run.records]
  np.testing.assert_array_equal(run.curve('valid_loss'), losses)


def test_networks_may_differ_and_interrupted_runs_are_read(pair, copies):
  runs = recorded.open_runs(pair)
  assert [run.name for run in runs] == ['both', 'long']
  assert runs[0].summary == {}
  # Cut off between the two files: the epoch that both know is the last.
  records = copies[0] / 'metrics.jsonl'
  lines = records.read_text().splitlines(keepends=True)
  records.write_text(''.join(lines[:-1]))
  assert recorded.open_run(copies[0]).epochs == len(lines) - 1
  # The first record is lost: the others keep their epochs.
  whole = recorded.open_run(copies[1])
  records = copies[1] / 'metrics.jsonl'
  lines = records.read_text().splitlines(keepends=True)
  records.write_text(''.join(lines[1:]))
  rest = recorded.open_run(copies[1])
  assert rest.records == whole.records[1:]
  assert rest.epochs == whole.epochs
  losses = whole.curve('valid_loss')
  losses[0] = np.nan
  np.testing.assert_array_equal(rest.curve('valid_loss'), losses)
  for name, rows in rest.flow.items():
    np.testing.assert_array_equal(rows, whole.flow[name])


def test_runs_of_the_same_name_are_named_by_their_paths(pair, copies):
  runs = recorded.open_runs([pair[0], copies[0]])
  assert [run.name for run in runs] == [str(pair[0]), str(copies[0])]


def refusal(paths, **options):
  with pytest.raises(errors.InputError) as caught:
    recorded.open_runs(paths, **options)
  return str(caught.value)


def test_no_run_one_run_and_one_run_twice_are_refused(pair):
  assert 'names no run;' in refusal([])
  assert f'names 1 run ({pair[0]})' in refusal(pair[:1])
  assert f'{pair[0]} twice' in refusal([pair[0], pair[1], pair[0]])


def test_folders_without_records_are_refused(pair, copies, tmp_path):
  assert 'config.json does not exist' in refusal([pair[0], tmp_path])
  (copies[0] / 'gradient_flow.npz').unlink()
  assert 'has no gradient_flow.npz' in refusal([pair[0], copies[0]])
  (copies[1] / 'metrics.jsonl').write_text('')
  assert 'stopped after 0 epochs' in refusal([pair[0], copies[1]])


def test_damaged_records_are_refused(pair, copies):
  file = copies[0] / 'gradient_flow.npz'
  file.write_bytes(file.read_bytes()[:100])
  assert 'gradient_flow.npz is damaged' in refusal([pair[0], copies[0]])
  (copies[1] / 'metrics.jsonl').write_text('{"epoch": 1')
  assert 'metrics.jsonl is damaged' in refusal([pair[0], copies[1]])


def test_other_data_or_settings_are_named_and_may_be_allowed(pair, copies):
  edit_config(copies[0], lambda c: c['dataset'].update(fingerprint='other'))
  message = refusal([pair[0], copies[0]])
  assert 'data set fingerprint (' in message
  assert " and 'other')" in message

  def change(content):
    content['config']['optim'].update(learning_rate=0.5)
    content['config']['train'].update(loss='dice')

  edit_config(copies[1], change)
  message = refusal([pair[1], copies[1]])
  assert 'optim.learning_rate (0.001 and 0.5)' in message
  assert "train.loss ('bce' and 'dice')" in message
  assert '--allow_differences' in message
  assert (
    len(recorded.open_runs([pair[0], *copies], allow_differences=True)) == 3
  )


def test_seeds_are_runs_on_the_same_data(pair, copies):
  edit_config(copies[0], lambda c: c['config'].update(seed=1))
  runs = recorded.open_runs([pair[0], copies[0]])
  assert len(recorded.by_network(runs)) == 1
  edit_config(copies[0], lambda c: c['dataset'].update(fingerprint='other'))
  runs = recorded.open_runs([pair[0], copies[0]], allow_differences=True)
  assert len(recorded.by_network(runs)) == 2


def test_runs_of_different_length_are_refused(pair, copies):
  made_runs.add_records(copies[1], epochs=2)
  assert 'epochs recorded (4 and 2)' in refusal([pair[0], copies[1]])


def test_the_net_change_is_that_of_two_checkpoints(smoke, tmp_path):
  """Against the checkpoints after the last two epochs of a run."""
  from skipnet_jax.training import loop

  config = smoke({'train.epochs': 3})
  loop.train_and_evaluate(config, tmp_path / 'run')
  with loop.open_run(config, tmp_path / 'run') as run:
    like = run.state
  found = recorded.open_run(tmp_path / 'run')
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run', create=False)
  latest, *_ = checkpoints.restore_latest(like, lambda _: None)
  steps = sorted((tmp_path / 'run/checkpoints/latest').iterdir())
  shutil.rmtree(steps[-1])
  shutil.rmtree(tmp_path / 'run/checkpoints/best')
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run', create=False)
  before, meta, _ = checkpoints.restore_latest(like, lambda _: None)
  checkpoints.close()
  assert meta['epoch'] == 2
  for i, layer in enumerate(found.layers):
    new, old = (
      np.asarray(telemetry.kernel(state.params.tree(), layer), np.float64)
      for state in (latest, before)
    )
    expected = np.abs(new - old).mean()
    assert expected > 0
    assert found.flow['net_change'][-1, i] == pytest.approx(expected, rel=1e-5)
