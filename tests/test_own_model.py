"""docs/own_model.md: its files and commands, run as a user would."""

import csv
import os
import re
import shutil
import subprocess
import sys

from conftest import ROOT
import jax
import numpy as np
import tifffile

from skipnet_jax.analysis import measure

PAGE = (ROOT / 'docs' / 'own_model.md').read_text()


def test_the_page_s_network_trains_is_analysed_and_predicts(
  command, monkeypatch, tmp_path
):
  files = re.findall(
    r'^`(\w+\.py)`:\n\n```python\n(.*?)^```', PAGE, re.M | re.S
  )
  assert [name for name, _ in files] == ['my_nets.py', 'my_experiment.py']
  for name, text in files:
    (tmp_path / name).write_text(text)
  (tmp_path / 'experiments').mkdir()
  shutil.copy(ROOT / 'experiments' / 'long_short.py', tmp_path / 'experiments')
  stack = np.random.default_rng(0).integers(0, 256, (1, 50, 70), np.uint8)
  tifffile.imwrite(tmp_path / 'stack.tif', stack, photometric='minisblack')

  blocks = re.findall(r'```bash\n(.*?)```', PAGE, re.S)
  commands = ''.join(blocks).replace('\\\n', '').splitlines()
  assert len(commands) == 5
  monkeypatch.chdir(tmp_path)
  # Shown and tested in test_report.
  monkeypatch.setattr(measure, 'lesions', lambda *_: None)
  monkeypatch.setattr(measure, 'sharpness', lambda *_: {})
  monkeypatch.setattr(sys, 'path', [*sys.path])
  for text in commands:
    program, *arguments = text.split()
    assert program == 'python'
    # One has a process of its own, which reads the run of another; in this
    # process each imports the network anew.
    if 'skipnet_jax.predict' in arguments:
      ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
      )
      assert ended.returncode == 0, ended.stderr
      continue
    dash_m, module, *arguments = arguments
    assert dash_m == '-m'
    sys.modules.pop('my_nets', None)
    # As in a process of its own: Adam mixes dtypes.
    with jax.numpy_dtype_promotion('standard'):
      ended = command(module.removeprefix('skipnet_jax.'), *arguments)
    assert ended.code == 0, ended
  sys.modules.pop('my_nets', None)
  assert 'up_conv_2' in ended.out  # Of --describe.

  found = tifffile.imread(tmp_path / 'probabilities.tif')
  assert found.shape[-2:] == (50, 70)
  assert 0 <= found.min() < found.max() <= 1
  with (tmp_path / 'report' / 'split.csv').open() as file:
    rows = list(csv.DictReader(file))
  for run, kinds in (('skips', {'long', 'short', 'both'}), ('no_skips', set())):
    mine = [row for row in rows if row['run'] == run]
    assert {row['layer'] for row in mine} >= {
      'first',
      'bottom_conv_2',
      'up_conv_1',
    }
    through = {
      kind
      for kind in ('long', 'short', 'both')
      if any(abs(float(row[kind])) > 1e-3 for row in mine)
    }
    assert through == kinds


def test_the_page_s_foreign_module_is_analysed(capsys):
  *_, block = re.findall(r'```python\n(.*?)^```', PAGE, re.M | re.S)
  names = {'__name__': 'page'}
  exec(block, names)
  assert capsys.readouterr().out.strip() in block
  assert (
    list(names['gradients']) == list(names['parts']) == ['Conv_0', 'Conv_1']
  )
  # The second convolution lies behind the skip.
  assert np.abs(names['parts']['Conv_0']).max() > 0
  assert not names['parts']['Conv_1'].any()
  np.testing.assert_allclose(names['shares'].sum(1), 1, atol=1e-5)
