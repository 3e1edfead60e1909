"""Measures the cost of recording the gradient flow in a training step.

python tools/recording_cost.py --config=experiments/long_short.py --rounds=20

Compiled steps with and without recording run alternately on the same batch. The
copy of the kernels and their net change, computed once per epoch, are added to
each step in equal parts.
"""

import statistics
import time

from absl import flags
import jax
from ml_collections.config_flags import config_flags
import numpy as np

from skipnet_jax import cli
from skipnet_jax import config_checks
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.step import build
from skipnet_jax.step import calls
from skipnet_jax.step import parallel

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment file.')
_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Pairs of steps.', lower_bound=1)


def main() -> None:
  """Measures the pairs and prints their ratio."""
  config = _CONFIG.value
  cli.require_config(config)
  config_checks.validate(config)
  data = sources.load(config)
  pipeline = pipeline_lib.make_pipeline(config, data, 1)
  arrays = pipeline_lib.host_arrays(data)
  key = jax.random.key(config.seed)
  plan = jax.jit(pipeline.plan)(key, 0)
  raw = pipeline.read_host(arrays, plan)
  batch = jax.jit(pipeline.train_batch)(raw, plan['key'])

  contestants = {}
  for name, record in (('plain', False), ('recorded', True)):
    training = build.build(
      config, pipeline.window, pipeline.steps_per_epoch, record=record
    )
    step = jax.jit(training.train_step, donate_argnums=0)
    contestants[name] = [step, training.create_state(config.seed), []]
  names = training.kernels
  copy, change = calls.make_kernel_calls(
    names, parallel.make_parallel(config.parallel)
  )

  def timed(call, *arguments):
    begin = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    return result, time.perf_counter() - begin

  once = []
  for turn in range(_ROUNDS.value + 1):
    order = list(contestants.values())
    for contestant in order if turn % 2 else order[::-1]:
      step, state, seconds = contestant
      (contestant[1], _), took = timed(step, state, batch)
      seconds.append(took)
    params = contestants['recorded'][1].params
    old, first = timed(copy, params)
    once.append(first + timed(change, old, params)[1])
  # Without the first round, which compiles.
  plain, recorded = (np.array(c[2][1:]) for c in contestants.values())
  share = statistics.median(once[1:]) / pipeline.steps_per_epoch
  ratios = (recorded + share) / plain
  print(
    f'{data.name}, batch {pipeline.batch_size}, {len(names)} convolutions, '
    f'{jax.devices()[0].device_kind}, jax {jax.__version__}\n'
    f'plain {np.median(plain):.4f} s, recorded {np.median(recorded):.4f} s, '
    f'plus {share:.5f} s per step for the net change\n'
    f'recorded / plain, {len(ratios)} pairs: median {np.median(ratios):.4f}, '
    f'quartiles {np.percentile(ratios, 25):.4f} to '
    f'{np.percentile(ratios, 75):.4f}'
  )


if __name__ == '__main__':
  cli.run(main, 'nothing was measured.')
