"""Trains the runs of a comparison, one after the other."""

from collections.abc import Callable
import pathlib

import ml_collections

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.training import loop
from skipnet_jax.training import prepare
from skipnet_jax.training import summary as summary_lib


def with_seeds(
  variants: dict[str, ml_collections.ConfigDict], seeds: int
) -> dict[str, ml_collections.ConfigDict]:
  """Each variant with several seeds: `NAME`, `NAME_seed_1` and so on.

  Raises:
    InputError: a seed that is too large, or two runs of one name.
  """
  several = {}
  for name, config in variants.items():
    for more in range(seeds):
      own = config.copy_and_resolve_references()
      own.seed = config.seed + more
      config_checks.validate(own)
      full = f'{name}_seed_{own.seed}' if more else name
      if full in several or (more and full in variants):
        raise errors.InputError(
          f'Two runs would have the name {full!r}: rename the variant {name!r} '
          'or the other one.'
        )
      several[full] = own
  return several


def require_several(variants: dict[str, ml_collections.ConfigDict]) -> None:
  """Refuses a comparison of fewer than two networks."""
  if len(variants) < 2:
    raise errors.InputError(
      f'The experiment has {len(variants)} network, and a comparison needs two '
      'or more. Train it with python -m skipnet_jax.train and compare runs '
      'with --runs, or use --at-init.'
    )


def train(
  variants: dict[str, ml_collections.ConfigDict],
  folder: pathlib.Path,
  log: Callable[[str], None] = lambda _: None,
) -> list[pathlib.Path]:
  """Trains each variant in its own folder; skips finished ones.

  Args:
    variants: whole configs by name, from `config.variants`.
    folder: of the study.
    log: prints progress.

  Returns:
    The runs' folders.

  Raises:
    InputError: fewer than two variants, or a run in the folder with another
      config or other data; before anything is trained.
  """
  require_several(variants)
  folders = [folder / name for name in variants]
  todo = []
  for path, config in zip(folders, variants.values(), strict=True):
    prepare.check(path, config)
    if not summary_lib.is_finished(path, config.train.epochs):
      todo.append((path, config))
  for number, (path, config) in enumerate(todo, 1):
    log(f'\nTraining {path.name} ({number} of {len(todo)} to train)')
    loop.train_and_evaluate(config, path)
  return folders
