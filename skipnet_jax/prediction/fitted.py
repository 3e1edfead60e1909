"""Files in a run's folder with what was fitted to its predictions.

A fit belongs to the parameters of the best checkpoint, and to one way to
average: a file has a fit for each way.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
from typing import Any

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.runs import trained


@dataclasses.dataclass(frozen=True)
class Averaging:
  """Which predictions of a slice are averaged, see `inference.Predictor`."""

  tta: bool = False
  mc_samples: int = 0

  @property
  def name(self) -> str:
    """Its name in results: 'plain' if nothing is averaged."""
    samples = [f'{self.mc_samples} samples'] if self.mc_samples else []
    turns = ['8 orientations'] if self.tta else []
    return ' x '.join([*samples, *turns]) or 'plain'

  @property
  def flags(self) -> str:
    """The flags that ask for it, each after a space."""
    samples = f' --mc_samples={self.mc_samples}' if self.mc_samples else ''
    return (' --tta' if self.tta else '') + samples


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of fit.

  Attributes:
    file: its name in the run's folder.
    flag: of `evaluate`, which makes the fit.
    version: changes with the meaning of the content.
    remedy: what else helps against a file that cannot be used, after ', or '.
  """

  file: str
  flag: str
  version: int
  remedy: str = ''

  def command(self, run: trained.TrainedRun, averaging: Averaging) -> str:
    """The command that makes the fit."""
    return (
      f'python -m skipnet_jax.evaluate --workdir={run.path} {self.flag}'
      f'{averaging.flags}'
    )


def check_writable(run: trained.TrainedRun, kind: Kind) -> None:
  """Checks that a fit can be kept; call it before any work.

  Raises:
    InputError: the file is a folder, or the run's folder is not writable.
  """
  files.check_outputs([run.path / kind.file], overwrite=True)
  if not os.access(run.path, os.W_OK):
    raise errors.InputError(
      f'The folder {run.path} is not writable, but {kind.flag} keeps '
      f'{kind.file} there: change its permissions, or copy the run.'
    )


def read(
  run: trained.TrainedRun, kind: Kind, averaging: Averaging
) -> Mapping[str, Any] | None:
  """The fit for a way to average; None if there is none.

  Raises:
    InputError: the file is damaged, or of another network or version.
  """
  return _read(run, kind, averaging).get(averaging.name)


def write(
  run: trained.TrainedRun,
  kind: Kind,
  averaging: Averaging,
  fit: Mapping[str, Any],
) -> None:
  """Adds a fit to the file; one that cannot be used is kept as FILE.old."""
  path = run.path / kind.file
  try:
    fits = _read(run, kind, averaging)
  except errors.InputError:
    fits = {}
    path.replace(path.with_name(f'{kind.file}.old'))
  content = {
    'version': kind.version,
    'network': trained.network_of(run),
    'best_epoch': run.best_epoch,
    'fits': fits | {averaging.name: dict(fit)},
  }
  files.write_json(path, content)


def refusal(
  run: trained.TrainedRun, kind: Kind, averaging: Averaging, problem: str
) -> errors.InputError:
  """An error that names the command that makes the fit."""
  return errors.InputError(
    f'{run.path / kind.file} {problem}: {remedy(run, kind, averaging)}'
    f'{kind.remedy}.'
  )


def remedy(run: trained.TrainedRun, kind: Kind, averaging: Averaging) -> str:
  """What helps where a fit is missing or cannot be used."""
  if not run.ships:
    return f'run {kind.command(run, averaging)}'
  # Its files are of the package.
  fits = files.read_json(run.path / kind.file).get('fits', {})
  return (
    f'the network ships with fits for {" and ".join(fits) or "nothing"}, so '
    f'leave out{averaging.flags or " --method"}'
  )


def _read(
  run: trained.TrainedRun, kind: Kind, averaging: Averaging
) -> dict[str, Any]:
  try:
    content = json.loads((run.path / kind.file).read_text())
    version, network = content['version'], content['network']
    epoch, fits = content['best_epoch'], dict(content['fits'])
    if not all(isinstance(fit, dict) for fit in fits.values()):
      raise TypeError('a fit is no object')
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
    raise refusal(run, kind, averaging, files.why_unreadable(e)) from e
  if version != kind.version:
    raise refusal(
      run,
      kind,
      averaging,
      f'is of version {version}, but version {kind.version} is needed',
    )
  if network != trained.network_of(run):
    raise refusal(
      run,
      kind,
      averaging,
      f'was fitted to another network, of epoch {epoch}; the best checkpoint '
      f'of {run.path} is of epoch {run.best_epoch}',
    )
  return fits
