"""Two checkouts in turns: this one against itself."""

import json

import conftest
import pytest

RUN = (
  'tools/paired_steps.py',
  f'--config={conftest.ROOT}/experiments/long_short.py:smoke',
  '--config.model.repetitions=(1,1,1,1,1,1,1)',
  '--config.data.size=32',
)


def test_a_checkout_takes_as_long_as_itself(command, tmp_path):
  path = tmp_path / 'steps.json'
  done = command(
    *RUN, f'--before={conftest.ROOT}', f'--output={path}', '--rounds=2'
  )
  assert done.code == 0, done.err
  result = json.loads(path.read_text())
  assert len(result['ratio']['pairs']) == 2
  # In a step of milliseconds other work counts.
  assert 0.1 < result['ratio']['median'] < 10
  assert result['git']['before'] == result['git']['after']
  assert result['config']['data.size'] == 32
  assert f'{result["ratio"]["median"]:.3f}' in done.out


@pytest.mark.parametrize('content', [None, 'raise SystemExit\n'])
def test_what_is_no_checkout_is_refused(command, tmp_path, content):
  before = tmp_path / 'before'
  (before / 'skipnet_jax' / 'step').mkdir(parents=True)
  if content:
    (before / 'skipnet_jax/step/build.py').write_text(content)
  path = tmp_path / 'steps.json'
  done = command(*RUN, f'--before={before}', f'--output={path}')
  assert str(before) in done.err
  assert done.code == (1 if content else 2)
  assert not path.exists()
