"""Writes a report: one self-contained HTML page, and its figures as files."""

import base64
from collections.abc import Iterable, Sequence
import dataclasses
import html
import os
import pathlib
import re
from typing import Any

import jinja2

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import plots
from skipnet_jax import tables
from skipnet_jax.analysis.page import figures
from skipnet_jax.runs import workdir

PAGE = 'report.html'
TABLES = ('differences', 'scores', 'least_trained', 'sharpness')
# In every page.
_SIGN = '<a href="#made">How it was made</a>'


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of a page.

  Attributes:
    title: its heading.
    text: what its columns mean.
    columns: their names.
    rows: str, int or float cells; None for an empty cell.
    name: of its CSV file, one of `TABLES`; '' for none.
  """

  title: str
  text: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  name: str = ''


@dataclasses.dataclass(frozen=True)
class Page:
  """The contents of a report.

  Attributes:
    title: its heading.
    subtitle: a sentence on what was compared, and on which data.
    figures: in the order of the page.
    tables: before the figures.
    warnings: such as that of synthetic data.
    details: name to text that the reader can unfold, such as a config.
    findings: sentences on what was found, before all else.
    notes: on names and scores, after them.
  """

  title: str
  subtitle: str
  figures: Sequence[figures.FigureWithData]
  tables: Sequence[Table] = ()
  warnings: Sequence[str] = ()
  details: dict[str, str] = dataclasses.field(default_factory=dict)
  findings: Sequence[str] = ()
  notes: Sequence[str] = ()


def check_files(
  folder: str | os.PathLike,
  *,
  overwrite: bool = False,
  own: str | None = None,
  inputs: Iterable[str | os.PathLike] = (),
  remedy: str = 'choose another --output or pass --overwrite',
) -> None:
  """Checks that no file in the folder of a report is replaced unasked.

  Args:
    folder: may be missing.
    overwrite: whether files that exist may be replaced.
    own: how a page of `write` begins its title that may be replaced, with the
      figures beside it that it names; None for no page.
    inputs: files that are read, and never replaced.
    remedy: against a file that exists.

  Raises:
    InputError: it names the first file.
  """
  folder = pathlib.Path(folder)
  names = [f'{n}{end}' for n in figures.NAMES for end in ('.png', '.csv')]
  names += [f'{name}.csv' for name in TABLES]
  try:
    text = (folder / PAGE).read_text()
  except (OSError, ValueError):
    text = ''
  title = re.search('<title>(.*)</title>', text)
  written = set()
  if (
    own is not None
    and _SIGN in text
    and title
    and html.unescape(title[1]).startswith(own)
  ):
    written = {PAGE, *re.findall('<a href="([^"#]+)">', text)}
  places = {name: folder / name for name in (PAGE, *names)}
  files.check_outputs(places.values(), overwrite=True, inputs=inputs)
  foreign = [path for name, path in places.items() if name not in written]
  files.check_outputs(foreign, overwrite=overwrite, remedy=remedy)


def check(
  folder: str | os.PathLike, *, overwrite: bool, own: str | None = None
) -> pathlib.Path:
  """Creates the folder of a report; call it before anything is measured.

  Args:
    folder: of the report.
    overwrite: see `check_files`.
    own: see `check_files`.

  Raises:
    InputError: the folder cannot be written, or a file would be replaced.
  """
  path = make_folder(folder)
  check_files(path, overwrite=overwrite, own=own)
  return path


def make_folder(folder: str | os.PathLike) -> pathlib.Path:
  """Creates the folder that --output names, where it is missing.

  Raises:
    InputError: it cannot be created or written.
  """
  path = pathlib.Path(folder)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.InputError(
      f'The folder {path} of --output cannot be created ({e.strerror}): '
      'choose another.'
    ) from e
  if not os.access(path, os.W_OK):
    raise errors.InputError(
      f'The folder {path} of --output is not writable: choose another.'
    )
  return path


def write(folder: pathlib.Path, page: Page) -> pathlib.Path:
  """Writes report.html; beside it a PNG and a CSV file of each figure.

  Tables that have a name become CSV files too.

  Returns:
    The page's path.
  """
  images = {one.name: plots.to_png(one.figure) for one in page.figures}
  environment = workdir.environment()
  packages = environment.pop('packages')
  environment['packages'] = ', '.join(f'{k} {v}' for k, v in packages.items())
  environment['devices'] = ', '.join(environment['devices'])
  loader = jinja2.PackageLoader('skipnet_jax.analysis', 'page')
  templates = jinja2.Environment(
    loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
  )
  templates.filters['cell'] = _cell
  templates.filters['anchor'] = _anchor
  text = templates.get_template(PAGE).render(
    vars(page),
    images={k: base64.b64encode(png).decode() for k, png in images.items()},
    environment={k: v for k, v in environment.items() if v != ''},
  )
  path = folder / PAGE
  # First, because `check_files` knows the other files by it.
  files.write_whole(path, text)
  for one in page.figures:
    files.write_whole(folder / f'{one.name}.png', images[one.name])
  written: list[figures.FigureWithData | Table] = [*page.figures]
  written += [table for table in page.tables if table.name]
  for each in written:
    rows = (
      [f'{v:.6g}' if isinstance(v, float) else v for v in row]
      for row in each.rows
    )
    files.write_csv(folder / f'{each.name}.csv', each.columns, rows)
  return path


def format_tables(page: Page) -> str:
  """The page's tables as text for a terminal."""
  blocks = []
  for table in page.tables:
    cells = [list(table.columns), *([_cell(c) for c in r] for r in table.rows)]
    widths = [-max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [tables.line(row, widths).rstrip() for row in cells]
    blocks.append('\n'.join([table.title, *lines]))
  return '\n\n'.join(['', *blocks, ''])


def _anchor(title: str) -> str:
  """The name of a place in the page, made of a table's title."""
  return 'table-' + re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')


def _cell(value: Any) -> str:
  if value is None:
    return '–'
  if isinstance(value, float):
    return f'{value:.4f}' if 1e-3 <= abs(value) < 1e3 else f'{value:.3g}'
  return f'{value:,}' if isinstance(value, int) else str(value)
