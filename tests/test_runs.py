"""A run's best checkpoint, restored where it was not made."""

import jax
import made_runs
import numpy as np
import pytest

from skipnet_jax import config_checks
from skipnet_jax.data import sources
from skipnet_jax.runs import trained
from skipnet_jax.step import flat
from skipnet_jax.step import parallel


def test_made_configs_are_valid():
  config = made_runs.small_config()
  config_checks.validate(config)
  assert sources.load(config).valid == (4, 5)


@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
def test_checkpoints_of_several_devices_restore_on_one(tmp_path, mode):
  config = made_runs.small_config(**{'parallel.mode': mode})
  _, state = made_runs.small_state(config)
  several = parallel.make_parallel(config.parallel)
  assert len(several.devices) == 8
  state = several.unreplicate(several.replicate(state))
  path = made_runs.make_run(tmp_path / 'run', state, **{'parallel.mode': mode})
  restored = trained.open_run(path).variables
  assert jax.tree.structure(restored) == jax.tree.structure(state.variables())
  for new, old in zip(
    jax.tree.leaves(restored),
    jax.tree.leaves(state.variables()),
    strict=True,
  ):
    assert new.devices() == {jax.devices()[0]}
    assert np.array_equal(new, old)


def test_averaged_parameters_are_used(tmp_path):
  config = made_runs.small_config(**{'optim.ema': 0.9})
  _, state = made_runs.small_state(config)
  averaged = jax.tree.map(lambda x: x + 1, state.params)
  *first, last = state.opt_state
  state = state.replace(opt_state=(*first, last._replace(ema_params=averaged)))
  # An earlier version estimated no statistics for them.
  earlier = state.replace(averaged_stats=flat.join({}))
  for name, saved, stats in (
    ('run', state, state.averaged_stats),
    ('earlier', earlier, state.batch_stats),
  ):
    path = made_runs.make_run(tmp_path / name, saved, **{'optim.ema': 0.9})
    found = trained.open_run(path).variables
    for new, old in zip(
      jax.tree.leaves((found['params'], found['batch_stats'])),
      jax.tree.leaves((averaged.tree(), stats.tree())),
      strict=True,
    ):
      assert np.array_equal(new, old)
