"""Times a training step against that of another checkout of this package.

git worktree add ../before 26829da
python tools/paired_steps.py --config=experiments/long_short.py \\
  --before=../before --rounds=10 --output=steps.json

Both checkouts run in processes of their own, which take turns of two steps, of
which the second counts. Each gets the fields of the config that are not the
defaults, and a batch of random numbers; nothing is augmented. Use an idle
machine.
"""

import contextlib
import json
import pathlib
import subprocess
import sys

from absl import flags
from ml_collections.config_flags import config_flags

from skipnet_jax import cli
from skipnet_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file; --config=FILE:preset picks a preset.'
)
_BEFORE = flags.DEFINE_string('before', None, 'Folder of the other checkout.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Timed pairs.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file of the result.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
# Trains a step whenever it is asked to. It must run in older checkouts too.
CHILD = """
import json, sys
import jax
import numpy as np
from skipnet_jax import config as config_lib, models
from skipnet_jax.data import isbi2012, pipeline
from skipnet_jax.step import build
fields, config = json.loads(sys.argv[1]), config_lib.get_default()
config.model = models.model_config(**fields.pop('model'))
config.update_from_flattened_dict(
  {n: tuple(v) if type(v) is list else v for n, v in fields.items()}
)
side = config.data.crop or config.data.size
window = (side, side) if side else isbi2012.SHAPE[1:]
training = build.build(config, window, 1)
shapes = pipeline.batch_shapes(config, window, config.train.batch_size)
rng = np.random.default_rng(config.seed)
batch = {n: rng.random(s, np.float32).round() for n, s in shapes.items()}
state = training.create_state(config.seed)
step = jax.jit(training.train_step, donate_argnums=0)
for _ in sys.stdin:
  state, metrics = step(state, batch)
  print(float(jax.block_until_ready((state, metrics))[1]['steps']), flush=True)
"""


class Checkout:
  """A process that trains steps with the package of a folder."""

  def __init__(self, folder: pathlib.Path, config: str):
    self._process = subprocess.Popen(
      [sys.executable, '-c', CHILD, config],
      cwd=folder,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._folder = folder

  def __call__(self) -> None:
    """Trains a step and waits for it."""
    process = self._process
    assert process.stdin
    assert process.stdout
    # A process that has ended reads no more.
    with contextlib.suppress(BrokenPipeError):
      process.stdin.write('\n')
      process.stdin.flush()
    if not process.stdout.readline().startswith('1'):
      raise errors.RunError(
        f'The step of {self._folder} failed (see above): its checkout may be '
        'too old for this config.'
      )

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


def main() -> None:
  """Runs both processes in turns and prints the ratio."""
  cli.require_config(_CONFIG.value)
  before = pathlib.Path(cli.require(_BEFORE))
  if not (before / 'skipnet_jax' / 'step' / 'build.py').is_file():
    cli.refuse(
      f'--before is {before}, which has no skipnet_jax/step/build.py: give the '
      'root of a checkout of this package.'
    )
  from skipnet_jax import config as config_lib
  from skipnet_jax import config_checks
  from skipnet_jax import config_identity
  from skipnet_jax import environment
  from skipnet_jax import files
  from skipnet_jax import models
  from skipnet_jax.benchmarking.reporting import report
  from skipnet_jax.benchmarking.timing import hardware
  from skipnet_jax.benchmarking.timing import turns

  config = _CONFIG.value
  config_checks.validate(config)
  path = report.check_output(
    cli.require(_OUTPUT), overwrite=False, raw=False, remedy='choose another'
  )
  default = config_lib.get_default()
  default.model = models.model_config(config.model.name)
  known = config_identity.to_flat(default)
  fields = {
    name: value
    for name, value in config_identity.to_flat(config).items()
    if value != known[name]
  }
  model = {
    name.removeprefix('model.'): fields.pop(name)
    for name in list(fields)
    if name.startswith('model.')
  }
  text = json.dumps({'model': {'name': config.model.name, **model}, **fields})
  folders = {'before': before, 'after': ROOT}
  machine = hardware.hardware()
  checkouts = {name: Checkout(f, text) for name, f in folders.items()}
  try:
    first = turns.first_calls(checkouts, say=print)
    timings = turns.take_turns(checkouts, rounds=_ROUNDS.value)
  finally:
    for checkout in checkouts.values():
      checkout.close()
  seconds = {name: list(t.seconds) for name, t in timings.items()}
  ratio = turns.ratio(seconds['after'], seconds['before'])
  result = {
    'what': 'seconds of a training step over those of the checkout before',
    'ratio': ratio,
    'seconds': seconds,
    'first_call_s': {name: one['first_call_s'] for name, one in first.items()},
    'git': {n: environment.git_state(f) for n, f in folders.items()},
    'command': environment.command(),
    'date': environment.now(),
    'software': hardware.software(),
    'hardware': machine,
    'config': config_identity.to_flat(config),
  }
  files.write_json(path, result)
  print(
    f'{ratio["median"]:.3f} (quartiles {ratio["q25"]:.3f} to '
    f'{ratio["q75"]:.3f}) of the time before, {_ROUNDS.value} pairs'
  )
  print(f'result: {path}')


if __name__ == '__main__':
  cli.run(main, 'nothing was written.')
