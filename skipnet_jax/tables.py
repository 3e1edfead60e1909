"""Tables and paragraphs of text for a terminal of 100 characters."""

from collections.abc import Iterable, Sequence
import textwrap

WIDTH = 100
_PREFIXES = (('T', 1e12), ('G', 1e9), ('M', 1e6))
# Columns of words, aligned to the left.
_WORDS = ('scaling', 'call', 'feed', 'mode', 'dtype')


def number(value: float | None, scale: float = 1) -> str:
  """A number divided by `scale`, in four digits; blank for None."""
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


def scale(values: Iterable[float | None]) -> tuple[str, float]:
  """The metric prefix that fits the largest of some values, and its factor.

  T, G or M, with 1e12, 1e9 or 1e6; G for no values.
  """
  largest = max((value for value in values if value), default=1e9)
  fitting = [one for one in _PREFIXES if largest >= one[1]]
  return (fitting or _PREFIXES[-1:])[0]


def shorten(text: str, width: int) -> str:
  """Replaces the middle of a text that is longer than `width`, at least 3."""
  if len(text) <= width:
    return text
  end = (width - 1) // 2
  return f'{text[: width - 1 - end]}…{text[-end:]}'


def layout(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a table: words aligned to the left, numbers to the right.

  Columns that are blank in every row are left out. There are two spaces between
  columns, or one if the line would be wider than WIDTH. A table without rows
  has no lines.
  """
  if not rows:
    return []
  columns = [
    (head, *cells)
    for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
    if any(cells)
  ]
  widths = [max(map(len, column)) for column in columns]
  gap = '  ' if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else ' '
  widths = [
    -width if column[0] in _WORDS else width
    for width, column in zip(widths, columns, strict=True)
  ]
  first, *others = [
    line(cells, widths, gap).rstrip() for cells in zip(*columns, strict=True)
  ]
  return [first, '-' * len(first), *others]


def line(cells: Iterable[str], widths: Iterable[int], gap: str = '  ') -> str:
  """A line of a table: aligned to the right, or left if the width is < 0."""
  return gap.join(
    f'{cell:<{-width}}' if width < 0 else f'{cell:>{width}}'
    for cell, width in zip(cells, widths, strict=True)
  )


def paragraph(text: str, indent: int = 0) -> list[str]:
  """Wraps a text at WIDTH characters; indents all lines but the first."""
  return textwrap.wrap(
    text, WIDTH, subsequent_indent=' ' * indent, break_on_hyphens=False
  )
