"""Profiles training steps: time and bytes of each operation.

python tools/profile.py --config=experiments/benchmark.py:smoke --steps=5 \\
  --output=DIR

DIR gets the trace, the HLO program and operations.csv. The step is the step of
`train` on one device, with data augmentation, at the config's batch size and
dtype.

With `--aot=h100:1` (or a100, h200, b200, gb200, or a TPU slice such as v5e:1x1)
nothing runs: the step without augmentation is compiled for a device that this
machine lacks. DIR gets the HLO program, kernels.csv, and prediction.json, what
`skipnet_jax.benchmark --aot` says of this batch.
"""

import contextlib
import errno
import os
import pathlib
import time

from absl import flags
import ml_collections
from ml_collections.config_flags import config_flags

from skipnet_jax import cli
from skipnet_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file; --config=FILE:preset picks a preset.'
)
_STEPS = flags.DEFINE_integer(
  'steps', 5, 'Number of traced steps.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string('output', None, 'A new or empty folder.')
_AOT = flags.DEFINE_string(
  'aot', None, 'Run nothing: compile for TPUs or GPUs, count the kernels.'
)
WARMUP = 2


def main() -> None:
  """Checks the flags; the folder gets its files when all are finished."""
  cli.require_config(_CONFIG.value)
  cli.require(_OUTPUT)
  if _AOT.value:
    cli.refuse_given('does nothing with --aot, which runs no step.', _STEPS)
  # Imported late: JAX takes seconds, which --help need not wait for.
  from skipnet_jax import config_checks
  from skipnet_jax import files
  from skipnet_jax.benchmarking import plan

  config = _CONFIG.value
  if _AOT.value:
    plan.check_predicted(config)
  elif config.parallel.mode != 'jit' or config.parallel.coordinator:
    cli.refuse(
      f'parallel.mode is {config.parallel.mode!r}, but the step of one device '
      'is profiled: leave out parallel.mode and parallel.coordinator.'
    )
  if 'benchmark' in config:
    config, _ = plan.split(config)
  config_checks.validate(config)
  folder = pathlib.Path(_OUTPUT.value)
  if os.path.lexists(folder) and not (
    folder.is_dir() and not os.listdir(folder)
  ):
    cli.refuse(f'{folder} is not an empty folder: choose another --output.')
  there = folder.exists()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except OSError as e:
    cli.refuse(
      f'The folder {folder} cannot be written ({e.strerror}): choose another '
      '--output.'
    )
  try:
    with files.temporary_folder('.profile-', folder) as made:
      (_predict if _AOT.value else _measure)(config, made)
      for path in made.iterdir():
        path.rename(folder / path.name)
  except BaseException:
    if not there:
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise
  others = (
    'kernels.csv, prediction.json' if _AOT.value else 'trace, operations.csv'
  )
  print(f'program.hlo.txt, {others}: {folder}')


def _predict(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """Compiles for the devices that --aot names."""
  from skipnet_jax import files
  from skipnet_jax.benchmarking.aot import aot

  report = aot.predict(config, _AOT.value, say=print, folder=folder)
  files.write_json(folder / 'prediction.json', report)
  print(aot.format_table(report))


def _measure(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """Compiles and traces the step, and prints the table."""
  import jax

  from skipnet_jax.benchmarking import plan
  from skipnet_jax.benchmarking import workload
  from skipnet_jax.benchmarking.hlo import profiling
  from skipnet_jax.benchmarking.hlo import program as program_lib

  batch, dtype = config.train.batch_size, config.model.dtype
  cell = plan.Cell('train', 'augment', 'jit', 1, dtype, batch)
  work = workload.Bench(config).build(cell)
  print(f'compiling: {cell}', flush=True)
  compiled = work.jitted.lower(*work.arguments).compile()
  text = compiled.as_text()
  (folder / 'program.hlo.txt').write_text(text)
  step = work.start(compiled)
  for _ in range(WARMUP):
    jax.block_until_ready(step())
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(str(folder), profiler_options=options):
    start = time.perf_counter()
    for _ in range(_STEPS.value):
      jax.block_until_ready(step())
    wall = (time.perf_counter() - start) / _STEPS.value
  (path,) = folder.rglob('*.xplane.pb')
  program = program_lib.Program(text)
  events = profiling.read_events(path, program)
  if not events:
    raise errors.RunError(
      'The trace contains no operation of the compiled program.'
    )
  rows = profiling.table(program, events, _STEPS.value)
  profiling.write_csv(folder / 'operations.csv', rows)
  busy = profiling.covered(events) / _STEPS.value
  print(profiling.format_table(rows, wall, busy))


if __name__ == '__main__':
  cli.run(main, 'nothing was measured.')
