"""Times a training step against a step of the same network in PyTorch.

python tools/torch_peer.py --config=experiments/long_short.py --rounds=10 \\
  --output=peer.json

Needs PyTorch: pip install '.[peer]'. For the method see
`skipnet_jax.benchmarking.peer.race`.
"""

from absl import flags
from ml_collections.config_flags import config_flags

from skipnet_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file; --config=FILE:preset picks a preset.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 10, 'Timed steps of each contestant.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file of the result.')


def main() -> None:
  """Runs the race and prints the table."""
  cli.require_config(_CONFIG.value)
  from skipnet_jax import files
  from skipnet_jax.benchmarking.peer import race
  from skipnet_jax.benchmarking.reporting import report

  path = None
  if _OUTPUT.value:
    path = report.check_output(
      _OUTPUT.value,
      overwrite=False,
      raw=False,
      remedy='choose another name',
    )
  result = race.race(
    _CONFIG.value, rounds=_ROUNDS.value, say=lambda s: print(s, flush=True)
  )
  print(race.format_table(result))
  if path:
    files.write_json(path, result)
    print(f'result: {path}')


if __name__ == '__main__':
  cli.run(main, 'unfinished files are removed.')
