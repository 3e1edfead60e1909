"""tools/chaos.py with few kills: what it finds, and that it would find more."""

import json
import os
import shutil
import subprocess
import sys

from conftest import ROOT
from conftest import tool
import numpy as np
import pytest

differences = tool('compare_runs').differences
KILLS = 4
# What one life compiled, however small, the next ones need not.
KEEP_ALL = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


@pytest.fixture(scope='module')
def chaos(tmp_path_factory):
  """The folder of a run that was killed, and its report."""
  folder = tmp_path_factory.mktemp('chaos') / 'work'
  done = subprocess.run(
    [
      sys.executable,
      str(ROOT / 'tools' / 'chaos.py'),
      f'--kills={KILLS}',
      '--seed=119105',
      f'--workdir={folder}',
    ],
    env=os.environ | {'PYTHONPATH': str(ROOT)} | KEEP_ALL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
  return folder, json.loads((folder / 'chaos.json').read_text())


def test_a_killed_run_ends_as_an_uninterrupted_one(chaos):
  folder, report = chaos
  assert report['kills'] == len(report['lives']) == KILLS
  assert report['differences'] == []
  assert report['every_record_once']
  # One of each kind that is about what is lost.
  assert report['damages'] == {
    'links planted': 1,
    'newest checkpoint damaged': 1,
    'metrics.jsonl with a damaged line': 1,
    'checkpoints lost': 1,
  }
  assert report['lives'][2]['fell_back']
  lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
  epochs = [json.loads(line)['epoch'] for line in lines]
  assert epochs == list(range(1, report['epochs'] + 1))


def test_differences_are_seen(chaos, tmp_path):
  whole = chaos[0] / 'whole'
  same = shutil.copytree(whole, tmp_path / 'same')
  other = shutil.copytree(whole, tmp_path / 'other')
  path = other / 'gradient_flow.npz'
  with np.load(path, allow_pickle=False) as file:
    arrays = {name: file[name] for name in file}
  arrays['net_change'][0, 0] *= 1.0001
  np.savez_compressed(path, **arrays)
  both = shutil.copytree(other, tmp_path / 'both')
  path = both / 'metrics.jsonl'
  path.write_text(path.read_text().split('\n', 1)[1])
  assert [differences(whole, x) for x in (same, other, both)] == [
    [],
    ['flow'],
    ['records', 'flow'],
  ]


def test_messages_that_the_disk_denies_are_seen(tmp_path):
  code = (
    'import sys, pathlib, chaos; from skipnet_jax import errors\n'
    'run = chaos.Chaos(pathlib.Path(sys.argv[1]), 0)\n'
    'log = run.folder / "log"\n'
    'for text in sys.argv[2:]:\n'
    '  run.damaged = {12}\n'
    '  log.write_text(text)\n'
    '  try: print(run.check_saved(log, run.resumable()))\n'
    '  except errors.RunError as e: print(str(e).partition(": ")[2])'
  )
  for step in ('latest/10', 'latest/12', 'best/8', 'latest/14.orbax-tmp'):
    (tmp_path / 'checkpoints' / step).mkdir(parents=True)
  texts = (
    'Resuming after epoch 5.\nStopped by SIGTERM after epoch 6 and 0 steps. ',
    'Resuming after epoch 5.\nStopped by SIGTERM after epoch 6 and 1 steps. ',
    'Resuming after epoch 4.\n',
    'banner\nepoch    1  loss',
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path), *texts],
    env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tools"}'},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  newest = 'the newest checkpoint on the disk is of step 12; '
  assert done.stdout.splitlines() == [
    'None',
    f'{newest}resumed from 10, said to have saved 13.',
    'resumed from step 8; expected one of [10].',
    'resumed from step 0; expected one of [10].',
  ]
