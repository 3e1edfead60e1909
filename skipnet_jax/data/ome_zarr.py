"""Volumes in chunks as stacks: OME-Zarr 0.4 and 0.5, N5, Neuroglancer's.

They lie in a folder or in a bucket. Only the chunks that are asked for are
read.
"""

from collections.abc import Iterable, Sequence
import math
import os
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

from skipnet_jax import errors
from skipnet_jax.data import chunk_store
from skipnet_jax.data import chunked_image
from skipnet_jax.data import pixel_size
from skipnet_jax.data import stack_reader

# What tells such a folder, in this order.
_MARKS = (
  *('zarr.json', '.zattrs', '.zgroup', '.zarray'),
  *('info', 'attributes.json'),
)
_ENDINGS = ('.zarr', '.n5')
_SLICES = ('.png', '.tif', '.tiff')
_MOST_CHUNK = 2**31  # bytes
# Bytes of neighbouring slices that are kept when one is read.
_KEPT = 2**27


def is_one(place: str | os.PathLike) -> bool:
  """Whether a place is such a volume, by its address or its files."""
  if chunk_store.is_url(place):
    return True
  # Not by pathlib, which raises where a name is too long.
  if not os.path.isdir(place):
    return False
  if pathlib.Path(place).suffix.lower() in _ENDINGS:
    return True
  found = {mark for mark in _MARKS if os.path.isfile(os.path.join(place, mark))}
  # A folder of slices may have a file of such a name too.
  return bool(found) and not any(
    name.lower().endswith(_SLICES) and not name.startswith('.')
    for name in os.listdir(place)
  )


def check_outside(
  paths: Iterable[str | os.PathLike], place: str | os.PathLike
) -> None:
  """Refuses outputs that lie anywhere in a volume that is read."""
  if chunk_store.is_url(place) or not is_one(place):
    return
  volume = pathlib.Path(os.path.realpath(place))
  for path in paths:
    if pathlib.Path(os.path.realpath(path)).is_relative_to(volume):
      raise errors.InputError(
        f'{path} would lie in the volume {place}, which is read: choose '
        'another folder.'
      )


def descriptions(place: pathlib.Path) -> list[pathlib.Path]:
  """The files of metadata of a local volume and of its arrays."""
  folders = [place, *sorted(path for path in place.iterdir() if path.is_dir())]
  files = [folder / mark for folder in folders for mark in _MARKS]
  return [file for file in files if file.is_file()]


class ChunkedStack(stack_reader.StackReader):
  """One channel, at one time and level; see `volume.open_stack`."""

  def __init__(
    self,
    place: str | os.PathLike,
    dtypes: Sequence[str],
    choice: stack_reader.Choice,
  ):
    is_url = chunk_store.is_url(place)
    self.path = os.fspath(place) if is_url else pathlib.Path(place)
    self.filled: set[int] = set()
    self._folder = chunk_store.Folder(self.path)
    image = chunked_image.find(self._folder, choice)
    kvstore = image.store.kvstore
    self._array = kvstore.path if kvstore else ''
    self._store, axis = _slices(self.path, image.store, choice)
    z, y, x = self._store.shape
    self.shape = z, y, x
    self.dtype = self._store.dtype.numpy_dtype
    if self.dtype.name not in dtypes:
      raise errors.InputError(
        f'{self.path} has {self.dtype.name} pixels; accepted are '
        f'{", ".join(dtypes)}; convert it to {dtypes[-1]} or {dtypes[0]}'
      )
    chunk = [
      n or 1 for n in image.store.chunk_layout.read_chunk.shape or [None]
    ]
    if math.prod(chunk) * self.dtype.itemsize > _MOST_CHUNK:
      raise errors.InputError(
        f'{self.path} has chunks of {" x ".join(map(str, chunk))} pixels, at '
        f'most {_MOST_CHUNK} bytes are read; save it in smaller chunks'
      )
    self.metadata = _metadata(axis, image)
    page = math.prod(self.shape[1:]) * self.dtype.itemsize
    depth = (self._store.chunk_layout.read_chunk.shape or [None])[0] or 1
    self._depth = max(1, min(depth, _KEPT // page))
    # The first of them, and their pixels: threads may read at once.
    self._kept = 0, np.empty((0, 0, 0), self.dtype)

  def _read(self, z: int) -> np.ndarray:
    begin, kept = self._kept
    if not begin <= z < begin + len(kept):
      begin = z // self._depth * self._depth
      slices = range(begin, min(begin + self._depth, len(self)))
      kept = self.read_part(slices, *map(range, self.shape[1:]))
      self._kept = begin, kept
    return kept[z - begin].copy()

  def on_disk(self) -> stack_reader.SlicesOnDisk:
    """See `StackReader`."""
    return _Slices(self, self._depth)

  def files(self) -> list[pathlib.Path]:
    """Files of its metadata and of the chunks of its array; of a URL none."""
    if isinstance(self.path, str):
      return []
    found = descriptions(self.path)
    for folder, _, names in os.walk(self._array):
      found += [pathlib.Path(folder, name) for name in names]
    return sorted(found)

  def read_part(self, slices: range, rows: range, columns: range) -> np.ndarray:
    """See `StackReader`; reads only chunks that have some of it."""
    box = tuple(slice(r.start, r.stop) for r in (slices, rows, columns))
    what = f'cannot be read at slice {slices.start + 1}'
    what += f' to {slices.stop}' if len(slices) > 1 else ''
    with chunk_store.refusing(self.path, what):
      try:
        found = self._store[box].read().result()
      except ValueError as e:
        if not chunk_store.is_missing(e):
          raise
        places = slices.start, (slices.start + slices.stop) // 2
        first, half = (z // self._depth * self._depth for z in places)
        middle = max(first + self._depth, half)
        if middle < slices.stop:
          # Only slices of the chunks that are missing count as filled.
          parts = range(slices.start, middle), range(middle, slices.stop)
          return np.concatenate(
            [self.read_part(part, rows, columns) for part in parts]
          )
        found = self._folder.filling(self._store)[box].read().result()
        self.filled.update(slices)
    return np.ascontiguousarray(found)


class _Slices(stack_reader.SlicesOnDisk):
  """What `ChunkedStack.on_disk` gives; threads may read it at once."""

  def __init__(self, reader: ChunkedStack, depth: int):
    super().__init__(reader.path, reader.shape, reader.dtype, depth)
    # One set, which grows.
    self._reader, self.filled = reader, reader.filled

  def _read(self, slices: range, rows: range, columns: range) -> np.ndarray:
    if len(slices) == 1 and (len(rows), len(columns)) == self._reader.shape[1:]:
      # Its neighbours in the same chunks are often asked for next.
      return self._reader.read(slices.start)[None]
    return self._reader.read_part(slices, rows, columns)


def _slices(
  place: chunk_store.Place, store: ts.TensorStore, choice: stack_reader.Choice
) -> tuple[ts.TensorStore, str]:
  """The chosen `[z, y, x]`, and Z or T."""
  counts = dict(zip(store.domain.labels, store.shape, strict=True))
  if 0 in counts.values():
    raise errors.InputError(f'{place} has no pixels; export it again')
  # Along time only if there is no z.
  axis = 'Z'
  if counts.get('Z', 1) == 1 < counts.get('T', 1) and not choice.time:
    axis = 'T'
  for name, letter in (('channel', 'C'), ('time', 'T'), ('', 'Z')):
    if letter == axis:
      continue
    count, at = counts.get(letter, 1), 0
    if name:
      kind = 'channel' if name == 'channel' else 'time point'
      what = f'{count} {kind}' + 's' * (count > 1)
      at = choice.pick(name, count, what, place)
    if letter in counts:
      store = store[ts.d[letter][at]]
  if axis not in counts:
    store = store[ts.newaxis][ts.d[0].label[axis]]
  return store[ts.d[axis, 'Y', 'X'].transpose[0, 1, 2]], axis


def _metadata(axis: str, image: chunked_image.Image) -> dict[str, Any]:
  """As `StackReader.metadata` has it; lengths in the unit of x."""
  found: dict[str, Any] = {'axes': f'{axis}YX'}
  unit = pixel_size.short(image.sizes.get('X', (0.0, ''))[1])
  sizes, origin = {}, []
  for letter in (axis, 'Y', 'X'):
    size, own = image.sizes.get(letter, (0.0, ''))
    first = image.origin.get(letter, 0.0)
    if letter != 'T' and pixel_size.short(own) != unit:
      factor = pixel_size.metres(own) / (pixel_size.metres(unit) or math.inf)
      size, first = size * factor, first * factor
    origin.append(first)
    if 0 < size < math.inf:
      sizes[letter] = size
  if {'X', 'Y'} <= sizes.keys():
    found['resolution'] = 1 / sizes['X'], 1 / sizes['Y']
    found['resolutionunit'] = 1
    found |= {'unit': unit} if unit else {}
    found |= {'spacing': sizes['Z']} if 'Z' in sizes else {}
    found |= {'origin': tuple(origin)} if image.origin else {}
  return found
