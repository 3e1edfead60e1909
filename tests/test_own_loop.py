"""The loop of docs/own_loop.md trains as `skipnet_jax.train` does."""

import re

import conftest

import skipnet_jax
from skipnet_jax.runs import run_log

PAGE = conftest.ROOT / 'docs/own_loop.md'
MOST_LINES = 60


def code():
  return '\n'.join(re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S))


def test_is_short():
  assert len([line for line in code().splitlines() if line]) <= MOST_LINES


def test_losses_are_those_of_train(monkeypatch, capsys, tmp_path):
  monkeypatch.chdir(conftest.ROOT)
  found = {}
  exec(compile(code(), PAGE, 'exec'), found)
  history = found['history']
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == len(history) == found['config'].train.epochs
  assert printed[0].startswith(f'epoch 1: loss {history[0][0]:.4f}')

  config = found['config'].copy_and_resolve_references()
  config.log.tensorboard = False
  skipnet_jax.train(config, tmp_path / 'run')
  records = run_log.read_records(tmp_path / 'run/metrics.jsonl')
  expected = [(r['train_loss'], r['valid_loss']) for r in records]
  assert [(float(t), float(v)) for t, v in history] == expected
