"""Numbers in columns, for a terminal of 100 characters."""

from collections.abc import Iterable, Sequence
import textwrap

WIDTH = 100
_WORDS = ('scaling', 'call', 'feed', 'mode', 'dtype')


def number(value: float | None, scale: float = 1) -> str:
  """A figure, divided by `scale`, in four digits; blank for None."""
  if value is None:
    return ''
  value = value / scale
  if abs(value) >= 1e6:
    return f'{value:.2e}'
  if abs(value) >= 1000:
    return f'{value:.0f}'
  if abs(value) >= 0.1 or value == 0:
    return f'{value:.4g}'
  return f'{value:.2g}'


def layout(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a table: text to the left, figures to the right.

  A column that is blank in every row is left out. Columns stand two spaces
  apart, or one where the line would be wider than WIDTH. Without rows there is
  nothing.
  """
  if not rows:
    return []
  columns = [
    (head, cells)
    for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
    if any(cells)
  ]
  widths = [max(map(len, (head, *cells))) for head, cells in columns]
  gap = '  ' if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else ' '
  widths = [
    -width if head in _WORDS else width
    for width, (head, _) in zip(widths, columns, strict=True)
  ]
  first, *others = [
    line(cells, widths, gap).rstrip()
    for cells in zip(*((head, *cells) for head, cells in columns), strict=True)
  ]
  return [first, '-' * len(first), *others]


def line(cells: Iterable[str], widths: Iterable[int], gap: str = '  ') -> str:
  """One line of a table: figures to the right, text of width -n to the left."""
  return gap.join(
    f'{cell:<{-width}}' if width < 0 else f'{cell:>{width}}'
    for cell, width in zip(cells, widths, strict=True)
  )


def paragraph(text: str, indent: int = 0) -> list[str]:
  """A text in lines of at most WIDTH characters, all but the first indented."""
  return textwrap.wrap(
    text, WIDTH, subsequent_indent=' ' * indent, break_on_hyphens=False
  )
