"""How long a network trains until its validation BCE is low enough."""

from collections.abc import Callable
import statistics
import time
from typing import Any

import ml_collections

from skipnet_jax import errors
from skipnet_jax.benchmarking import workload
from skipnet_jax.training import epoch as epoch_lib
from skipnet_jax.training import prepare
from skipnet_jax.training import validation

SEEDS = 3


def measure(
  config: ml_collections.ConfigDict,
  bce: float,
  say: Callable[[str], None],
  clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
  """Trains with several seeds until the validation BCE is at most `bce`.

  The time is that of training and validation after each epoch; compiling is
  not in it. A run ends after `train.epochs` at the latest.

  Args:
    config: a validated config; its seed and the next two are used.
    bce: above 0.
    say: receives a line after each epoch.
    clock: returns seconds.

  Returns:
    JSON values: until_bce; seconds, the median of the seeds, where one that
    did not reach it is the longest (None: fewer than two of three did); runs:
    seed, seconds (None if it was not reached), epochs, steps, valid_bce (at the
    end).

  Raises:
    InputError: data or a network that cannot be used.
    RunError: a loss that is not finite.
  """
  runs = []
  for seed in range(config.seed, config.seed + SEEDS):
    one = config.copy_and_resolve_references()
    one.seed = seed
    runs.append({'seed': seed, **_train(one, bce, say, clock)})
  missed = float('inf')
  median = statistics.median(
    missed if run['seconds'] is None else run['seconds'] for run in runs
  )
  return {
    'until_bce': bce,
    'seconds': None if median == missed else median,
    'runs': runs,
  }


def _train(
  config: ml_collections.ConfigDict,
  bce: float,
  say: Callable[[str], None],
  clock: Callable[[], float],
) -> dict[str, Any]:
  prepared = prepare.prepare(config)
  training, parallel = prepared.training, prepared.parallel
  state = parallel.replicate(training.create_state(config.seed))
  train_epoch = epoch_lib.Epoch(
    config,
    training.train_step,
    prepared.pipeline,
    parallel,
    prepared.arrays,
    log=lambda _: None,
    advance=lambda *_: None,
    on_nonfinite=workload.refuse_nonfinite,
    estimate_step=training.estimate_step,
  )
  train_epoch.compile(state)
  validate = validation.Validation(prepared, state)
  begin = clock()
  reached, epoch, found = False, 0, float('inf')
  while not reached and epoch < config.train.epochs:
    state, _ = train_epoch(state)
    found, epoch = validate(state)['bce'], epoch + 1
    reached = found <= bce
    say(f'    seed {config.seed}, epoch {epoch}: validation BCE {found:.4f}')
  seconds = clock() - begin
  if not found < float('inf'):
    raise errors.RunError(
      f'The validation BCE of seed {config.seed} is {found}: lower '
      'optim.learning_rate.'
    )
  return {
    'seconds': seconds if reached else None,
    'epochs': epoch,
    'steps': epoch * prepared.pipeline.steps_per_epoch,
    'valid_bce': found,
  }


def format_result(quality: dict[str, Any]) -> str:
  """The result of `measure` in lines of at most 100 columns."""
  runs = quality['runs']
  reached = sum(run['seconds'] is not None for run in runs)
  median = quality['seconds']
  lines = [
    f'Validation BCE of {quality["until_bce"]:g}: {reached} of {len(runs)} '
    'seeds reached it'
    + (f', median {median:.4g} s' if median is not None else ''),
  ]
  for run in runs:
    took = (
      'not reached' if run['seconds'] is None else f'{run["seconds"]:.4g} s'
    )
    lines.append(
      f'  seed {run["seed"]}: {took}, {run["epochs"]} epochs, {run["steps"]} '
      f'steps, BCE {run["valid_bce"]:.4f}'
    )
  return '\n'.join(lines)
