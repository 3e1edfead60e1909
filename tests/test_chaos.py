"""tools/chaos.py with few kills: what it finds, and that it would find more."""

import ast
import json
import os
import shutil
import subprocess
import sys

from conftest import ROOT
import numpy as np
import pytest

KILLS = 5
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
      '--seed=7',
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


def differences(a, others):
  """What the tool finds; in a process of its own, for it defines flags."""
  code = (
    'import sys, pathlib, chaos; '
    'a, *others = map(pathlib.Path, sys.argv[1:]); '
    'print([chaos.differences(a, b) for b in others])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(a), *map(str, others)],
    env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tools"}'},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return ast.literal_eval(done.stdout)


def test_a_killed_run_ends_as_an_uninterrupted_one(chaos):
  folder, report = chaos
  assert report['kills'] == len(report['lives']) == KILLS
  assert report['differences'] == []
  assert report['every_record_once']
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
  assert differences(whole, (same, other, both)) == [
    [],
    ['flow'],
    ['records', 'flow'],
  ]
