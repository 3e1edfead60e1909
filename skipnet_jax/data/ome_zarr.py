"""Volumes in chunks as stacks: OME-Zarr 0.4 and 0.5, N5, Neuroglancer's.

They lie in a folder or in a bucket. Only the chunks that are asked for are
read.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

from skipnet_jax import errors
from skipnet_jax.data import chunk_store
from skipnet_jax.data import pixel_size
from skipnet_jax.data import stack_reader

_VERSIONS = ('0.4', '0.5')
# What tells such a folder, in this order.
_MARKS = (
  *('zarr.json', '.zattrs', '.zgroup', '.zarray'),
  *('info', 'attributes.json'),
)
_ENDINGS = ('.zarr', '.n5')
_AXES = 'TCZYX'
_MOST_CHUNK = 2**31  # bytes
# Bytes of neighbouring slices that are kept when one is read.
_KEPT = 2**27


@dataclasses.dataclass(frozen=True)
class _Image:
  """One image at one level.

  Attributes:
    store: its axes are labelled by letters of _AXES, each begins at 0.
    sizes: of a pixel along each axis, and the unit; absent: unknown.
    origin: place of the first pixel along each axis, in the same units.
  """

  store: ts.TensorStore
  sizes: Mapping[str, tuple[float, str]]
  origin: Mapping[str, float]


def is_one(place: str | os.PathLike) -> bool:
  """Whether a place is such a volume, by its address or its files."""
  if chunk_store.is_url(place):
    return True
  # Not by pathlib, which raises where a name is too long.
  return os.path.isdir(place) and (
    pathlib.Path(place).suffix.lower() in _ENDINGS
    or any(os.path.isfile(os.path.join(place, mark)) for mark in _MARKS)
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
    image = _open(self._folder, choice)
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


def _open(folder: chunk_store.Folder, choice: stack_reader.Choice) -> _Image:
  """The chosen image at the chosen level."""
  attributes = folder.read_json('zarr.json')
  if attributes is not None:
    # 0.5 lies in Zarr 3, and 0.4 in Zarr 2.
    found = attributes.get('attributes', {})
    return _open_ome(folder, '', found.get('ome', found), 'zarr3', choice)
  attributes = folder.read_json('.zattrs')
  if attributes is not None:
    return _open_ome(folder, '', attributes, 'zarr', choice)
  attributes = folder.read_json('info')
  if attributes is not None:
    levels = attributes.get('scales')
    count = len(levels) if isinstance(levels, list) else 0
    _check_level(folder.place, choice.level, count)
    choice.pick('series', 1, 'one image', folder.place)
    store = folder.open_array(
      'neuroglancer_precomputed', '', scale_index=choice.level
    )
    return _labelled(folder.place, store)
  if folder.read_json('attributes.json') is not None:
    choice.pick('series', 1, 'one image', folder.place)
    return _open_n5(folder, choice.level)
  raise _unknown(folder.place)


def _unknown(place: chunk_store.Place, path: str = '') -> errors.InputError:
  return errors.InputError(
    f'{place}{path and f" at {path}"} has no multiscale metadata; expected the '
    'folder or the URL of an OME-Zarr image of version 0.4 or 0.5, an N5 or a '
    'Neuroglancer volume'
  )


def _open_ome(
  folder: chunk_store.Folder,
  path: str,
  attributes: Any,
  driver: str,
  choice: stack_reader.Choice,
) -> _Image:
  """An image of OME-Zarr, from the attributes of its group at `path`."""
  place = folder.place
  if not isinstance(attributes, dict):
    raise _unknown(place, path)
  if 'multiscales' not in attributes and not path:
    # Bio-Formats' converter numbers the images of a file.
    names = _numbered(folder, driver)
    if names:
      what = f'{len(names)} image' + 's' * (len(names) > 1)
      path = names[choice.pick('series', len(names), what, place)]
      name = 'zarr.json' if driver == 'zarr3' else '.zattrs'
      found = folder.read_json(f'{path}/{name}') or {}
      if driver == 'zarr3':
        found = found.get('attributes', {}).get('ome')
      one = dataclasses.replace(choice, series=0)
      return _open_ome(folder, path, found, driver, one)
  images = attributes.get('multiscales')
  if not isinstance(images, list) or not images:
    raise _unknown(place, path)
  what = f'{len(images)} image' + 's' * (len(images) > 1)
  try:
    image = images[choice.pick('series', len(images), what, place)]
    version = attributes.get('version', image.get('version', _VERSIONS[0]))
    if str(version) not in _VERSIONS:
      raise errors.InputError(
        f'{place} is OME-Zarr {version}; {" and ".join(_VERSIONS)} are read; '
        'save it as one of them'
      )
    axes = [_axis(place, axis) for axis in image['axes']]
    letters = [letter for letter, _ in axes]
    if len({*letters}) < len(letters) or not {'Y', 'X'} <= {*letters}:
      raise errors.InputError(
        f'{place} has the axes {"".join(letters)} where {_AXES} are known, and '
        'Y and X are needed; save it with these'
      )
    levels = image['datasets']
    _check_level(place, choice.level, len(levels))
    level = levels[choice.level]
    steps = [
      *level['coordinateTransformations'],
      *image.get('coordinateTransformations', ()),
    ]
    scale, origin = _transformed(place, steps, len(axes))
    at = str(level['path'])
  except (KeyError, TypeError, AttributeError, ValueError) as e:
    if isinstance(e, errors.InputError):
      raise
    raise errors.InputError(
      f'{place} has multiscale metadata that cannot be read '
      f'({type(e).__name__}: {e}); copy or export it again'
    ) from e
  store = folder.open_array(driver, f'{path}/{at}'.strip('/'))
  if store.rank != len(axes):
    raise errors.InputError(
      f'{place} has {len(axes)} axes and an array of {store.rank} dimensions; '
      'copy or export it again'
    )
  store = store[ts.d[:].translate_to[0]][ts.d[:].label[tuple(letters)]]
  return _Image(
    store,
    {a: (s, unit) for (a, unit), s in zip(axes, scale, strict=True)},
    dict(zip(letters, origin, strict=True)),
  )


def _numbered(folder: chunk_store.Folder, driver: str) -> list[str]:
  name = 'zarr.json' if driver == 'zarr3' else '.zattrs'
  names: list[str] = []
  while folder.read_json(f'{len(names)}/{name}'):
    names.append(str(len(names)))
  return names


def _axis(place: chunk_store.Place, axis: Any) -> tuple[str, str]:
  """Letter and unit of an axis."""
  name = str(axis['name'] if isinstance(axis, dict) else axis)
  if name.upper() not in [*_AXES]:
    raise errors.InputError(
      f'{place} has an axis {name!r}; known are {", ".join(_AXES.lower())}; '
      'save it with these'
    )
  unit = axis.get('unit', '') if isinstance(axis, dict) else ''
  return name.upper(), str(unit or '')


def _transformed(
  place: chunk_store.Place, steps: Sequence[Mapping[str, Any]], count: int
) -> tuple[list[float], list[float]]:
  """Size of a pixel and place of the first one along each axis."""
  scale, origin = np.ones(count), np.zeros(count)
  for step in steps:
    kind = step['type']
    if kind == 'identity':
      continue
    if kind not in ('scale', 'translation') or kind not in step:
      raise errors.InputError(
        f'{place} has a coordinate transformation {kind!r}; known are scale '
        'and translation, with their numbers; save it with these'
      )
    values = np.asarray(step[kind], np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
      raise ValueError(f'{kind} {step[kind]}')
    if kind == 'scale':
      scale, origin = scale * values, origin * values
    else:
      origin = origin + values
  return scale.tolist(), origin.tolist()


def _open_n5(folder: chunk_store.Folder, level: int) -> _Image:
  """An array of N5, or a level of a group of them."""
  attributes = folder.read_json('attributes.json') or {}
  if 'dimensions' in attributes:
    _check_level(folder.place, level, 1)
    return _labelled(folder.place, folder.open_array('n5', ''))
  count = 0
  while folder.read_json(f's{count}/attributes.json'):
    count += 1
  if not count:
    raise _unknown(folder.place)
  _check_level(folder.place, level, count)
  return _labelled(folder.place, folder.open_array('n5', f's{level}'))


def _labelled(place: chunk_store.Place, store: ts.TensorStore) -> _Image:
  """An array that has its own axes and units; x comes first by default."""
  names = store.domain.labels
  if not any(names):
    names = ('x', 'y', 'z', 'c', 't')[: store.rank]
  letters = tuple(name[:1].upper() for name in names)
  if {*letters} - {*_AXES} or len({*letters}) < store.rank:
    raise errors.InputError(
      f'{place} has the axes {", ".join(names)}; known are '
      f'{", ".join(_AXES.lower())}; save it with these'
    )
  units = zip(letters, store.dimension_units, strict=True)
  first = zip(letters, store.domain.origin, strict=True)
  sizes = {a: (u.multiplier, u.base_unit) for a, u in units if u is not None}
  return _Image(
    store[ts.d[:].translate_to[0]][ts.d[:].label[letters]],
    sizes,
    {a: n * sizes.get(a, (1.0, ''))[0] for a, n in first},
  )


def _check_level(place: chunk_store.Place, level: int, count: int) -> None:
  if not 0 <= level < count:
    raise errors.InputError(
      f'--level is {level}, but {place} has {count}, which are numbered from '
      f'0: choose 0 to {count - 1}.'
      if count
      else f'{place} has no levels; copy or export it again'
    )


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


def _metadata(axis: str, image: _Image) -> dict[str, Any]:
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
    found |= {'origin': tuple(origin)} if any(origin) else {}
  return found
