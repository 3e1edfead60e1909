"""Reads the records of runs, and checks whether runs can be compared."""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
from typing import Any, TypeVar

import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import data_set
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir

Content = TypeVar('Content')


@dataclasses.dataclass(frozen=True)
class RecordedRun:
  """The content of a run's folder, without its checkpoints.

  Attributes:
    name: shown in panels and legends.
    path: the run's folder.
    config: its config.
    dataset: name, fingerprint and pixel size of its training data.
    environment: devices, versions, command and date.
    records: one dict an epoch, see metrics.jsonl; some may be lost.
    summary: scores of the best checkpoint; {} for an unfinished run.
    layers: convolutions in forward order, `l` names.
    flow: quantity of `telemetry.QUANTITIES` to `[epochs, l]` float32; NaN
      for an epoch that gradient_flow.npz lost.
    first_steps: the first steps one by one, in the order of
      `telemetry.STEP_QUANTITIES`, `[steps, 4, l]` float32; no step of a run of
      an earlier version.
  """

  name: str
  path: pathlib.Path
  config: ml_collections.ConfigDict
  dataset: data_set.Identity
  environment: dict[str, Any]
  records: list[dict[str, Any]]
  summary: dict[str, Any]
  layers: tuple[str, ...]
  flow: dict[str, np.ndarray]
  first_steps: np.ndarray

  @property
  def epochs(self) -> int:
    """The last recorded epoch, counted from one."""
    return len(self.flow['net_change'])

  def curve(self, name: str) -> np.ndarray:
    """One number of each epoch, such as 'valid_loss', `[epochs]` float64.

    It is NaN where an epoch's record is lost, or has no such number.

    Raises:
      KeyError: no record has one.
    """
    if not any(name in record for record in self.records):
      raise KeyError(name)
    values = np.full(self.epochs, np.nan)
    for record in self.records:
      values[record['epoch'] - 1] = record.get(name, np.nan)
    return values


def _read(
  path: pathlib.Path, read: Callable[[pathlib.Path], Content]
) -> Content:
  try:
    return read(path)
  except FileNotFoundError as e:
    raise errors.InputError(
      f'{path.parent} has no {path.name}: run its training command again to '
      'record an epoch, or name another run.'
    ) from e
  except errors.InputError:
    raise
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f'{path} {files.why_unreadable(e)}: name another run, or train this one '
      'again in another --workdir.'
    ) from e


def open_run(path: str | os.PathLike, name: str = '') -> RecordedRun:
  """Reads a run's records.

  Args:
    path: the run's folder.
    name: shown in panels and legends; by default the folder's name.

  Raises:
    InputError: the folder is not a run, or has no record of an epoch.
  """
  path = pathlib.Path(path)
  config = workdir.read_config(path)
  layers, flow = _read(path / 'gradient_flow.npz', flow_file.read)
  records = _read(path / 'metrics.jsonl', run_log.read_records)
  # A run may end between the two files.
  count = len(flow['net_change'])
  records = [record for record in records if record['epoch'] <= count]
  if not records:
    raise errors.InputError(
      f'{path} stopped after 0 epochs, so there is nothing to show: run its '
      'training command again.'
    )
  return RecordedRun(
    name=name or path.resolve().name,
    path=path,
    config=config,
    dataset=workdir.read_dataset(path),
    environment=files.read_json(path / 'environment.json'),
    records=records,
    summary=files.read_json(path / 'summary.json'),
    layers=tuple(layers),
    flow={q: rows[: records[-1]['epoch']] for q, rows in flow.items()},
    first_steps=_read(path / 'gradient_flow.npz', flow_file.read_first_steps),
  )


def open_runs(
  paths: Sequence[str | os.PathLike], *, allow_differences: bool = False
) -> list[RecordedRun]:
  """Reads the runs of a comparison.

  Networks (the config's `model`) and seeds may differ; all else must not.

  Args:
    paths: folders of at least two runs.
    allow_differences: whether everything else may differ too.

  Raises:
    InputError: fewer than two runs, one named twice, one that cannot be read,
      or runs that differ in more than their networks.
  """
  folders = [pathlib.Path(path) for path in paths]
  if len(folders) < 2:
    raise errors.InputError(
      f'--runs names {len(folders) or "no"} run'
      f'{f" ({folders[0]})" if folders else ""}; a comparison needs two or '
      'more, separated by commas.'
    )
  places = [folder.resolve() for folder in folders]
  for folder, place in zip(folders, places, strict=True):
    if places.count(place) > 1:
      raise errors.InputError(f'--runs names {folder} twice: leave one out.')
  names = [place.name for place in places]
  runs = [
    open_run(folder, name if names.count(name) == 1 else str(folder))
    for folder, name in zip(folders, names, strict=True)
  ]
  if not allow_differences:
    for other in runs[1:]:
      _check_comparable(runs[0], other)
  return runs


def by_network(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
  """Runs on the same data that differ in the seed alone, by a name."""
  groups: dict[str, list[RecordedRun]] = {}
  names: dict[str, str] = {}
  for run in runs:
    config = config_identity.identity(run.config)
    rest = {k: v for k, v in config.items() if k not in ('seed', 'experiment')}
    rest['data'] = run.dataset.get('fingerprint')
    rest['epochs'] = run.config.train.epochs
    name = names.setdefault(repr(sorted(rest.items())), run.name)
    groups.setdefault(name, []).append(run)
  return groups


def _check_comparable(first: RecordedRun, other: RecordedRun) -> None:
  a, b = (
    {
      name: value
      for name, value in config_identity.identity(run.config).items()
      if not name.startswith('model.') and name not in ('experiment', 'seed')
    }
    | {
      'data set fingerprint': run.dataset['fingerprint'],
      'epochs recorded': run.epochs,
    }
    for run in (first, other)
  )
  changed = config_identity.differences(a, b)
  if changed:
    raise errors.InputError(
      f'{first.path} and {other.path} differ in more than their networks: '
      f'{", ".join(changed).replace(", now ", " and ")}: compare others, or '
      'pass --allow_differences.'
    )
