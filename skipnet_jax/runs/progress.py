"""The progress of a run."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

# Records in a checkpoint in addition to those since the checkpoint before.
_SPARE = 10


@dataclasses.dataclass(frozen=True)
class Progress:
  """The values that a checkpoint keeps beside the arrays.

  Attributes:
    epoch: number of finished epochs.
    step: number of finished steps.
    best_loss: the lowest validation loss of an epoch.
    best_epoch: the epoch with that loss; None before the first.
    best_record: the record of that epoch.
    seconds: training time of all epochs, without compiling.
    wall_seconds: time of the processes that trained them, compiling, validation
      and checkpoints included; None if an earlier version trained some.
    records: the newest ones, in case metrics.jsonl loses its end.
  """

  epoch: int = 0
  step: int = 0
  best_loss: float = math.inf
  best_epoch: int | None = None
  best_record: dict[str, Any] | None = None
  seconds: float = 0.0
  wall_seconds: float | None = 0.0
  records: Sequence[dict[str, Any]] = ()

  def after(
    self,
    record: dict[str, Any],
    seconds: float,
    every: int,
    wall: float | None = None,
  ) -> 'Progress':
    """The progress after the next epoch.

    Args:
      record: of the epoch.
      seconds: its training time.
      every: epochs between two checkpoints.
      wall: `wall_seconds` after it.
    """
    best = self.best_record
    if best is None or record['valid_loss'] < self.best_loss:
      best = record
    return dataclasses.replace(
      self,
      epoch=record['epoch'],
      step=record['step'],
      best_loss=best['valid_loss'],
      best_epoch=best['epoch'],
      best_record=best,
      seconds=self.seconds + seconds,
      wall_seconds=wall,
      records=[*self.records, record][-(every + _SPARE) :],
    )

  def to_json(self) -> dict[str, Any]:
    """JSON values that `from_json` reads back exactly."""
    return vars(self) | {'records': list(self.records)}

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'Progress':
    """Reads the values of `to_json`; ignores other names.

    An earlier version did not save `wall_seconds`.
    """
    value = {'wall_seconds': None} | value
    return cls(**{f.name: value[f.name] for f in dataclasses.fields(cls)})
