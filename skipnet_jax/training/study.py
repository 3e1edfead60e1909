"""Several runs that are to be compared, one after the other."""

from collections.abc import Callable
import pathlib

import ml_collections

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import sources
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.training import loop


def train(
  variants: dict[str, ml_collections.ConfigDict],
  folder: pathlib.Path,
  say: Callable[[str], None] = lambda _: None,
) -> list[pathlib.Path]:
  """Trains each variant in a folder of its own; passes over finished ones.

  Args:
    variants: whole configs by name, from `config.variants`.
    folder: of the study.
    say: told of progress.

  Returns:
    The runs' folders.

  Raises:
    InputError: fewer than two variants, or a run in the folder that was made
      by another config or on other data; before anything is trained.
  """
  if len(variants) < 2:
    raise errors.InputError(
      f'The experiment has {len(variants)} network, and a comparison needs two '
      'or more: train it by skipnet_jax.train and compare runs by --runs, or '
      'look at it by --at-init.'
    )
  folders = [folder / name for name in variants]
  todo = []
  for path, config in zip(folders, variants.values(), strict=True):
    data = sources.load(config)
    workdir_lib.check(path, config, data.identity())
    summary = files.read_json(path / 'summary.json')
    if summary.get('epochs', 0) < config.train.epochs:
      todo.append((path, config))
  for number, (path, config) in enumerate(todo, 1):
    say(f'\nTraining {path.name} ({number} of {len(todo)} to train)')
    loop.train_and_evaluate(config, path)
  return folders
