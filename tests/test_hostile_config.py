"""Any value of any field is used, or refused in one sentence."""

import functools
import json
import math

import conftest
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
import systems

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import data_set
from skipnet_jax.data import pipeline
from skipnet_jax.data import slice_split
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import parallel

# Each file is read once.
experiment = functools.cache(conftest.experiment)
WORDS = st.sampled_from(
  [
    *config_lib.LOSSES,
    *config_lib.OPTIMIZERS,
    *config_lib.SCHEDULES,
    *config_lib.MODES,
    *('random:3', 'fold:0/4', '0-2', '', 'rest', 'SAME'),
  ]
)
NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 8, 32, 64, -1, 2**31, 2**63, 10**30])
ENDS = st.sampled_from(
  [0.0, -0.0, 1.0, 1e-300, 1e300, math.inf, math.nan, -1.0]
)


def values(default):
  """What a command line can set a field of this default to."""
  if isinstance(default, bool):
    return st.booleans()
  if isinstance(default, int):
    return st.one_of(NUMBERS, st.integers())
  if isinstance(default, float):
    return st.one_of(ENDS, st.floats())
  if isinstance(default, str):
    return st.one_of(WORDS, st.text(max_size=20))
  if isinstance(default, tuple | list):
    return st.lists(NUMBERS, max_size=7).map(tuple)
  return st.none()


@st.composite
def configs(draw):
  """A config of an experiment with up to three fields of any value."""
  name = draw(st.sampled_from(list(systems.EXPERIMENTS.values())))
  config = experiment(name).get_config('smoke')
  flat = list(config_identity.to_flat(config))
  for _ in range(draw(st.integers(1, 3))):
    field = draw(st.sampled_from(flat))
    section, *rest = field.split('.')
    place = config
    for part in (section, *rest)[:-1]:
      place = place[part]
    key = (section, *rest)[-1]
    value = draw(values(place[key]))
    with config.unlocked():
      place[key] = value
  return config


def prepare(config):
  """All that looks at a config before anything is compiled."""
  config_checks.validate(config)
  model = models.build_model(config.model)
  train, valid = slice_split.split(
    config.data.train, config.data.valid, 10, config.seed
  )
  image = np.zeros((10, 64, 64), np.uint8)
  image[:, ::2] = 255
  data = data_set.DataSet('test', image, image > 0, train, valid)
  found = pipeline.make_pipeline(config, data, 1)
  model.check_size(found.window)
  optim.make_optimizer(
    config.optim,
    optim.make_schedule(
      config.optim, found.steps_per_epoch, config.train.epochs
    ),
  )
  losses.make_terms(config.train, found.steps_per_epoch)
  parallel.make_parallel(config.parallel)
  config_identity.hash_of(config)


@hypothesis.settings(
  max_examples=600,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(configs())
def test_any_value_is_used_or_refused_in_one_sentence(config):
  refusal = ''
  try:
    prepare(config)
  except errors.InputError as e:
    refusal = str(e)
  else:
    jax.random.key(config.seed)
    numbers = config_identity.to_flat(config).values()
    assert all(math.isfinite(x) for x in numbers if isinstance(x, float))
  assert '\n' not in refusal


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(
      st.sampled_from(['epoch', 'config', 'dataset', 'model', 'name', 'x']),
      inner,
      max_size=4,
    )
  ),
  max_leaves=12,
)
SETTINGS = hypothesis.settings(
  max_examples=150,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@SETTINGS
@hypothesis.given(
  st.one_of(JSON.map(json.dumps), st.text(), st.just('{"config": {}}'))
)
def test_any_config_json_is_read_or_refused(tmp_path_factory, content):
  folder = tmp_path_factory.mktemp('run')
  data = content.encode(errors='replace')
  (folder / 'config.json').write_bytes(data)
  config = experiment('long_short').get_config('smoke')
  for read in (
    lambda: workdir.read_config(folder),
    lambda: workdir.read_dataset(folder),
    lambda: workdir.check(folder, config, {'name': 'a', 'fingerprint': 'b'}),
  ):
    with pytest.raises(errors.InputError):
      read()
  assert (folder / 'config.json').read_bytes() == data


@SETTINGS
@hypothesis.given(
  st.lists(st.one_of(JSON.map(json.dumps), st.text(max_size=30)), max_size=5)
)
def test_any_metrics_file_leaves_records_alone(tmp_path_factory, lines):
  path = tmp_path_factory.mktemp('run') / 'metrics.jsonl'
  path.write_text('\n'.join(lines), errors='replace')
  run_log.keep_records(path, 3)
  for record in run_log.read_records(path) if path.exists() else []:
    assert record['epoch'] in (1, 2, 3)
