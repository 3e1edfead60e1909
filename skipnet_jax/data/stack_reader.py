"""What every open stack offers, and a stack that stays on the disk."""

import abc
from collections.abc import Iterator, Sequence, Set
import contextlib
import copy
import dataclasses
import operator
import os
import pathlib
from typing import Any

import numpy as np

from skipnet_jax import errors
from skipnet_jax.data import tiff_checks

Stamp = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which image of a file is wanted, and which of its channels.

  Attributes:
    series: number of the image, from 1; 0: there must be only one.
    channel: number of the channel, from 1; 0: there must be only one.
    prefix: what precedes both names where the user gives them, such as '--';
      None: the user cannot give them.
    level: of a volume with several resolutions, from 0, the finest.
    time: number of the time point, from 1; 0: there must be only one; None: the
      user cannot give it.
  """

  series: int = 0
  channel: int = 0
  prefix: str | None = None
  level: int = 0
  time: int | None = None

  def pick(
    self, name: str, count: int, what: str, path: pathlib.Path | str
  ) -> int:
    """Index of the wanted one, from 0.

    Args:
      name: 'series', 'channel' or 'time'.
      count: how many there are.
      what: describes them for the message, such as '2 channels'.
      path: the file.

    Raises:
      InputError: there are several and none is chosen, or there are fewer.
    """
    number = getattr(self, name)
    if not number and count == 1:
      return 0
    if number is not None and 1 <= number <= count:
      return number - 1
    if self.prefix is None or number is None:
      remedy = 'save the one you mean as a file of its own'
    else:
      option = f'{self.prefix}{name}'
      remedy = f'choose one by {option}=1'
      remedy += f' to {option}={count}' if count > 1 else ''
      if number:
        remedy = f'{option} is {number}: {remedy}'
    raise errors.InputError(f'{path} has {what}; {remedy}')


def stamp(path: pathlib.Path) -> Stamp:
  """Changes whenever the file is written to or replaced."""
  found = os.stat(path)
  return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def unchanged(path: pathlib.Path, before: Stamp) -> Iterator[None]:
  """Refuses a file that was changed since `before`, when the block ends."""
  try:
    yield
  finally:
    with tiff_checks.refusing(path, 'cannot be read any more'):
      if stamp(path) != before:
        raise errors.InputError(
          f'{path} was changed while it was being read; give the command again '
          'when nothing writes to it'
        )


class SlicesOnDisk(abc.ABC):
  """A stack `[z, y, x]` on the disk, which is read where it is indexed.

  Like an array, it gives a view for slices and a copy for integers.

  Attributes:
    path: where it lies; text if that is a URL.
    shape: (z, y, x).
    dtype: native byte order.
    depth: neighbouring slices that are best read at once.
    filled: see `StackReader`; of the whole stack.

  Args:
    path: the attribute.
    shape: of the whole stack.
    dtype: the attribute.
    depth: the attribute.
  """

  ndim = 3
  filled: Set[int] = frozenset()

  def __init__(
    self,
    path: pathlib.Path | str,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    depth: int = 1,
  ):
    self.path, self.dtype, self.depth = path, dtype, depth
    self._slices, self._rows, self._columns = map(range, shape)

  @abc.abstractmethod
  def _read(self, slices: range, rows: range, columns: range) -> np.ndarray:
    """Neighbouring pixels of the whole stack, `[z, y, x]`."""

  @property
  def shape(self) -> tuple[int, int, int]:
    """Slices, rows and columns that are visible."""
    return len(self._slices), len(self._rows), len(self._columns)

  @property
  def nbytes(self) -> int:
    """Bytes of all pixels."""
    z, y, x = self.shape
    return z * y * x * self.dtype.itemsize

  def __len__(self) -> int:
    return len(self._slices)

  def __iter__(self) -> Iterator[np.ndarray]:
    for first in range(0, len(self), self.depth):
      group = range(first, min(first + self.depth, len(self)))
      yield from self.read_part(group, *map(range, self.shape[1:]))

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    if copy is False:
      raise ValueError(f'{self.path} is on the disk: only a copy is in memory')
    found = np.empty(self.shape, self.dtype if dtype is None else dtype)
    for z, page in enumerate(self):
      found[z] = page
    return found

  def __getitem__(self, key: Any) -> Any:
    key = key if isinstance(key, tuple) else (key,)
    z, y, x = (*key, slice(None), slice(None))[: max(3, len(key))]
    rows, columns = self._rows[y], self._columns[x]
    if {rows.step, columns.step} != {1}:
      raise IndexError(f'{key}: rows and columns must be neighbours')
    if isinstance(z, slice):
      view = copy.copy(self)
      view._slices, view._rows, view._columns = self._slices[z], rows, columns
      return view
    found = np.empty((*np.shape(z), len(rows), len(columns)), self.dtype)
    for at, one in np.ndenumerate(z):
      place = self._slices[operator.index(one)]
      part = self._read(range(place, place + 1), rows, columns)
      found[at] = part[0].view(self.dtype)
    return found

  def view(self, dtype: Any) -> 'SlicesOnDisk':
    """The same bytes as another dtype of the same size."""
    view = copy.copy(self)
    view.dtype = np.dtype(dtype)
    return view

  def read_part(self, slices: range, rows: range, columns: range) -> np.ndarray:
    """A box of the visible pixels as `[z, y, x]`."""
    z, y, x = (
      whole[part.start : part.stop]
      for whole, part in (
        (self._slices, slices),
        (self._rows, rows),
        (self._columns, columns),
      )
    )
    if z.step == 1:
      return self._read(z, y, x).view(self.dtype)
    pages = [self._read(range(one, one + 1), y, x)[0] for one in z]
    return np.stack(pages).view(self.dtype)


class SlicesInFile(SlicesOnDisk):
  """A stack whose pixels lie in a file as they are.

  The file is read, not mapped: a mapped file that another program cuts short
  would end the process.

  Args:
    path: the file.
    stored: dtype as stored, with its byte order.
    starts: offset of each slice in bytes, int64.
    sides: (y, x) of a slice.
    before: the file's stamp when it was opened.
  """

  def __init__(
    self,
    path: pathlib.Path,
    stored: np.dtype,
    starts: np.ndarray,
    sides: tuple[int, int],
    before: Stamp,
  ):
    super().__init__(path, (len(starts), *sides), stored.newbyteorder('='))
    self._stored, self._starts, self._sides = stored, starts, sides
    self._file, self._before = path, before

  def _read(self, slices: range, rows: range, columns: range) -> np.ndarray:
    return np.stack([self._read_one(z, rows, columns) for z in slices])

  def _read_one(self, z: int, rows: range, columns: range) -> np.ndarray:
    width = self._sides[1]
    start = int(self._starts[z]) + rows.start * width * self.dtype.itemsize
    count = len(rows) * width
    what = f'cannot be read at slice {z + 1}'
    with (
      unchanged(self._file, self._before),
      tiff_checks.refusing(self._file, what),
    ):
      found = np.fromfile(self._file, self._stored, count, offset=start)
      found = found.reshape(len(rows), width)[:, columns.start : columns.stop]
      return found.astype(self._stored.newbyteorder('='), copy=False)


class StackReader(abc.ABC):
  """An open stack that decodes one slice at a time, in one thread at a time.

  Attributes:
    path: where it lies; text if that is a URL.
    shape: (z, y, x).
    dtype: NumPy type of the pixels, native byte order.
    metadata: what `StackWriter` takes: `axes` ('ZYX' or 'TYX'), `resolution`
      (pixels per unit in x and y), `resolutionunit` (TIFF's: 1 none, 2 inch,
      3 cm), `unit`, `spacing` (between slices), `info` (ImageJ's text),
      `origin` (place of the first pixel in z, y and x). A key is absent where
      the file says nothing.
    names: file names of the slices in order; () where they have none.
    filled: slices, from 0, of parts that were read and are not in the file.
    note: what a command should say of it, such as missing slices; or ''.
  """

  path: pathlib.Path | str
  shape: tuple[int, int, int]
  dtype: np.dtype
  metadata: dict[str, Any]
  names: Sequence[str] = ()
  note: str = ''
  filled: Set[int] = frozenset()

  def read(self, z: int) -> np.ndarray:
    """Slice `z` as `[y, x]`; `InputError` where it cannot be decoded."""
    if not 0 <= z < len(self):
      raise IndexError(f'slice {z} of {len(self)}')
    return self._read(z)

  @abc.abstractmethod
  def _read(self, z: int) -> np.ndarray:
    """Decodes slice z, which exists."""

  def read_part(self, slices: range, rows: range, columns: range) -> np.ndarray:
    """A box as `[z, y, x]`; `InputError` where it cannot be decoded."""
    z, *box = (slice(r.start, r.stop) for r in (slices, rows, columns))
    on_disk = self.on_disk()
    if on_disk is not None:
      return np.asarray(on_disk[z, *box])
    return np.stack([self.read(z)[*box] for z in slices])

  def read_all(self) -> np.ndarray:
    """The whole stack as `[z, y, x]`."""
    with tiff_checks.refusing(
      self.path, f'{self.shape} does not fit in memory'
    ):
      stack = np.empty(self.shape, self.dtype)
    for z, page in enumerate(self):
      stack[z] = page
    return stack

  def on_disk(self) -> SlicesOnDisk | None:
    """The stack left in its file; None where its slices need decoding."""
    return None

  def close(self) -> None:  # noqa: B027  A folder has nothing to close.
    """Closes the file."""

  def __len__(self) -> int:
    return self.shape[0]

  def __iter__(self) -> Iterator[np.ndarray]:
    return (self.read(z) for z in range(len(self)))

  def __enter__(self) -> 'StackReader':
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()
