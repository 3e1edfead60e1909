"""Trains what a study still lacks, within a budget of time."""

from collections.abc import Callable
import dataclasses
import pathlib
import statistics
import time

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import sources
from skipnet_jax.runs import run_log
from skipnet_jax.runs import workdir
from skipnet_jax.studies import plan
from skipnet_jax.training import loop
from skipnet_jax.training import preemption

Say = Callable[[str], None]


class Deadline(preemption.Preemption):
  """Stops a run, with a checkpoint, when its time is over."""

  def __init__(self, end: float, clock: Callable[[], float]):
    super().__init__()
    self._end, self._clock = end, clock
    self.reason = 'as its time is over'

  def reached(self) -> bool:
    """Whether SIGTERM came or the time is over."""
    return super().reached() or self._clock() >= self._end


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run has come.

  Attributes:
    name: of the run.
    done: epochs done.
    epochs: of all.
    finished: whether its summary is written.
    seconds: of training so far.
  """

  name: str
  done: int
  epochs: int
  finished: bool
  seconds: float


def progress(study: plan.Study, folder: pathlib.Path) -> list[Progress]:
  """How far each run of a study is; reads files alone."""
  found = []
  for name, config in study.runs.items():
    path = folder / name
    records = []
    if (path / 'metrics.jsonl').exists():
      records = run_log.read_records(path / 'metrics.jsonl')
    summary = files.read_json(path / 'summary.json')
    found.append(
      Progress(
        name,
        len(records),
        config.train.epochs,
        summary.get('epochs', 0) >= config.train.epochs,
        sum(record['seconds'] for record in records),
      )
    )
  return found


def estimate(
  study: plan.Study, rows: list[Progress]
) -> dict[str, float | None]:
  """Seconds of training that each run still needs.

  By the seconds an epoch took in its row's runs, else in any; None where
  nothing is known.
  """

  def pace(of):
    rates = [r.seconds / r.done for r in of if r.done]
    return statistics.median(rates) if rates else None

  left = {}
  for row in rows:
    label = study.row_of[row.name]
    alike = [r for r in rows if study.row_of[r.name] == label]
    rate = pace(alike) or pace(rows)
    epochs = 0 if row.finished else max(0, row.epochs - row.done)
    left[row.name] = rate * epochs if rate is not None else None
  return left


def format_status(study: plan.Study, folder: pathlib.Path) -> str:
  """What is done and what is left, one line a run."""
  rows = progress(study, folder)
  left = estimate(study, rows)
  lines = []
  for row in rows:
    state = 'done' if row.finished else ('begun' if row.done else 'to do')
    rest = left[row.name]
    lines.append(
      f'{row.name:24s} {state:6s} {row.done:5d} of {row.epochs} epochs'
      + ('' if row.finished or rest is None else f', about {_minutes(rest)}')
    )
  known = [x for x in left.values() if x is not None]
  done = sum(row.finished for row in rows)
  lines.append(
    f'{done} of {len(rows)} runs are done; '
    + (
      f'about {_minutes(sum(known))} of training are left'
      if len(known) == len(rows)
      else 'how long the rest takes is not known yet'
    )
  )
  return '\n'.join(lines)


def _minutes(seconds: float) -> str:
  return f'{seconds / 60:.0f} min'


def train(
  study: plan.Study,
  folder: pathlib.Path,
  *,
  budget: float | None,
  say: Say,
  clock: Callable[[], float] = time.monotonic,
) -> bool:
  """Trains what is missing, run by run; passes over what is done.

  Args:
    study: from `plan.make`.
    folder: of the study; a run has a folder of its own in it.
    budget: seconds, after which the run under way stops with a checkpoint and
      the next call goes on; None for as long as it takes.
    say: told of progress.
    clock: seconds, growing.

  Returns:
    Whether all runs are finished.

  Raises:
    InputError: a folder with runs of other configs or data; before anything is
      trained.
  """
  end = float('inf') if budget is None else clock() + budget
  for name, config in study.runs.items():
    data = sources.load(config)
    workdir.check(folder / name, config, data.identity())
  todo = [row for row in progress(study, folder) if not row.finished]
  for number, row in enumerate(todo, 1):
    if clock() >= end:
      return False
    say(f'\nTraining {row.name} ({number} of {len(todo)} to train)')
    try:
      loop.train_and_evaluate(
        study.runs[row.name], folder / row.name, Deadline(end, clock)
      )
    except errors.Stopped as e:
      if clock() < end:
        raise
      say(str(e))
      return False
  return True
