"""PNG as a stack: one, or a folder of slices in their order."""

import collections
from collections.abc import Callable, Sequence
import decimal
import itertools
import math
import os
import pathlib
import re
from typing import Any
import warnings

import numpy as np
from PIL import Image

from skipnet_jax import errors
from skipnet_jax.data import pixel_size
from skipnet_jax.data import stack_reader
from skipnet_jax.data import tiff_checks

# Pillow's names of one-channel pixels; older ones call 16-bit PNG 'I'.
_PNG_DTYPES = {
  '1': 'bool',
  'L': 'uint8',
  'I;16': 'uint16',
  'I;16B': 'uint16',
  'I': 'uint16',
}
_KINDS = {
  **{'.png': 'PNG', '.tif': 'TIFF', '.tiff': 'TIFF'},
  # These are not read, but would be slices that are missing.
  **{'.jpg': 'JPEG', '.jpeg': 'JPEG', '.bmp': 'BMP', '.gif': 'GIF'},
  **{'.jp2': 'JPEG 2000', '.webp': 'WebP', '.mrc': 'MRC', '.btf': 'BigTIFF'},
  **{'.pgm': 'PGM', '.dm3': 'DM3', '.dm4': 'DM4', '.czi': 'CZI'},
}
_ORIENTATION = 0x0112  # In Exif; 1: as it is.
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


class FolderStack(stack_reader.StackReader):
  """A folder of PNG slices, or of TIFFs that `open_tiff` reads."""

  path: pathlib.Path

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Sequence[str],
    open_tiff: Callable[[pathlib.Path], stack_reader.StackReader],
    choice: stack_reader.Choice,
  ):
    self.path = path
    self._dtypes, self._open_tiff = tuple(dtypes), open_tiff
    names = [n for n in os.listdir(path) if not n.startswith('.')]
    kinds = {n: _KINDS.get(pathlib.Path(n).suffix.lower()) for n in names}
    found = {kind for kind in kinds.values() if kind}
    if found not in ({'PNG'}, {'TIFF'}):
      what = ' and '.join(sorted(found)) or 'no PNG or TIFF'
      raise errors.InputError(
        f'the folder {path} holds {what} files; expected the slices of one '
        'stack, all PNG or all one-page TIFF'
      )
    if found == {'PNG'}:
      _check_choice(path, choice)
    self.names = _in_order(path, [n for n in names if kinds[n]])
    _check_others(path, self.names, [n for n in names if not kinds[n]])
    self.note = _gaps(path, self.names)
    self._stamps = []
    for name in self.names:
      if not (path / name).is_file():
        raise errors.InputError(
          f'{path / name} is no file but a folder, a pipe or a device; leave '
          'only the slices in their folder'
        )
      self._stamps.append(stack_reader.stamp(path / name))
    first, self.metadata, _ = self._open(0)
    size, sized = pixel_size.of_metadata(self.metadata), self.names[0]
    for z, name in enumerate(self.names):
      other, metadata, _ = self._open(z)
      if other != first:
        raise errors.InputError(
          f'{path}: {name} is {other[0]} {other[1]}, {self.names[0]} is '
          f'{first[0]} {first[1]}; the slices of one stack must have one shape '
          'and type'
        )
      own = pixel_size.of_metadata(metadata)
      if size and own and not np.allclose(own, size, rtol=1e-3):
        raise errors.InputError(
          f'{path}: {name} has pixels of {own[1]:g} x {own[0]:g} nm, '
          f'{sized} of {size[1]:g} x {size[0]:g} nm; the slices of one '
          'stack must have one pixel size'
        )
      if own and not size:
        self.metadata, size, sized = metadata, own, name
    self.shape, self.dtype = (len(self.names), *first[0]), first[1]

  def _read(self, z: int) -> np.ndarray:
    with stack_reader.unchanged(self.path / self.names[z], self._stamps[z]):
      return self._open(z, pixels=True)[2]

  def _open(self, z: int, pixels: bool = False) -> tuple[Any, ...]:
    """-> (shape (y, x), dtype), metadata, pixels or None."""
    path = self.path / self.names[z]
    if path.suffix.lower() == '.png':
      with tiff_checks.refusing(path, 'is no readable PNG'):
        return _open_png(path, self._dtypes, pixels)
    with self._open_tiff(path) as stack:
      if len(stack) != 1:
        raise errors.InputError(
          f'{path} has {len(stack)} slices where a folder has one per file; '
          'give the path of that file instead of its folder'
        )
      page = stack.read(0) if pixels else None
      return (stack.shape[1:], stack.dtype), stack.metadata, page


class PngFile(stack_reader.StackReader):
  """A PNG as a stack of one slice."""

  path: pathlib.Path

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Sequence[str],
    choice: stack_reader.Choice,
  ):
    self.path, self._dtypes = path, tuple(dtypes)
    _check_choice(path, choice)
    self._stamp = stack_reader.stamp(path)
    (shape, self.dtype), self.metadata, _ = self._open(pixels=False)
    self.shape = (1, *shape)

  def _read(self, z: int) -> np.ndarray:
    with stack_reader.unchanged(self.path, self._stamp):
      return self._open(pixels=True)[2]

  def _open(self, *, pixels: bool) -> tuple[Any, ...]:
    with tiff_checks.refusing(self.path, 'is no readable PNG'):
      return _open_png(self.path, self._dtypes, pixels)


def _check_choice(path: pathlib.Path, choice: stack_reader.Choice) -> None:
  choice.pick('series', 1, 'one image', path)
  choice.pick('channel', 1, 'one channel', path)


def _open_png(
  path: pathlib.Path, dtypes: Sequence[str], pixels: bool
) -> tuple[Any, ...]:
  with warnings.catch_warnings():
    # Large slices are expected; twice as large, Pillow itself refuses.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    try:
      image = Image.open(path, formats=['PNG'])
    except Image.DecompressionBombError as e:
      raise errors.InputError(
        f'{path} is larger than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels '
        'that are read of a PNG; save it as TIFF'
      ) from e
  with image:
    dtype = _PNG_DTYPES.get(image.mode)
    if dtype not in dtypes:
      raise errors.InputError(
        f'{path} has {dtype or "mode " + image.mode} pixels; accepted are '
        f'{", ".join(dtypes)}; {tiff_checks.GREY}'
      )
    turned = image.getexif().get(_ORIENTATION, 1)
    if turned != 1:
      raise errors.InputError(
        f'{path} says that it is to be shown turned or mirrored (Orientation '
        f'{turned}); save it as it is to be read'
      )
    frames = getattr(image, 'n_frames', 1)
    if frames > 1:
      raise errors.InputError(
        f'{path} is an animation of {frames} images; save each as a file of '
        'its own'
      )
    shape = image.size[::-1]
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    tiff_checks.check_ratio(path, nbytes, path.stat().st_size)
    page = np.array(image).astype(dtype, copy=False) if pixels else None
  return (shape, np.dtype(dtype)), {'axes': 'ZYX'}, page


def check_same_slices(
  first: stack_reader.StackReader, second: stack_reader.StackReader
) -> None:
  """Refuses two stacks whose slices are not the same ones.

  Pixel sizes and distances between slices, if both say one, must be equal, and
  of volumes the origins to half a pixel. Of two folders, compared are also the
  numbers in the names that are not the same in all of a folder, so that
  em_z07.png goes with label_7.png, and of single slices all numbers; else the
  names without their ending, where the folders have some in common. Other
  names, and TIFF stacks, say nothing.
  """
  _check_same_place(first, second)
  names = first.names, second.names
  if not all(names):
    return
  keys = [_varying(n) for n in names]
  if not all(keys) or len(keys[0][0]) != len(keys[1][0]):
    keys = [[pathlib.Path(n).stem for n in each] for each in names]
    if not set(keys[0]) & set(keys[1]):
      return
  for z, (a, b) in enumerate(zip(*keys, strict=False)):
    if a != b:
      raise errors.InputError(
        f'slice {z + 1} is {names[0][z]} in {first.path} but {names[1][z]} in '
        f'{second.path}; give the slices that belong together the same numbers'
      )


def _check_same_place(
  first: stack_reader.StackReader, second: stack_reader.StackReader
) -> None:
  both = first, second
  one, other = (pixel_size.of_metadata(stack.metadata) for stack in both)
  if one and other and not np.allclose(one, other, rtol=0.02):
    raise errors.InputError(
      f'{first.path} has pixels of {one[0]:g} x {one[1]:g} nm, but '
      f'{second.path} of {other[0]:g} x {other[1]:g} nm; give stacks of the '
      'same pixels, or correct what one of them says'
    )
  gaps = [pixel_size.spacing(stack.metadata) for stack in both]
  if all(gaps) and not math.isclose(*gaps, rel_tol=0.02):
    raise errors.InputError(
      f'{first.path} has slices {gaps[0]:g} nm apart, but {second.path} '
      f'{gaps[1]:g} nm; give stacks of the same slices, or correct what one of '
      'them says'
    )
  here, there = (stack.metadata.get('origin') for stack in both)
  units = [str(stack.metadata.get('unit', '')) for stack in both]
  lengths = [pixel_size.metres(unit) for unit in units]
  if not (here and there) or (units[0] != units[1] and not all(lengths)):
    return
  own, factor = first.metadata, lengths[1] / lengths[0] if all(lengths) else 1
  x, y = (1 / n for n in own['resolution'])
  moved = np.abs(np.subtract(here, np.multiply(there, factor)))
  if np.any(moved > np.multiply(0.5, (own.get('spacing', x), y, x))):
    raise errors.InputError(
      f'{first.path} begins at {_place(here, units[0])}, but {second.path} at '
      f'{_place(there, units[1])} (z, y, x); give stacks of the same place'
    )


def _place(origin: Sequence[float], unit: str) -> str:
  return f'({", ".join(f"{n:g}" for n in origin)}) {unit}'.strip()


def _varying(names: Sequence[str]) -> list[Any]:
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


def _in_order(path: pathlib.Path, names: list[str]) -> list[str]:
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


def _check_others(
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


def _gaps(path: pathlib.Path, names: Sequence[str]) -> str:
  """Names slices that seem to be missing by the numbers in the names; or ''."""
  numbers = _varying(names)
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
