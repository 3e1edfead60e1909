"""The figures in the tables of the docs are those of committed files.

Above a table of measured figures stands a comment. Each of its lines has the
first words of a row and the places of that row's figures; `*` is every other
row:

<!-- figures
multicut: segmentation/table.md#multicut
*: long_short_74_epochs/scores.json#plain
not kept: published | before
-->

Files lie in experiments/results. After `#` come keys, separated by `&`: cells
of a row (CSV, Markdown), words of a line (text), keys of JSON (those of each
item in a list; a last `1/` takes the inverse). `$` is the first cell of the
page's row, which is also the key where there is none. ` + ` joins places.

A figure is right if it is a number found there, rounded as on the page, or the
mean of a CSV's rows. Columns and rows that are `not kept` are not checked. A
table without a file says why: <!-- no file: REASON -->. A table without a
decimal point needs no comment.
"""

import csv
import functools
import itertools
import json
import re
import statistics

from conftest import ROOT
import pytest

RESULTS = ROOT / 'experiments' / 'results'
PAGES = [ROOT / 'README.md', ROOT / 'experiments' / 'README.md']
PAGES += sorted((ROOT / 'docs').glob('*.md'))
# Pages of definitions, and those that a tool makes and another test compares.
WITHOUT = {'benchmark_report', 'prediction_report', 'benchmarks'}
WITHOUT |= {'reference_config', 'reference_commands'}
TABLE = re.compile(r'^(\|.*\|)\n\|[-|: ]+\|\n((?:\|.*\|\n)+)', re.M)
NUMBER = re.compile(
  r'(?<![\w.])[-+]?(?:\d[\d,]*)?(?:\.?\d+)(?:e[-+]?\d+)?(?!\w)'
)
COMMENT = re.compile(r'<!-- (figures|no file)(?:((?!-->).)*)-->\s*\Z', re.S)


def label(text):
  """A cell without links, markup and case."""
  text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text.replace('\\|', '|'))
  return ' '.join(re.sub(r'[`*_]', ' ', text).lower().split())


def split_row(line):
  return [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]


def numbers_of(text):
  """Each number of a text: as written, its value, its last digit's unit."""
  text = re.sub(r'`[^`]*`|\]\([^)]*\)', ' ', text)
  # What stands before an arrow is of an earlier program, which is not kept.
  for found in NUMBER.findall(text.rpartition('→')[2]):
    digits = found.replace(',', '')
    mantissa, _, power = digits.partition('e')
    decimals = len(mantissa.partition('.')[2])
    yield found, float(digits), 10.0 ** (int(power or 0) - decimals)


def tables_of(text):
  """The comment above each table, its heads and its rows."""
  for found in TABLE.finditer(text):
    comment = COMMENT.search(text[: found.start()])
    rows = [split_row(line) for line in found[2].splitlines()]
    yield comment and comment[0], split_row(found[1]), rows


@functools.cache
def read(path):
  """A file's content: what JSON holds, or rows of cells."""
  text = path.read_text()
  if path.suffix == '.json':
    return json.loads(text)
  if path.suffix == '.jsonl':
    return [json.loads(line) for line in text.splitlines()]
  if path.suffix == '.csv':
    return list(csv.reader(text.splitlines()))
  if path.suffix == '.md':
    return [split_row(r) for r in text.splitlines() if r.startswith('|')]
  return [[line] for line in text.splitlines()]


def leaves(content):
  """All numbers in what a JSON file holds."""
  if isinstance(content, dict):
    content = list(content.values())
  if isinstance(content, list):
    return list(itertools.chain.from_iterable(map(leaves, content)))
  number = isinstance(content, int | float) and not isinstance(content, bool)
  return [float(content), content / 1e9] if number else []


def at_keys(content, keys):
  """The part of a JSON file under some keys; lists give that of each item."""
  for key in keys:
    if isinstance(content, list):
      content = [item[key] for item in content if key in item]
    else:
      content = content[key]
  return content


def numbers_at(place, first):
  """The numbers of a place; `first` is the first cell of the page's row."""
  name, _, keys = place.replace('$', first).partition('#')
  path = RESULTS / name
  keys = [key.strip() for key in keys.split('&') if key]
  if path.suffix in ('.json', '.jsonl'):
    inverse = keys[-1:] == ['1/']
    found = leaves(at_keys(read(path), keys[:-1] if inverse else keys))
    return [1 / n for n in found if n] if inverse else found
  keys = [label(key) for key in keys or [first]]
  if path.suffix == '.txt':
    rows = [r for r in read(path) if all(k in label(r[0]) for k in keys)]
  else:
    rows = [r for r in read(path) if set(keys) <= set(map(label, r))]
  assert rows, f'{place}: nothing is called {keys}'
  if path.suffix != '.csv':
    return [value for row in rows for _, value, _ in numbers_of(' '.join(row))]
  found = []
  for column in zip(*rows, strict=True):
    try:
      values = [float(cell) for cell in column]
    except ValueError:
      continue
    found += [*values, statistics.mean(values)]
  return found


def complaints(text):
  """What is wrong with the figures in the tables of a page."""
  for comment, heads, rows in tables_of(text):
    quoted = [n for row in rows for cell in row[1:] for n in numbers_of(cell)]
    measured = any('.' in found for found, *_ in quoted)
    if not measured or (comment and comment.startswith('<!-- no file')):
      continue
    if comment is None:
      yield f'the table {heads} names no file'
      continue
    lines = [line.partition(': ') for line in comment.splitlines()[1:-1]]
    places = {label(name): value.split(' + ') for name, _, value in lines}
    unkept = tuple(
      map(label, ' + '.join(places.pop('not kept', ['-'])).split('|'))
    )
    for first, *cells in rows:
      if label(first).startswith(unkept):
        continue
      names = [n for n in places if label(first).startswith(n)] or ['*']
      if names[0] not in places:
        yield f'the row {first!r} of the table {heads} names no file'
        continue
      known = [n for p in places[names[0]] for n in numbers_at(p, first)]
      for head, cell in zip(heads[1:], cells, strict=True):
        if label(head) in unkept:
          continue
        for found, value, unit in numbers_of(cell):
          if not any(abs(n - value) <= 0.5001 * unit for n in known):
            yield f'{found} of {first!r}, {head!r} is not in {places[names[0]]}'


@pytest.mark.parametrize(
  'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_figures_are_those_of_files(page):
  if page.stem not in WITHOUT:
    assert list(complaints(page.read_text())) == []


def test_a_changed_digit_is_found():
  text = (ROOT / 'README.md').read_text()
  (table,) = (t for t in tables_of(text) if t[0])
  figures = [
    n for _, *cells in table[2] for n, *_ in numbers_of(' '.join(cells))
  ]
  assert len(figures) > 8
  for figure in figures:
    last = str((int(figure[-1]) + 5) % 10)
    changed = text.replace(f' {figure}', f' {figure[:-1]}{last}')
    found = list(complaints(changed))
    assert len(found) == 1, figure
    assert found[0].startswith(figure[:-1] + last)


def test_a_table_without_its_comment_is_found():
  text = (ROOT / 'README.md').read_text()
  without = re.sub(r'<!-- figures.*?-->\n', '', text, flags=re.S)
  assert list(complaints(without))
