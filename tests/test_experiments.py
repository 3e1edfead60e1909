"""Every experiment and preset builds the network that it states."""

import functools

import conftest
import jax
import jax.numpy as jnp
import pytest
import systems

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import models
from skipnet_jax.benchmarking import plan
from skipnet_jax.data import labels
from skipnet_jax.data import slice_split
from skipnet_jax.studies import plan as studies_plan

FOLDER = conftest.ROOT / 'experiments'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
# PAPERS: the counts of the full network.
PARAMETERS = {
  'long_short': 11_451_745,
  'long_only': 10_757_601,
  'short_only': 11_567_393,
  'no_skips': 10_180_097,
  'best': 11_451_745,
}
PRESETS = ('paper', 'quick', 'smoke')
# The other systems.
SYSTEMS = {
  name: system.counts
  for name, system in systems.SYSTEMS.items()
  if systems.EXPERIMENTS[name] not in PARAMETERS
}
# Those that compare several networks.
STUDIES = {
  'gradient_flow': ('small', 'paper', 'table_3', 'smoke'),
  'depth_sweep': ('small', 'paper', 'smoke'),
}
# One that measures.
BENCHMARK = {'full': 11_451_745, 'cpu': 11_451_745, 'smoke': 20_677}
# On data of its own.
TISSUES = ('both', 'isbi2012', 'fibsem')
SINGLE = sorted(PARAMETERS)


def load(name, preset):
  return config_lib.load_experiment(FOLDER / f'{name}.py', preset)


def count(config):
  return _count(models.build_model(config.model), config.data.size or 512)


@functools.cache
def _count(model, side):
  """Once for presets that have the same network."""
  if isinstance(model, models.fc_resnet.FCResNet):
    # Traced in a tenth of the time; as many, says test_scan.
    model = model.clone(scan=True)
  image = jnp.zeros(model.input_shape((side, side)))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_every_experiment_is_tested():
  others = 'benchmark', 'em_membranes'
  assert sorted([*SINGLE, *SYSTEMS, *STUDIES, *others]) == NAMES


@pytest.mark.parametrize('name', SINGLE)
def test_the_paper_preset_has_the_papers_parameters(name):
  config = load(name, 'paper')
  config_checks.validate(config)
  assert config.experiment == name
  assert count(config) == PARAMETERS[name]


@pytest.mark.parametrize(
  ('name', 'preset'), [(n, p) for n, counts in SYSTEMS.items() for p in counts]
)
def test_a_system_has_its_published_parameters(name, preset):
  config = load(name, preset)
  config_checks.validate(config)
  assert config.experiment == name
  assert count(config) == SYSTEMS[name][preset]


@pytest.mark.parametrize('name', ['long_short', *SYSTEMS])
def test_systems_share_their_budget(name):
  config = load(name, 'budget')
  config_checks.validate(config)
  flat = config_identity.to_flat(config)
  assert {k: flat[k] for k in config_lib.BUDGET} == config_lib.BUDGET


def test_the_best_is_a_row_of_the_recipe():
  config, base = load('best', 'quick'), load('long_short', 'quick')
  base.update_from_flattened_dict(studies_plan.RECIPE['intensity'].changes)
  base.experiment = 'best'
  assert config == base


@pytest.mark.parametrize('preset', PRESETS[1:])
@pytest.mark.parametrize('name', SINGLE)
def test_the_smaller_presets_keep_the_switches(name, preset):
  config, paper = load(name, preset), load(name, 'paper')
  config_checks.validate(config)
  for switch in ('short_skips', 'long_skips', 'batch_norm', 'blocks'):
    assert config.model[switch] == paper.model[switch]
  assert count(config) < PARAMETERS[name] / 30


@pytest.mark.parametrize(
  ('name', 'preset'), [(n, p) for n, ps in STUDIES.items() for p in ps]
)
def test_a_study_builds_each_of_its_networks(name, preset):
  config = load(name, preset)
  if 'depths' in config:
    del config.depths
  variants = config_checks.variants(config)
  assert len(variants) >= 3
  counts = {variant: count(config) for variant, config in variants.items()}
  if preset == 'table_3':
    assert counts == {
      'long_short': PARAMETERS['long_short'],
      'short': PARAMETERS['short_only'],
      'long': PARAMETERS['long_only'],
    }


@pytest.mark.parametrize('preset', STUDIES['gradient_flow'][:2])
def test_figure_4_has_the_papers_settings(preset):
  variants = config_checks.variants(load('gradient_flow', preset))
  found = [
    (
      c.model.blocks,
      set(c.model.repetitions),
      c.model.long_skips,
      c.model.short_skips,
      c.model.batch_norm,
      c.optim.learning_rate,
    )
    for c in variants.values()
  ]
  assert found == [
    ('simple', {9}, True, True, True, 1e-3),
    ('simple', {9}, True, False, True, 1e-3),
    ('simple', {3}, True, False, True, 1e-3),
    ('simple', {7}, True, False, False, 1e-4),
  ]


@pytest.mark.parametrize(('preset', 'parameters'), BENCHMARK.items())
def test_the_benchmark_measures_the_papers_network(preset, parameters):
  config, section = plan.split(load('benchmark', preset))
  assert count(config) == parameters
  assert set(section.calls) == {'train', 'eval', 'inference'}


@pytest.mark.parametrize('preset', TISSUES)
def test_the_networks_that_ship_are_those_of_quick(preset):
  config, quick = load('em_membranes', preset), load('long_short', 'quick')
  config_checks.validate(config)
  assert config.model == quick.model
  train, valid = slice_split.split(config.data.train, config.data.valid, 61, 0)
  assert labels.ranges(train) == config.data.train
  both = load('em_membranes', 'both').data
  assert config.data.valid in both.valid
  # A fifth is held out.
  assert len(train) == {'both': 49, 'isbi2012': 24, 'fibsem': 25}[preset]
  assert len(valid) == (12 if preset == 'both' else 6)
  # As many slices of each stack in a step.
  assert config.train.batch_size == (4 if preset == 'both' else 2)


@pytest.mark.parametrize('name', NAMES)
def test_an_experiment_is_short_and_says_what_to_expect(name):
  text = (FOLDER / f'{name}.py').read_text()
  assert len(text.splitlines()) <= 50
  for word in ('Claim:', 'Command:', 'Presets:', 'Expect:'):
    assert word in text
