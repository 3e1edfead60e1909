"""Names of a folder's slices: their order, and what does not belong there."""

import collections
from collections.abc import Sequence
import decimal
import itertools
import math
import pathlib
import re
from typing import Any

from skipnet_jax import errors

_ENDINGS = re.compile(r'(\.[A-Za-z]\w*)+$')
_INTEGER = re.compile(r'\d+')
# Not within 1.2.3, whose parts are integers.
_DECIMAL = re.compile(r'(?<!\d[.,])\d+[.,]\d+(?![.,]?\d)|\d+')
# What stands before the number of a channel, a time or a position. Those of
# the first group may number slices, if there is no other number.
_NO_DEPTH = re.compile(
  r'(?:^|[^a-z])(?:(c|t|time|pos|position|w|f|x|y)|'
  r'(?:ch|channel|wavelength|row|col|column|tile|field|fov|well))[^a-z]*$'
)

# Text and numbers in turns, beginning and ending with text.
_Parts = tuple[list[str], list[decimal.Decimal]]


def in_order(path: pathlib.Path, names: list[str]) -> list[str]:
  """Sorts by the numbers: z-1, z0, z0.25, z2, z10; by text if there are none.

  Raises:
    InputError: names that differ in more than their numbers or have the same
      ones; or that number channels, times, positions or a grid of them.
  """
  parsed = _parse(names)
  words = [_words(texts) for texts, _ in parsed]
  counts = collections.Counter(words)
  usual = max(counts, key=lambda one: (counts[one], one))
  seen = dict(zip(words, names, strict=True)) if len(usual) > 1 else {}
  for one, name in zip(words, names, strict=True):
    if len({len(one), len(usual)}) > 1 or (len(one) > 1 and one != usual):
      raise _unordered(path, name, seen.get(usual) or min({*names} - {name}))
  known: dict[tuple[Any, ...], str] = {}
  for (texts, numbers), name in zip(parsed, names, strict=True):
    other = known.setdefault(tuple(numbers) or tuple(texts), name)
    if other != name:
      raise _unordered(path, name, other)
  _check_decimals(path, names)
  columns = [*zip(*(numbers for _, numbers in parsed), strict=True)]
  for at, column in enumerate(columns):
    mark = _NO_DEPTH.search(parsed[0][0][at])
    count = len(set(column))
    rest = {tuple(n[:at] + n[at + 1 :]) for _, n in parsed}
    # One slice at each of several times is a stack.
    alone = len(rest) == 1 and mark and mark[1]
    if mark and count > 1 and len(rest) < len(names) and not alone:
      raise errors.InputError(
        f'the folder {path} has slices of {count} channels, times or positions '
        f'by their names, such as {min(names)}; leave only one of them there'
      )
  # Columns that change together are one.
  firsts = [
    dict(zip(c[::-1], range(len(c), 0, -1), strict=True)) for c in columns
  ]
  apart = {
    tuple(first[number] for number in column)
    for first, column in zip(firsts, columns, strict=True)
  }
  sizes = [len(set(column)) for column in apart if len(set(column)) > 1]
  if len(sizes) > 1 and math.prod(sizes) == len(names):
    raise errors.InputError(
      f'the folder {path} has a slice for each of '
      f'{" x ".join(map(str, sorted(sizes)))} numbers in its names, such as '
      f'{min(names)}, and which of them count slices is not known; leave only '
      'the slices of one stack there'
    )
  order = sorted(
    zip(parsed, names, strict=True), key=lambda one: (one[0][1], one[0][0])
  )
  return [name for _, name in order]


def _unordered(path: pathlib.Path, name: str, other: str) -> errors.InputError:
  return errors.InputError(
    f'the folder {path} has {" and ".join(sorted([name, other]))}, whose '
    'order is not known; leave only the slices of one stack there, with one '
    'name but for the number, and each with a number of its own'
  )


def _words(texts: Sequence[str]) -> tuple[str, ...]:
  """The letters before, between and after the numbers of a name."""
  return tuple(''.join(filter(str.isalpha, text)) for text in texts)


def _check_decimals(path: pathlib.Path, names: Sequence[str]) -> None:
  """Refuses 1.9 beside 1.11, which may be decimals or pairs of integers.

  1.10 beside 1.9 can only be pairs, as `_parse` knows, and 1 beside 1.25 only
  decimals. Decimals of few digits seldom are neighbours as integers.
  """
  stems = [pathlib.Path(n).stem.lower() for n in names]
  if not any('.' in str(n) for _, found in _parse(names) for n in found):
    return
  groups: dict[tuple[int, str], dict[str, str]] = {}
  bare = set()
  for stem, name in zip(stems, names, strict=True):
    for at, number in enumerate(_DECIMAL.findall(stem)):
      whole, _, end = number.replace(',', '.').partition('.')
      if end:
        groups.setdefault((at, whole), {})[end] = name
      else:
        bare.add(at)
  for (at, _), ends in groups.items():
    numbers = sorted(map(int, ends))
    dense = numbers[-1] - numbers[0] < 2 * len(numbers)
    if at not in bare and len({*map(len, ends)}) > 1 and dense:
      one, other = (ends[f(ends, key=int)] for f in (min, max))
      raise errors.InputError(
        f'the folder {path} has {one} and {other}, whose numbers may be '
        'decimals or pairs of integers; write the same number of digits '
        'everywhere'
      )


def check_others(
  path: pathlib.Path, names: Sequence[str], others: Sequence[str]
) -> None:
  """Refuses files that are named as a slice, but of a kind that is not read.

  One that has the name of a slice is something beside it.
  """
  stems = [f'{_ENDINGS.sub("", other)}.' for other in others]
  parsed = [(_words(t), tuple(n)) for t, n in _parse([*names, *stems])]
  slices = {*parsed[: len(names)]}
  usual = {words for words, _ in slices}
  for (words, numbers), other in zip(parsed[len(names) :], others, strict=True):
    if numbers and words in usual and (words, numbers) not in slices:
      raise errors.InputError(
        f'the folder {path} has {other}, which is named as a slice but is no '
        'PNG or TIFF; convert it, or move it to another folder'
      )


def gaps_between(path: pathlib.Path, names: Sequence[str]) -> str:
  """Names slices that seem to be missing by the numbers in the names; or ''."""
  numbers = varying(names)
  if len(names) < 3 or {*map(len, numbers)} != {1}:
    return ''
  steps = [b - a for (a,), (b,) in itertools.pairwise(numbers)]
  usual = min(steps)
  gaps = [z for z, step in enumerate(steps) if step > usual]
  if not gaps or 2 * len(gaps) > len(steps):
    return ''
  z = gaps[0]
  count = len(gaps) - 1
  more = f' and at {count} other place{"s" * (count > 1)}' if count else ''
  return (
    f'{path} has no slice between {names[z]} and {names[z + 1]}{more}: those '
    'that follow each other count as neighbours'
  )


def _parse(names: Sequence[str]) -> list[_Parts]:
  """Texts and signed numbers of file names, without their endings."""
  stems = [pathlib.Path(n).stem.lower() for n in names]
  pattern = _DECIMAL
  # A decimal that ends in 0 is written with as many digits as the others:
  # 1.9 and 1.10 are pairs of integers.
  found = map(_DECIMAL.findall, stems)
  for place in itertools.zip_longest(*found, fillvalue='0'):
    ends = [re.split('[.,]', n)[1] for n in place if not n.isdigit()]
    if len(set(map(len, ends))) > 1 and any(e[1:].endswith('0') for e in ends):
      pattern = _INTEGER
  texts = [pattern.split(stem) for stem in stems]
  numbers = [
    [decimal.Decimal(n.replace(',', '.')) for n in pattern.findall(stem)]
    for stem in stems
  ]
  # A hyphen before a number is a sign if other names have none there.
  spelt = {(at, text) for mine in texts for at, text in enumerate(mine[:-1])}
  for mine, values in zip(texts, numbers, strict=True):
    for at, text in enumerate(mine[:-1]):
      bare = text[:-1]
      if text[-1:] in ('+', '-') and spelt & {
        (at, other) for other in (bare, f'{bare}+', f'{bare}-') if other != text
      }:
        mine[at] = bare
        if text[-1] == '-':
          values[at] = values[at].copy_negate()
  return list(zip(texts, numbers, strict=True))


def varying(names: Sequence[str]) -> list[Any]:
  """Of each name the numbers that are not equal in all; [] for none.

  Of one name, these are all its numbers.
  """
  numbers = [parts[1] for parts in _parse(names)]
  if len({len(n) for n in numbers}) > 1:
    return []
  columns = zip(*numbers, strict=True)
  kept = [c for c in columns if len(set(c)) > 1 or len(names) == 1]
  # Columns that are equal tell no more than one.
  return list(zip(*dict.fromkeys(kept), strict=True))
