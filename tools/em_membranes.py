"""Trains, scores and writes the networks that ship with the package.

python tools/em_membranes.py --fibsem=FOLDER --workdir=runs/em_membranes \
  --output=experiments/results/em_membranes

Joins the challenge's stack and FIB-SEM sample 2 (image.tif and instances.tif of
FOLDER), trains what is missing of three rows and --folds of five folds, the
last first, scores held-out slices of both stacks, and writes scores.json,
table.md and pictures into --output. The same command resumes, and runs whose
scores are in --output are not trained again. --ship trains them all the same,
and writes the networks of the last fold into skipnet_jax/pretrained.
"""

import functools
import pathlib

from absl import flags

from skipnet_jax import cli

_FIBSEM = flags.DEFINE_string(
  'fibsem', None, 'Folder with image.tif and instances.tif of FIB-SEM sample 2.'
)
_ISBI = flags.DEFINE_string(
  'isbi', None, "Folder of the challenge's stacks; by default as in training."
)
_WORKDIR = flags.DEFINE_string('workdir', 'runs/em_membranes', 'Of all runs.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder of the results.')
_FOLDS = flags.DEFINE_integer(
  'folds', 5, 'How many folds.', lower_bound=1, upper_bound=5
)
_SHIP = flags.DEFINE_bool('ship', False, 'Write what ships with the package.')
ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  """Trains the study and writes its results."""
  fibsem, output = cli.require(_FIBSEM), pathlib.Path(cli.require(_OUTPUT))
  # Imported late, so that --help does not wait for JAX.
  from skipnet_jax import files
  from skipnet_jax.prediction import fitted
  from skipnet_jax.runs import pretrained
  from skipnet_jax.studies import em_membranes
  from skipnet_jax.studies import runner
  from skipnet_jax.studies import shipping
  from skipnet_jax.studies import tissues as tissues_lib

  say = functools.partial(print, flush=True)
  folder = pathlib.Path(_WORKDIR.value)
  tissues = tissues_lib.load_tissues(_ISBI.value, fibsem)
  em_membranes.check_output(output)
  tissues_lib.join(tissues, folder)
  last = tissues_lib.FOLDS - 1
  study = em_membranes.make(
    tissues,
    folder,
    ROOT / 'experiments/em_membranes.py',
    range(last, last - _FOLDS.value, -1),
  )
  path = output / 'scores.json'
  todo = study if _SHIP.value else em_membranes.unscored(study, path)
  runner.train(todo, folder, budget=None, say=say)
  found = em_membranes.measure(study, folder, tissues, path, say)
  files.write_whole(output / 'table.md', em_membranes.table(found))
  say(em_membranes.table(found))
  of_last = [folder / f'{row}_{last}' for row in em_membranes.ROWS]
  if not all((run / 'summary.json').exists() for run in of_last):
    say(f'The networks of fold {last} are not in {folder}: pictures are left.')
    return
  # One that was scored elsewhere has no fits here.
  for run in of_last:
    em_membranes.fit(run, fitted.Averaging(), say)
  shipping.pictures(folder, last, tissues, output)
  if _SHIP.value:
    shipping.ship(folder, last, pretrained.FOLDER, say)


if __name__ == '__main__':
  cli.run(main, 'run the same command again to resume.')
