"""The race: what it returns, what it shows, what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys

import conftest
import jax
import pytest
import systems

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.benchmarking.peer import race

EAGER = ('channels_last eager', 'default format eager')


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45')
  monkeypatch.setattr(environment, 'usable_cores', lambda: 1)


@pytest.fixture(scope='module')
def raced(smoke, drawn):
  # A batch that does not divide the eight training slices.
  config = smoke({'train.batch_size': 3})
  said = []
  with pytest.MonkeyPatch.context() as patch:
    # One thread: see conftest.
    patch.setattr(environment, 'usable_cores', lambda: 1)
    found = race.race(config, rounds=3, say=said.append, forms=EAGER)
  return found, said


@pytest.mark.peer
def test_a_race_times_both_sides_in_pairs(raced):
  found, said = raced
  assert list(found['contestants']) == [race.OURS, *EAGER]
  ours = found['contestants'][race.OURS]
  for name in EAGER:
    row = found['contestants'][name]
    assert len(row['seconds']) == 3
    assert row['ratio']['pairs'] == pytest.approx(
      [a / b for a, b in zip(ours['seconds'], row['seconds'], strict=True)]
    )
  assert found['best'] in EAGER
  assert found['batch'] == 3
  assert found['image_size'] == [64, 64]
  assert found['agreement']['float64']['gradient'] < 1e-9
  assert said


@pytest.mark.peer
def test_a_result_is_json_and_a_table_of_100_columns(raced):
  found = json.loads(json.dumps(raced[0], allow_nan=False))
  found['contestants']['channels_last compiled'] = {
    'first_call_s': None,
    'error': 'no C++ compiler ' * 9,
    'seconds': None,
    'summary': None,
    'ratio': None,
  }
  table = race.format_table(found)
  assert max(map(len, table.splitlines())) <= 100
  assert 'did not run: no C++ compiler' in table
  assert f'ours / best of PyTorch ({found["best"]}), 3 pairs' in table


@pytest.mark.peer
def test_another_network_is_raced_with_its_loss_and_weights(drawn, monkeypatch):
  from skipnet_jax.benchmarking.peer import parity

  seen = []
  monkeypatch.setattr(
    parity,
    'check',
    lambda model, variables, network, batch, loss, _: seen.append(
      (type(network).__name__, loss, batch['weight'].shape)
    ),
  )
  config = conftest.experiment('f_clmser_s').get_config('smoke')
  config.model.update(systems.SYSTEMS['f_clmser_s'].small)
  config.data.border_weight = 10.0
  # optax's Adam mixes dtypes.
  with jax.numpy_dtype_promotion('standard'):
    found = race.race(config, rounds=1, say=str, forms=EAGER[:1])
  batch = (config.train.batch_size, *found['image_size'], 1)
  assert seen == [('TorchFCLmserS', 'smooth_l1', batch)]
  assert found['dropout'] == 0
  assert found['best'] == EAGER[0]


@pytest.mark.peer
def test_networks_that_differ_are_not_raced(smoke, monkeypatch):
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  load = torch_weights.load

  def wrong(network, variables):
    load(network, variables)
    network.up_5.weight.data *= 1.001

  monkeypatch.setattr(torch_weights, 'load', wrong)
  with pytest.raises(errors.RunError, match='would compare different work'):
    race.race(smoke(), rounds=1, say=str, forms=EAGER)


@pytest.mark.peer
def test_a_race_against_nobody_is_an_error(smoke, monkeypatch):
  from skipnet_jax.benchmarking.peer import parity
  from skipnet_jax.benchmarking.peer import training as torch_training

  def broken(*arguments):
    def step():
      raise RuntimeError('out of memory')

    return step

  monkeypatch.setattr(parity, 'check', lambda *arguments: {})
  monkeypatch.setattr(torch_training, 'make_step', broken)
  with pytest.raises(errors.RunError, match='eager: out of memory'):
    race.race(smoke(), rounds=1, say=str, forms=EAGER)


@pytest.mark.peer
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.scan': True}, 'set --config.model.scan=False'),
    ({'optim.accumulate': 2}, 'optim.accumulate is 2'),
    ({'optim.ema': 0.9}, 'optim.ema is 0.9'),
    ({'model.dtype': 'bfloat16'}, 'on a CPU the race runs in float32'),
  ],
)
def test_what_has_no_counterpart_is_refused(
  changes, message, smoke, monkeypatch
):
  # `benchmark` checks before it measures, and must not take a GPU's memory.
  monkeypatch.setattr(jax, 'default_backend', pytest.fail)
  with pytest.raises(errors.InputError, match=message):
    race.check_config(smoke(changes))


@pytest.mark.peer
def test_a_race_of_no_rounds_is_refused(smoke):
  with pytest.raises(errors.InputError, match='rounds is 0'):
    race.race(smoke(), rounds=0, say=str)


def test_without_pytorch_it_says_what_to_install(smoke, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda n: None if n == 'torch' else find(n)
  )
  with pytest.raises(errors.InputError, match=r"pip install '\.\[peer\]'"):
    race.race(smoke(), rounds=1, say=str)


def test_importing_it_does_not_import_pytorch():
  code = (
    'import sys; import skipnet_jax.benchmarking.peer.race; '
    "sys.exit('torch' in sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=conftest.ROOT)


@pytest.mark.peer
def test_the_tool_refuses_bad_input_in_one_sentence(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      'tools/torch_peer.py',
      '--config=experiments/long_short.py:smoke',
      '--config.optim.ema=0.5',
      f'--output={tmp_path}/peer.json',
    ],
    capture_output=True,
    text=True,
    cwd=conftest.ROOT,
    env={**os.environ, 'PYTHONPATH': str(conftest.ROOT)},
  )
  assert done.returncode == 2
  assert done.stderr.strip().startswith('error: optim.ema is 0.5')
  assert not list(tmp_path.iterdir())
