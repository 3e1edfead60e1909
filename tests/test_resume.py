"""A run that was killed ends as one left alone, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from conftest import ROOT
from conftest import SHORT
import jax
import numpy as np
import pytest

from skipnet_jax import models
from skipnet_jax.training import checkpoint
from skipnet_jax.training import loop
from skipnet_jax.training import optim
from skipnet_jax.training import state as state_lib

EPOCHS = 6


def last_state(config, folder):
  """The latest checkpoint of a run, as numpy."""
  optimizer = optim.make_optimizer(
    config.optim, optim.make_schedule(config.optim, 2, config.train.epochs)
  )
  like = state_lib.create_state(
    models.build_model(config.model), optimizer, config.seed
  )
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


def start(folder):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'skipnet_jax.train',
      '--config=experiments/long_short.py:smoke',
      f'--workdir={folder}',
      f'--config.train.epochs={EPOCHS}',
      *(f'--config.{name}={value}' for name, value in SHORT.items()),
    ],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def kill_after(process, folder, step):
  """Kills the process once a checkpoint of that step or later is there."""
  latest = folder / 'checkpoints' / 'latest'

  def saved():
    names = [p.name for p in latest.iterdir()] if latest.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)

  begin = time.monotonic()
  while saved() < step:
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < begin + 240
    time.sleep(0.002)
  os.kill(process.pid, signal.SIGKILL)
  out = process.communicate()[0]
  assert process.returncode == -signal.SIGKILL, out
  return out


def test_killed_twice_ends_bit_for_bit_as_one_left_alone(finished, tmp_path):
  whole, config, _ = finished
  folder = tmp_path / 'run'
  kill_after(start(folder), folder, 2)
  assert 'Resuming' in kill_after(start(folder), folder, 6)
  last = start(folder)
  out = last.communicate(timeout=240)[0]
  assert last.returncode == 0, out
  (state, meta), (want, whole_meta) = (
    last_state(config, folder),
    last_state(config, whole),
  )
  assert int(state.step) == EPOCHS * 2
  assert_same(state, want)
  assert [row['epoch'] for row in records(folder)] == [*range(1, EPOCHS + 1)]
  assert records(folder) == records(whole)
  for name in ('epoch', 'step', 'best_epoch', 'best_loss'):
    assert meta[name] == whole_meta[name]
  # What a clock or another folder decides over is left out.
  summaries = [
    json.loads((f / 'summary.json').read_text()) for f in (folder, whole)
  ]
  for summary in summaries:
    del summary['seconds'], summary['images_per_second']
  assert summaries[0] == summaries[1]


@pytest.fixture(scope='module')
def four(smoke, tmp_path_factory):
  """A run of four epochs, to be copied."""
  folder = tmp_path_factory.mktemp('four') / 'run'
  loop.train_and_evaluate(smoke({'train.epochs': 4}), folder)
  return folder


def test_more_epochs_go_on_where_a_finished_run_ended(
  smoke, finished, four, tmp_path, capsys
):
  whole, config, _ = finished
  folder = shutil.copytree(four, tmp_path / 'run')
  capsys.readouterr()
  loop.train_and_evaluate(smoke({'train.epochs': 6}), folder)
  assert 'Resuming after epoch 4.' in capsys.readouterr().out
  assert_same(last_state(config, folder)[0], last_state(config, whole)[0])
  assert records(folder) == records(whole)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
  smoke, finished, four, tmp_path, capsys
):
  whole, config, _ = finished
  folder = shutil.copytree(four, tmp_path / 'run')
  latest = folder / 'checkpoints' / 'latest' / '8'
  assert latest.is_dir()
  for path in (latest / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  capsys.readouterr()
  loop.train_and_evaluate(smoke({'train.epochs': 6}), folder)
  out = capsys.readouterr().out
  assert 'The checkpoint of step 8 is damaged' in out
  assert 'Resuming after epoch 3.' in out
  assert_same(last_state(config, folder)[0], last_state(config, whole)[0])
  assert records(folder) == records(whole)


def test_a_run_goes_on_with_other_devices_and_from_the_host(
  smoke, finished, four, tmp_path, capsys
):
  whole, config, _ = finished
  folder = shutil.copytree(four, tmp_path / 'run')
  pmap = {'train.epochs': 5, 'parallel.mode': 'pmap', 'parallel.devices': 4}
  loop.train_and_evaluate(smoke(pmap), folder)
  sharded = {
    'train.epochs': 6,
    'parallel.mode': 'sharded',
    'parallel.devices': 2,
    'data.device_share': 1e-9,
  }
  loop.train_and_evaluate(smoke(sharded), folder)
  out = capsys.readouterr().out
  assert 'devices: 4 x cpu, mode pmap' in out
  assert 'devices: 2 x cpu, mode sharded' in out
  assert 'The data set stays on the host' in out
  (state, _), (want, _) = last_state(config, folder), last_state(config, whole)
  assert int(state.step) == int(want.step)
  for a, b in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(want.params), strict=True
  ):
    # RMSprop divides by small gradients, and their rounding.
    np.testing.assert_allclose(a, b, atol=1e-4)
