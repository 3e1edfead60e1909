"""Trains a network.

`python -m skipnet_jax.train --config=long_short --workdir=RUN`
"""

from absl import flags
from ml_collections.config_flags import config_flags

from skipnet_jax import cli
from skipnet_jax import environment

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment: a file, or a name such as long_short; --config=NAME:preset '
  'picks a preset.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; an existing run is resumed.'
)
_DESCRIBE = flags.DEFINE_bool(
  'describe', False, 'Print the layer table and exit.'
)


def main() -> None:
  """Describes or trains."""
  cli.require_config(_CONFIG.value)
  config = _CONFIG.value
  if config.train.deterministic:
    environment.set_deterministic()
  # Imported late, so that --help does not wait for JAX.
  from skipnet_jax.training import loop
  from skipnet_jax.training import prepare

  if _DESCRIBE.value:
    print(prepare.describe(config))
    return
  loop.train_and_evaluate(config, cli.require(_WORKDIR))


if __name__ == '__main__':
  cli.run(main)
