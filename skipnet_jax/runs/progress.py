"""How far a run has come."""

import dataclasses
import math
from typing import Any

# Records in a checkpoint beyond those since the one before.
_SPARE = 10


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a checkpoint keeps beside the arrays.

  Attributes:
    epoch: whole epochs done.
    step: steps done.
    best_loss: the least validation loss of an epoch.
    best_epoch: the epoch that had it; None before the first.
    best_record: that epoch's record.
    seconds: of all epochs, without compiling.
    records: the newest ones, should metrics.jsonl lose its end.
  """

  epoch: int = 0
  step: int = 0
  best_loss: float = math.inf
  best_epoch: int | None = None
  best_record: dict[str, Any] | None = None
  seconds: float = 0.0
  records: tuple[dict[str, Any], ...] = ()

  def after(
    self, record: dict[str, Any], seconds: float, every: int
  ) -> 'Progress':
    """The progress after one epoch more.

    Args:
      record: of the epoch.
      seconds: it took.
      every: epochs between two checkpoints.
    """
    best = {}
    if record['valid_loss'] < self.best_loss:
      best = {
        'best_loss': record['valid_loss'],
        'best_epoch': record['epoch'],
        'best_record': record,
      }
    return dataclasses.replace(
      self,
      epoch=record['epoch'],
      step=record['step'],
      seconds=self.seconds + seconds,
      records=(*self.records, record)[-(every + _SPARE) :],
      **best,
    )

  def to_json(self) -> dict[str, Any]:
    """JSON values that `from_json` reads back exactly."""
    found = vars(self) | {'records': list(self.records)}
    return {name: value for name, value in found.items() if value is not None}

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'Progress':
    """What `to_json` gave; other names are passed over."""
    names = [field.name for field in dataclasses.fields(cls)]
    kept = {name: value[name] for name in names if name in value}
    return cls(**kept | {'records': tuple(kept.get('records', ()))})
