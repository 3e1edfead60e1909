"""What a comparison of runs found, in sentences computed from its data."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from skipnet_jax import config_identity
from skipnet_jax.analysis.page import figures
from skipnet_jax.runs import recorded

# A stage that changes by a smaller share of the mean counts as starved.
_STARVED = 0.5


@dataclasses.dataclass(frozen=True)
class Least:
  """The stage with the least of a quantity in the last half of the epochs.

  Attributes:
    stage: its name.
    ratio: the geometric mean of the quantity over its convolutions and those
      epochs, divided by that over all convolutions.
    low: the least such ratio of an epoch.
    high: the largest.
    wins: the number of epochs in which it is the least stage.
    epochs: the number of all those epochs whose record is left.
  """

  stage: str
  ratio: float
  low: float
  high: float
  wins: int
  epochs: int


def least_stage(run: recorded.RecordedRun, quantity: str) -> Least | None:
  """The stage of a run with the least of a quantity of its record.

  None if no record of the last half of the epochs is left.
  """
  late = run.flow[quantity][run.epochs // 2 :]
  late = late[np.isfinite(late).all(1)]
  if not len(late):
    return None
  logs = np.log(np.maximum(late, 1e-30))
  stages = figures.stages_of(run.layers)
  ratios = np.stack(
    [logs[:, b:e].mean(1) - logs.mean(1) for _, b, e in stages], 1
  )
  number = int(ratios.mean(0).argmin())
  own = np.exp(ratios[:, number])
  wins = int(np.count_nonzero(ratios.argmin(1) == number))
  ratio = float(np.exp(ratios[:, number].mean()))
  low, high = float(own.min()), float(own.max())
  return Least(stages[number][0], ratio, low, high, wins, len(own))


def sentences(runs: Sequence[recorded.RecordedRun]) -> list[str]:
  """What was found, and what else differs between the runs."""
  groups = recorded.by_network(runs)
  others = confounders([group[0] for group in groups.values()])
  found: dict[str, list[Least]] = {}
  for name, group in groups.items():
    seeds = [least_stage(run, 'net_change') for run in group]
    if left := [least for least in seeds if least]:
      found[name] = left
  if not found:
    return ['No record of the last half of the epochs is left.', *others]
  ratios = {
    name: float(np.exp(np.mean([np.log(each.ratio) for each in seeds])))
    for name, seeds in found.items()
  }
  order = sorted(found, key=ratios.__getitem__)
  starved = [name for name in order if ratios[name] < _STARVED]
  lines = [_starved(name, found[name], ratios[name]) for name in starved]
  most_even = order[-1]
  if most_even not in starved:
    lines.append(
      f'The most even is {most_even}: there the least stage, '
      f'{found[most_even][0].stage}, changes by {ratios[most_even]:.2f} of the '
      'mean.'
    )
  else:
    lines.append('No network updates all of its stages evenly.')
  return lines + others


def _starved(name: str, seeds: Sequence[Least], ratio: float) -> str:
  first = seeds[0]
  if len(seeds) == 1:
    sure = (
      f'{first.low:.2f} to {first.high:.2f} in {first.epochs} epochs of the '
      f'last half; in {first.wins} of them it changes least'
    )
  else:
    each = [seed.ratio for seed in seeds]
    same = sum(seed.stage == first.stage for seed in seeds)
    sure = (
      f'{min(each):.2f} to {max(each):.2f} in {len(seeds)} seeds; it is the '
      f'least stage in {same} of them'
    )
  return (
    f'In {name} the stage {first.stage} is starved: its weights change by '
    f'{ratio:.2f} of the mean over all convolutions ({sure}).'
  )


def confounders(runs: Sequence[recorded.RecordedRun]) -> list[str]:
  """A sentence on fields that differ besides those of the network."""
  varied = config_identity.varied([run.config for run in runs])
  others = {
    name: values
    for name, values in varied.items()
    if not name.startswith('model.')
  }
  if not others:
    return []
  parts = []
  for name, values in others.items():
    by_value: dict[str, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
      by_value.setdefault(str(value), []).append(run.name)
    parts.append(
      f'{name} is '
      + ' and '.join(f'{v} in {", ".join(who)}' for v, who in by_value.items())
    )
  return [
    f'The runs do not differ in their networks alone: {"; ".join(parts)}. What '
    'differs between them may come from that.'
  ]
