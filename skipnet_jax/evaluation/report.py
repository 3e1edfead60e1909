"""The files of an evaluation, and its table for the terminal."""

import dataclasses
import os
import pathlib
from typing import Any

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import tables
from skipnet_jax.data import volume
from skipnet_jax.evaluation import judge
from skipnet_jax.evaluation import panels

_COLUMNS = (
  ('threshold', 'threshold'),
  ('v_rand', 'V_rand'),
  ('rand_merge', 'merge'),
  ('rand_split', 'split'),
  ('v_info', 'V_info'),
  ('info_merge', 'merge'),
  ('info_split', 'split'),
)
_PIXEL = ('accuracy', 'dice', 'iou', 'average_precision')


@dataclasses.dataclass(frozen=True)
class Report:
  """Where an evaluation is written to.

  Attributes:
    scores: the JSON file; the curves are beside it, as PNG.
    panels: folder of a picture for each slice, or None.
  """

  scores: pathlib.Path
  panels: pathlib.Path | None = None

  @property
  def curves(self) -> pathlib.Path:
    """The picture of both scores over the thresholds."""
    return self.scores.with_suffix('.png')

  def check(self, overwrite: bool) -> None:
    """Refuses, before any work, what could not be written after it.

    Raises:
      InputError: a file exists, its name has another ending, or there is no
        folder for it.
    """
    if self.scores.suffix != '.json':
      raise errors.InputError(
        f'--output is {self.scores}; its name must end in .json.'
      )
    parent = self.scores.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
      raise errors.InputError(
        f'The folder {parent} of --output is missing or cannot be written: '
        'make it, or choose another.'
      )
    there = [p for p in (self.scores, self.curves) if p.exists()]
    if self.panels is not None:
      if self.panels.exists() and not self.panels.is_dir():
        raise errors.InputError(
          f'--panels is {self.panels}, a file: name a folder.'
        )
      there += sorted(self.panels.glob('slice_*.png'))
    if there and not overwrite:
      raise errors.InputError(
        f'{there[0]} exists; choose another name or pass --overwrite.'
      )

  def write(self, verdict: judge.Verdict) -> list[str]:
    """Writes all files; returns a line on each."""
    (_, result), *others = verdict.results.items()
    content = result | verdict.identity | dict(others)
    if verdict.warning:
      content['warning'] = verdict.warning
    files.write_json(self.scores, content)
    curves = panels.score_curves(
      verdict.results, verdict.title, verdict.warning
    )
    volume.write_png(self.curves, curves)
    lines = [
      f'{self.scores}: the scores',
      f'{self.curves}: both over the thresholds',
    ]
    if self.panels is None:
      return lines
    self.panels.mkdir(parents=True, exist_ok=True)
    threshold = result['threshold_v_rand']
    for place, row in enumerate(result['per_slice']):
      picture = panels.slice_panel(
        verdict.prediction[place],
        verdict.inside[place],
        0.5 if threshold is None else threshold,
        None if verdict.image is None else verdict.image[place],
        title=(
          f'{verdict.title}\nslice {row["slice"]}: V_rand '
          f'{_show(row["v_rand"])}, V_info {_show(row["v_info"])}'
        ),
        warning=verdict.warning,
      )
      path = self.panels / f'slice_{row["slice"]:03d}.png'
      volume.write_png(path, picture)
    lines.append(f'{self.panels}: a picture of each slice')
    return lines


def _show(value: float | None, digits: int = 4) -> str:
  return '-' if value is None else f'{value:.{digits}f}'


def format_table(results: dict[str, dict[str, Any]]) -> str:
  """Scores for the terminal: by threshold, then the best beside each other.

  Args:
    results: name to the content of a scores.json; the thresholds are those of
      the first.
  """
  result = next(iter(results.values()))
  equal = [9] * len(_COLUMNS)
  lines = [tables.line([name for _, name in _COLUMNS], equal)]
  for row in result['per_threshold']:
    cells = [_show(row['threshold'], 1)]
    cells += [_show(row[key]) for key, _ in _COLUMNS[1:]]
    best = [
      name
      for key, name in (('v_rand', 'V_rand'), ('v_info', 'V_info'))
      if row['threshold'] == result[f'threshold_{key}']
    ]
    mark = f'  best {" and ".join(best)}' if best else ''
    lines.append(tables.line(cells, equal) + mark)
  heads = ('', 'V_rand', 'at', 'V_info', 'at', 'accuracy', 'dice', 'iou', 'AP')
  widths = (-max(len(name) for name in results), 9, 4, 9, 4, 9, 9, 9, 9)
  lines += ['', tables.line(heads, widths, ' ')]
  for name, result in results.items():
    cells = [
      name,
      _show(result['v_rand']),
      _show(result['threshold_v_rand'], 1),
      _show(result['v_info']),
      _show(result['threshold_v_info'], 1),
      *(_show(result['pixel'][key]) for key in _PIXEL),
    ]
    lines.append(tables.line(cells, widths, ' '))
  lines.append('dice, iou and AP (average precision) are of the membrane.')
  return '\n'.join(lines)
