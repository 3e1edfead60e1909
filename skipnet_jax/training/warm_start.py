"""Begins a run with the parameters of another one: `train.init_from`.

What is taken is what `predict` would take from that run: of its best
checkpoint the averaged parameters, if it keeps them, and BatchNorm's
statistics.
"""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import lock
from skipnet_jax.runs import pretrained
from skipnet_jax.runs import trained
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import state as state_lib
from skipnet_jax.training import processes

# JSON values on what a run began with; its config.json, checkpoints and
# summary.json keep them.
Record = dict[str, Any]
# By the path of each array in Flax's trees.
_Arrays = dict[tuple[Any, ...], Any]
# Before the name of a pretrained network.
SHIPPED = 'pretrained:'
# Layers that a message names, and that a line on skipped ones names.
_NAMED, _LISTED = 3, 20


@dataclasses.dataclass(frozen=True)
class Start:
  """Arrays of another run that fit a network.

  Attributes:
    arrays: float32, by their path in the trees of the variables.
    record: path, best_epoch, sha256, dataset, pixel_size (0: unknown),
      left_random and unused: names of layers.
  """

  arrays: _Arrays
  record: Record

  def state(
    self, training: build_lib.Training, seed: int
  ) -> state_lib.TrainState:
    """The state before the first step."""
    variables = training.abstract_state.variables()
    if self.record['left_random']:
      variables = state_lib.draw(training.model, seed)
    variables = jax.tree_util.tree_map_with_path(
      lambda path, x: self.arrays.get(path, x), variables
    )
    return training.begin(variables, seed)


def check_source(value: str) -> None:
  """Refuses what `open_source` cannot use, as far as no collective is needed.

  Reading a checkpoint is one: it fails where another process does not read it.

  Raises:
    InputError: it is no run.
  """
  with _named():
    if value.startswith(SHIPPED):
      pretrained.open_pretrained(value.removeprefix(SHIPPED))
    else:
      workdir_lib.read_config(environment.expand_home(value))


def open_source(value: str) -> trained.TrainedRun:
  """The run, or the pretrained network, that `train.init_from` names.

  All that a warm start takes are its `variables`, `config`, `dataset`, `path`
  and `best_epoch`.

  Raises:
    InputError: it cannot be used, or is still training.
  """
  if value.startswith(SHIPPED):
    with _named():
      return pretrained.open_pretrained(value.removeprefix(SHIPPED))
  path = pathlib.Path(environment.expand_home(value))
  with _named(), lock.reading(path):
    return trained.open_run(path)


def load(
  config: ml_collections.ConfigDict,
  training: build_lib.Training,
  workdir: str | os.PathLike,
) -> Start | None:
  """Reads what `train.init_from` names; all processes must call it.

  Compiles and writes nothing.

  Args:
    config: of the new run, validated.
    training: of the same config.
    workdir: the new run's folder; may be missing.

  Returns:
    None without `train.init_from`, and for a run that has a checkpoint.

  Raises:
    InputError: a source that cannot be used or does not fit, in all processes.
  """
  value = config.train.init_from
  if not value:
    return None
  with processes.raise_input_errors_everywhere():
    source = os.path.realpath(environment.expand_home(value))
    if source == os.path.realpath(workdir):
      raise errors.InputError(
        f'train.init_from is {value!r}, the --workdir of this run itself: '
        'leave it out to resume this run, or choose another --workdir.'
      )
  begun = any(checkpoint.steps_on_disk(pathlib.Path(workdir)).values())
  if processes.from_first(str(begun)) == str(True):
    return None
  with processes.raise_input_errors_everywhere():
    check_source(value)
  with processes.raise_input_errors_everywhere():
    return match(open_source(value), config, training)


@contextlib.contextmanager
def _named() -> Iterator[None]:
  """Lets the message of an InputError name the field."""
  try:
    yield
  except errors.InputError as e:
    raise errors.InputError(f'train.init_from: {e}') from e


def match(
  source: trained.TrainedRun,
  config: ml_collections.ConfigDict,
  training: build_lib.Training,
) -> Start:
  """What a new run takes of another one.

  Raises:
    InputError: the runs normalise differently, or the networks differ.
  """
  value = config.train.init_from
  theirs, ours = source.config.data.normalise, config.data.normalise
  if theirs != ours:
    raise errors.InputError(
      f'train.init_from is {value!r}, which was trained with '
      f'data.normalise={theirs}, and here it is {ours}: give '
      f'--config.data.normalise={theirs}, as its weights need that input.'
    )
  found = dict(jax.tree_util.tree_leaves_with_path(source.variables))
  needed = dict(
    jax.tree_util.tree_leaves_with_path(training.abstract_state.variables())
  )
  old, new = _by_layer(found), _by_layer(needed)
  called = [row.name for row in training.table]
  left_random = sorted(
    (name for name in new if new[name] != old.get(name)),
    key=lambda name: called.index(name) if name in called else len(called),
  )
  unused = [name for name in old if name not in new]
  differing = [*left_random, *unused]
  if differing and not config.train.init_skip_mismatch:
    raise errors.InputError(_refusal(source, config, differing, old, new))
  arrays = {
    path: found[path] for path in needed if _layer(path) not in left_random
  }
  if not arrays:
    raise errors.InputError(
      f'train.init_from is {value!r}, of whose network '
      f'({source.config.model.name}) no layer fits this one '
      f'({config.model.name}): give another run, or leave it out.'
    )
  record = {
    'path': value if value.startswith(SHIPPED) else str(source.path),
    'best_epoch': source.best_epoch,
    'sha256': fingerprint(source.variables),
    'dataset': source.dataset['name'],
    'pixel_size': source.pixel_size,
    'left_random': left_random,
    'unused': unused,
  }
  return Start(arrays, record)


def _refusal(
  source: trained.TrainedRun,
  config: ml_collections.ConfigDict,
  differing: list[str],
  old: dict[str, dict[str, tuple[int, ...]]],
  new: dict[str, dict[str, tuple[int, ...]]],
) -> str:
  """The sentence that names layers which do not fit."""

  def problem(name: str) -> str:
    if name not in old:
      return f'{name} (missing there)'
    if name not in new:
      return f'{name} (missing here)'
    changed = [
      f'{array} {shape}, here {new[name].get(array, "none")}'
      for array, shape in old[name].items()
      if new[name].get(array) != shape
    ]
    return f'{name} ({(changed or ["fewer arrays there"])[0]})'

  same = source.config.model.name == config.model.name
  models = [
    {
      name: value
      for name, value in config_identity.to_flat(one).items()
      if name.startswith('model.' if same else 'model.name')
    }
    for one in (source.config, config)
  ]
  fields = config_identity.differences(*models)
  return (
    f'train.init_from is {config.train.init_from!r}, whose network differs '
    f'from this one in {len(differing)} layers: '
    f'{_shortened(map(problem, differing), _NAMED, len(differing))}'
    + (f'; the configs differ in {", ".join(fields)}' if fields else '')
    + '. Make config.model equal, or pass '
    '--config.train.init_skip_mismatch=True to leave layers that do not fit '
    'at random values.'
  )


def _shortened(names: Iterable[str], limit: int, count: int) -> str:
  first = [name for _, name in zip(range(limit), names, strict=False)]
  more = [f'and {count - limit} more'] if count > limit else []
  return ', '.join([*first, *more])


def _layer(path: tuple[Any, ...]) -> str:
  """A layer's name, as in the layer table, of one of its arrays' path."""
  names = [str(entry.key) for entry in path]
  return '/'.join(names[1:-1]) or names[-1]


def _by_layer(arrays: _Arrays) -> dict[str, dict[str, tuple[int, ...]]]:
  """Layer to name and shape of its arrays, parameters and statistics."""
  layers: dict[str, dict[str, tuple[int, ...]]] = {}
  for path, array in arrays.items():
    shapes = layers.setdefault(_layer(path), {})
    shapes[str(path[-1].key)] = tuple(array.shape)
  return layers


def fingerprint(variables: Any) -> str:
  """SHA-256 of names, shapes and values of arrays, in hexadecimal digits."""
  digest = hashlib.sha256()
  for path, array in jax.tree_util.tree_leaves_with_path(variables):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()


def describe(record: Record, pixel_size: float) -> str:
  """Lines on what a run began with; its data have pixels of `pixel_size`."""

  def size(nanometres: float) -> str:
    return f'{nanometres:g} nm a pixel' if nanometres else 'pixel size unknown'

  lines = [
    f'weights: from {record["path"]}, its best, after epoch '
    f'{record["best_epoch"]} (SHA-256 {record["sha256"][:12]}), trained on '
    f'{record["dataset"]} ({size(record["pixel_size"])}; now '
    f'{size(pixel_size)})'
  ]
  for name, text in (
    ('left_random', 'layers that begin with random values'),
    ('unused', 'layers there that this network does not have'),
  ):
    if record[name]:
      listed = _shortened(record[name], _LISTED, len(record[name]))
      lines.append(f'         {text}: {listed}')
  return '\n'.join(lines)
