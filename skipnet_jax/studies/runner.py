"""Trains the missing runs of a study within a time budget."""

from collections.abc import Callable
import dataclasses
import math
import pathlib
import statistics
import time

from skipnet_jax import errors
from skipnet_jax.runs import run_log
from skipnet_jax.studies import plan
from skipnet_jax.training import loop
from skipnet_jax.training import preemption
from skipnet_jax.training import prepare
from skipnet_jax.training import summary as summary_lib


class Deadline(preemption.StopSignal):
  """Also stops a run, with a checkpoint, when the clock reaches `end`."""

  def __init__(self, end: float, clock: Callable[[], float]):
    super().__init__()
    self._end, self._clock = end, clock
    self.reason = 'as its time is over'

  def should_stop(self) -> bool:
    """Whether SIGTERM was received or the time is over."""
    return super().should_stop() or self._clock() >= self._end


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run is.

  Attributes:
    name: of the run.
    done: epochs trained so far.
    epochs: epochs to train in all.
    finished: whether its summary is written.
    seconds: training time so far.
  """

  name: str
  done: int
  epochs: int
  finished: bool
  seconds: float


def progress(study: plan.Study, folder: pathlib.Path) -> list[Progress]:
  """Reads from the files how far each run of a study is."""
  rows = []
  for name, config in study.runs.items():
    records = run_log.readable_records(folder / name / 'metrics.jsonl')
    epochs = config.train.epochs
    finished = summary_lib.is_finished(folder / name, epochs)
    seconds = sum(record['seconds'] for record in records.values())
    rows.append(Progress(name, len(records), epochs, finished, seconds))
  return rows


def estimate(
  study: plan.Study, rows: list[Progress]
) -> dict[str, float] | None:
  """Seconds of training that each run still needs; None before any epoch.

  An epoch takes as long as in the runs of the same row or, if these have none
  yet, as in all runs.
  """
  paces = {r.name: r.seconds / r.done for r in rows if r.done}
  if not paces:
    return None
  left = {}
  for row in rows:
    label = study.row_of[row.name]
    alike = [paces[name] for name in paces if study.row_of[name] == label]
    pace = statistics.median(alike or paces.values())
    left[row.name] = 0 if row.finished else pace * max(0, row.epochs - row.done)
  return left


def format_status(study: plan.Study, folder: pathlib.Path) -> str:
  """One line for each run, and a sentence on all of them."""
  rows = progress(study, folder)
  left = estimate(study, rows)
  lines = []
  for row in rows:
    state = 'done' if row.finished else ('begun' if row.done else 'to do')
    line = f'{row.name:24s} {state:6s} {row.done:5d} of {row.epochs} epochs'
    if left and not row.finished:
      line += f', about {left[row.name] / 60:.0f} min'
    lines.append(line)
  done = sum(row.finished for row in rows)
  rest = 'the time for the rest is not known yet'
  if left:
    rest = f'about {sum(left.values()) / 60:.0f} min of training are left'
  return '\n'.join([*lines, f'{done} of {len(rows)} runs are done; {rest}'])


def train(
  study: plan.Study,
  folder: pathlib.Path,
  *,
  budget: float | None,
  say: Callable[[str], None],
  clock: Callable[[], float] = time.monotonic,
) -> bool:
  """Trains the unfinished runs, one after the other.

  Args:
    study: from `plan.make`.
    folder: of the study, with a subfolder for each run.
    budget: seconds; then the current run stops with a checkpoint, and the next
      call resumes it. None for no limit.
    say: called with each progress message.
    clock: gives seconds.

  Returns:
    Whether all runs are finished.

  Raises:
    InputError: the folder has a run of another config or other data. Checked
      before any training.
  """
  end = math.inf if budget is None else clock() + budget
  for name, config in study.runs.items():
    prepare.check(folder / name, config)
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
