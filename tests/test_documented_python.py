"""The Python blocks of the docs run, and print what their pages say."""

import itertools
import re
import shutil

from conftest import PAGES
from conftest import ROOT
import documented
import made_runs
import numpy as np
import pytest
import small_networks
import stops

from skipnet_jax.training import loop

# Pages whose Python prints what they say; then the page whose two blocks
# have a test each.
PRINTING = ('docs/explain_scores.md', 'docs/tutorial_segment.md')
IN_PYTHON = 'docs/python.md'


def python_blocks(page):
  return documented.blocks(ROOT / page, 'python')


def test_python_is_run_somewhere():
  run = (*documented.OTHER_TESTS, *PRINTING, IN_PYTHON)
  for page in PAGES:
    has_python = bool(documented.blocks(page, 'python'))
    assert (documented.name_of(page) in run) >= has_python, page
  assert len(python_blocks(IN_PYTHON)) == 2


@pytest.mark.parametrize('page', PRINTING)
def test_python_prints_what_the_page_says(page, monkeypatch, capsys, tmp_path):
  stops.put(monkeypatch, stops.stack())
  monkeypatch.chdir(tmp_path)
  names = {}
  text = (ROOT / page).read_text()
  found = re.findall(r'^```(\w+)\n(.*?)^```', text, re.M | re.S)
  said = 0
  for (kind, code), after in itertools.pairwise([*found, ('', '')]):
    if kind == 'python':
      exec(code, names)
      printed = capsys.readouterr().out
      assert printed == (after[1] if after[0] == 'text' else '')
      said += bool(printed)
  assert said


def test_the_page_s_names_for_notebooks(monkeypatch, tmp_path, smoke):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(loop, 'train_and_evaluate', stops.check)
  image, label, _ = np.random.default_rng(0).random((3, 2, 64, 64))
  names = {'config': smoke(), 'label': label > 0.5}
  names['image'] = image.astype(np.float32)
  start, rest = python_blocks(IN_PYTHON)[0].split('run = ')
  exec(start, names)
  made, _ = made_runs.make_pair(tmp_path)
  shutil.copytree(made, tmp_path / 'runs/mine', dirs_exist_ok=True)
  exec(f'run = {rest}', names)
  assert names['probability'].shape == image.shape


def test_the_page_s_analysis_of_a_point():
  model = small_networks.LinearChain(depth=2)
  names = {
    'model': model,
    'variables': small_networks.draw(model, (2, 8, 8, 1)),
    'batch': small_networks.make_batch(8),
    'loss': small_networks.bce,
  }
  exec(python_blocks(IN_PYTHON)[1], names)
  assert names['found'].by_skip()
