"""Measures everything that needs an accelerator, the most important first.

python tools/accelerator_suite.py --budget_minutes=9 --output=DIR

Each piece has a limit of its own. When the budget is used up, run the same
command again: it skips finished pieces. Another config, code or device needs
another DIR. DIR gets a JSON file for each piece, summary.json and table.txt.
--smoke runs every piece on a CPU with a small network, in minutes. Exit code 1
if a piece failed.
"""

import functools
import json
import os
import pathlib
import sys
import time

from absl import flags

from skipnet_jax import cli

_BUDGET = flags.DEFINE_float('budget_minutes', 9, 'Minutes for all pieces.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder of the results.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Run with a small network on a CPU.')
_DEVICE = flags.DEFINE_enum(
  'device', None, ['gpu', 'tpu', 'cpu'], 'Default: gpu; with --smoke cpu.'
)
_PIECE = flags.DEFINE_string(
  'piece', None, 'For internal use: the piece that this process runs.'
)
_RESULT = flags.DEFINE_string(
  'result', None, 'For internal use: JSON file of the piece.'
)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  """Runs all pieces, or the one of --piece."""
  from skipnet_jax import config as config_lib
  from skipnet_jax import environment
  from skipnet_jax import files
  from skipnet_jax.benchmarking.suite import accelerator
  from skipnet_jax.benchmarking.suite import device as device_lib
  from skipnet_jax.benchmarking.suite import suite

  config = config_lib.load_experiment(
    ROOT / 'experiments' / 'benchmark.py', 'smoke' if _SMOKE.value else 'full'
  )
  config = accelerator.adapt(config, _SMOKE.value)
  if _PIECE.value:
    # Reports name the command of the whole suite.
    del sys.argv[sys.argv.index(f'--piece={_PIECE.value}') :]
    save = functools.partial(files.write_json, pathlib.Path(_RESULT.value))
    accelerator.PIECES[_PIECE.value].run(config, save)
    return
  cli.require(_OUTPUT)
  device = _DEVICE.value or ('cpu' if _SMOKE.value else 'gpu')
  os.environ['JAX_PLATFORMS'] = device_lib.PLATFORMS[device]
  begin = time.monotonic()
  kind = device_lib.device_kind(device)
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
  if _SMOKE.value:
    # Pieces share what they do not measure: drawing states and batches.
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
  tool = str(pathlib.Path(__file__).resolve())
  command = (sys.executable, tool, *sys.argv[1:])
  summary = suite.run(
    [
      suite.Piece(
        name,
        (*command, f'--piece={name}', '--result'),
        # A CPU may be slower.
        float('inf') if _SMOKE.value else piece.limit,
      )
      for name, piece in accelerator.PIECES.items()
    ],
    pathlib.Path(_OUTPUT.value),
    budget=60 * _BUDGET.value,
    spent=time.monotonic() - begin,
    identity={
      'code': suite.code_hash(),
      'config': json.loads(config.to_json()),
      'device': device,
      'device_kind': kind,
      'versions': environment.versions(('jax', 'jaxlib', 'flax', 'torch')),
    },
    say=functools.partial(print, flush=True),
  )
  print(suite.format_table(summary))
  if any(row['status'] == suite.FAILED for row in summary['pieces']):
    sys.exit(1)


if __name__ == '__main__':
  cli.run(main, 'run the same command again: it skips finished pieces.')
