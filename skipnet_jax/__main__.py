"""The commands under one name.

`skipnet train` is `python -m skipnet_jax.train`, and so on. It is installed
with the package; without that, `python -m skipnet_jax` stands for it.
"""

import pathlib
import runpy
import sys

from skipnet_jax import environment

COMMANDS = {
  'train': 'trains a network, or resumes its training',
  'predict': 'finds the cells of a stack with trained networks',
  'export': 'writes a network for programs without this package',
  'evaluate': 'scores a run, or a file of predictions',
  'gradflow': 'compares how the gradient flows through networks',
  'benchmark': 'measures how fast a network trains and predicts',
}
_EXAMPLES = (
  'train --config=long_short:quick --workdir=runs/quick',
  'predict --pretrained=em_membranes --input=stack.tif --output=map.tif',
  'evaluate --workdir=runs/quick --output=scores.json',
)
_HELP = ('', 'help', '-h', '-help', '--help')


def overview(program: str) -> str:
  """The commands in one line each, and examples; `program` comes first."""
  return '\n'.join(
    (
      'Very deep networks with skip connections for biomedical segmentation.',
      '\nCommands:',
      *(f'  {program} {name:10s} {does}' for name, does in COMMANDS.items()),
      '\nExamples:',
      *(f'  {program} {example}' for example in _EXAMPLES),
      f'\n{program} COMMAND --help shows the flags of a command.',
    )
  )


def main() -> None:
  """Runs the command that the first argument names."""
  script, dotted = environment.PROGRAMS
  program = script
  if pathlib.Path(sys.argv[0]).name == '__main__.py':
    program = dotted
  elif not sys.flags.safe_path:
    # As `python -m` does: modules of the current folder, not of the script's.
    sys.path[0] = ''
  name, *rest = sys.argv[1:] or ['']
  if name in _HELP:
    print(overview(program))
    sys.exit(0)
  if name not in COMMANDS:
    # Imported late, because they take longer than the overview.
    from skipnet_jax import cli
    from skipnet_jax import config

    cli.refuse(
      f'Unknown command {name!r}: {config.nearest(name, COMMANDS)} {program} '
      'alone shows what there is.'
    )
  sys.argv = [f'{program} {name}', *rest]
  runpy.run_module(f'skipnet_jax.{name}', run_name='__main__')


if __name__ == '__main__':
  main()
