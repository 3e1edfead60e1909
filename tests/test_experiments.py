"""Every experiment and preset builds the network that it states."""

import conftest
import jax
import jax.numpy as jnp
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import models

FOLDER = conftest.ROOT / 'experiments'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
# PAPERS: the counts of the full network.
PARAMETERS = {
  'long_short': 11_451_745,
  'long_only': 10_757_601,
  'short_only': 11_567_393,
  'no_skips': 10_180_097,
}
PRESETS = ('paper', 'quick', 'smoke')


def load(name, preset):
  return config_lib.load_experiment(FOLDER / f'{name}.py', preset)


def count(config):
  model = models.build_model(config.model)
  side = config.data.size or 512
  image = jnp.zeros((1, side, side, 1))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize('name', NAMES)
def test_the_paper_preset_has_the_papers_parameters(name):
  config = load(name, 'paper')
  config_lib.validate(config)
  assert config.experiment == name
  assert count(config) == PARAMETERS[name]


@pytest.mark.parametrize('preset', PRESETS[1:])
@pytest.mark.parametrize('name', NAMES)
def test_the_smaller_presets_keep_the_switches(name, preset):
  config, paper = load(name, preset), load(name, 'paper')
  config_lib.validate(config)
  for switch in ('short_skips', 'long_skips', 'batch_norm', 'blocks'):
    assert config.model[switch] == paper.model[switch]
  assert count(config) < PARAMETERS[name] / 30


@pytest.mark.parametrize('name', NAMES)
def test_an_experiment_is_short_and_says_what_to_expect(name):
  text = (FOLDER / f'{name}.py').read_text()
  assert len(text.splitlines()) <= 50
  for word in ('Claim:', 'Command:', 'Presets:', 'Expect:'):
    assert word in text
