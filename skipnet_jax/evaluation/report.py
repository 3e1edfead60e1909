"""Writes the files of an evaluation, and its table for the terminal."""

from collections.abc import Iterable
import dataclasses
import os
import pathlib
from typing import Any

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import tables
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import volume
from skipnet_jax.evaluation import panels
from skipnet_jax.evaluation import scoring
from skipnet_jax.scores import scores

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
class OutputFiles:
  """The files of an evaluation.

  Attributes:
    scores: the JSON file; the curves are beside it, as PNG.
    panels: folder for a picture of each slice, or None.
  """

  scores: pathlib.Path
  panels: pathlib.Path | None = None

  @property
  def curves(self) -> pathlib.Path:
    """The figure of both scores over the thresholds."""
    return self.scores.with_suffix('.png')

  def check(self, overwrite: bool, inputs: Iterable[str | os.PathLike]) -> None:
    """Checks that all files can be written; call it before any work.

    It makes the folder of the panels.

    Args:
      overwrite: whether files that exist may be replaced.
      inputs: the files and folders of slices that are read.

    Raises:
      InputError: a file exists or is an input, its name has another ending, or
        a folder does not exist, cannot be made or is not writable.
    """
    if self.scores.suffix != '.json':
      raise errors.InputError(
        f'--output is {self.scores}, but its name must end in .json.'
      )
    parent = self.scores.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
      raise errors.InputError(
        f'The folder {parent} of --output is missing or not writable: create '
        'it, or choose another.'
      )
    outputs = [self.scores, self.curves]
    if self.panels is not None:
      if os.path.lexists(self.panels) and not self.panels.is_dir():
        raise errors.InputError(
          f'--panels is {self.panels}, a file: name a folder.'
        )
      there = os.path.isdir(self.panels)
      slices = self.panels.glob('slice_*.png') if there else ()
      outputs += sorted(slices) or [self.panels / 'slice_000.png']
    files.check_outputs(outputs, overwrite=overwrite, inputs=inputs)
    for place in inputs:
      ome_zarr.check_outside(outputs, place)
    try:
      if self.panels is not None:
        self.panels.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise errors.InputError(
        f'The folder {self.panels} of --panels cannot be made ({e.strerror}): '
        'choose another.'
      ) from e
    if self.panels is not None and not os.access(self.panels, os.W_OK):
      raise errors.InputError(
        f'The folder {self.panels} of --panels is not writable: choose another.'
      )

  def write(self, evaluation: scoring.Evaluation) -> list[str]:
    """Writes all files; returns a line on each."""
    title, warning = evaluation.title, evaluation.warning
    (_, result), *others = evaluation.results.items()
    content = scores.for_json(result) | evaluation.identity
    content |= {name: scores.for_json(other) for name, other in others}
    if warning:
      content['warning'] = warning
    files.write_json(self.scores, content)
    curves = panels.score_curves(evaluation.results, title, warning)
    volume.write_png(self.curves, curves)
    lines = [
      f'{self.scores}: the scores',
      f'{self.curves}: V_rand and V_info over the thresholds',
    ]
    if self.panels is None:
      return lines
    threshold = result['threshold_v_rand']
    written = set()
    for place, row in enumerate(result['per_slice']):
      picture = panels.slice_panel(
        evaluation.prediction[place],
        evaluation.inside[place],
        0.5 if threshold is None else threshold,
        None if evaluation.image is None else evaluation.image[place],
        title=f'{title}\nslice {row["slice"]}: V_rand '
        f'{_format(row["v_rand"])}, V_info {_format(row["v_info"])}',
        warning=warning,
      )
      written.add(self.panels / f'slice_{row["slice"]:03d}.png')
      volume.write_png(self.panels / f'slice_{row["slice"]:03d}.png', picture)
    lines.append(f'{self.panels}: a picture of each slice')
    if older := sorted({*self.panels.glob('slice_*.png')} - written):
      lines.append(
        f'{self.panels}: {", ".join(path.name for path in older)} are of '
        'another evaluation'
      )
    return lines


def _format(value: float | None, digits: int = 4) -> str:
  return '-' if value is None else f'{value:.{digits}f}'


def format_table(results: dict[str, dict[str, Any]]) -> str:
  """Scores for the terminal: the first result by threshold, then all at best.

  `results` maps a name to the content of a scores.json.
  """
  first = next(iter(results.values()))
  widths = [9] * len(_COLUMNS)
  lines = [tables.line([name for _, name in _COLUMNS], widths)]
  for row in first['per_threshold']:
    cells = [
      _format(row[key], 1 if key == 'threshold' else 4) for key, _ in _COLUMNS
    ]
    best = [
      key.capitalize()
      for key in ('v_rand', 'v_info')
      if row['threshold'] == first[f'threshold_{key}']
    ]
    mark = f'  best {" and ".join(best)}' if best else ''
    lines.append(tables.line(cells, widths) + mark)
  heads = ('', 'V_rand', 'at', 'V_info', 'at', 'accuracy', 'dice', 'iou', 'AP')
  widths = [-max(map(len, results)), 9, 4, 9, 4, 9, 9, 9, 9]
  lines += ['', tables.line(heads, widths, ' ')]
  for name, result in results.items():
    cells = [name]
    for key in ('v_rand', 'v_info'):
      cells += [_format(result[key]), _format(result[f'threshold_{key}'], 1)]
    cells += [_format(result['pixel'][key]) for key in _PIXEL]
    lines.append(tables.line(cells, widths, ' '))
  lines.append('dice, iou and AP (average precision) are of the membrane.')
  return '\n'.join(lines)
