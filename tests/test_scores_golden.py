"""V_rand and V_info, against the answers of the challenge's own program."""

import json
import os
import pathlib

import numpy as np
import pytest

from skipnet_jax.scores import scores

COMMITTED = pathlib.Path(__file__).parent / 'golden'
FULL = os.environ.get('SKIPNET_GOLDEN_DIR')
PARTS = {
  'rand_merge': 'rand_precision_merge',
  'rand_split': 'rand_recall_split',
  'info_merge': 'info_precision_merge',
  'info_split': 'info_recall_split',
}


def golden_cases():
  folders = [(COMMITTED, [])]
  if FULL:
    folders.append((pathlib.Path(FULL), [pytest.mark.golden]))
  for folder, marks in folders:
    cases = json.loads((folder / 'golden.json').read_text())['cases']
    for name, case in cases.items():
      prefix = 'full-' if marks else ''
      yield pytest.param(
        folder / name, case['java'], marks=marks, id=prefix + name
      )
  if not FULL:
    # conftest skips it, with the reason.
    yield pytest.param(None, None, marks=pytest.mark.golden, id='full')


def rows_of(slices):
  """The committed file holds columns, the challenge's own one dicts."""
  if isinstance(slices, dict):
    return [
      dict(zip(slices, row, strict=True))
      for row in zip(*slices.values(), strict=True)
    ]
  return slices


def close(value, expected):
  if value is None or expected is None:
    return value is expected
  return abs(value - expected) < 1e-10


@pytest.mark.parametrize(('path', 'expected'), list(golden_cases()))
def test_equals_the_challenge(path, expected):
  with np.load(f'{path}.npz') as inputs:
    prediction, inside = inputs['proposal'], inputs['label'] > 0
  result = scores.score_stack(prediction, inside)
  assert close(result['v_rand'], expected['max_vrand'])
  assert close(result['v_info'], expected['max_vinfo'])
  levels = expected['thresholds']
  assert len(levels) == len(result['per_threshold']) == 11
  for level, found in zip(levels, result['per_threshold'], strict=True):
    assert found['threshold'] == level['th']
    assert close(found['v_rand'], level['vrand_macro'])
    assert close(found['v_info'], level['vinfo_macro'])
  for z, entry in enumerate(result['per_slice']):
    alone = scores.score_stack(prediction[z], inside[z])['per_threshold']
    for k, level in enumerate(levels):
      row = rows_of(level['slices'])[z]
      assert close(entry['v_rand_per_threshold'][k], row['rand_f'])
      assert close(entry['v_info_per_threshold'][k], row['info_f'])
      for name, golden_name in PARTS.items():
        # Where an entropy is 0, the challenge divides rounding errors.
        entropy = {'info_merge': 'ht', 'info_split': 'hs'}.get(name)
        if entropy and (row[entropy] is None or abs(row[entropy]) < 1e-12):
          assert alone[k][name] is None
        else:
          assert close(alone[k][name], row[golden_name])
