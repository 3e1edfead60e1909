"""Where a volume in chunks has its arrays, by its metadata.

OME-Zarr 0.4 and 0.5, N5, Neuroglancer's: the array of an image at a level, its
axes, the size of a pixel and the place of the first one.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np
import tensorstore as ts

from skipnet_jax import errors
from skipnet_jax.data import chunk_store
from skipnet_jax.data import stack_reader

_VERSIONS = ('0.4', '0.5')
_AXES = 'TCZYX'


@dataclasses.dataclass(frozen=True)
class Image:
  """One image at one level.

  Attributes:
    store: its axes are labelled by letters of _AXES, each begins at 0.
    sizes: of a pixel along each axis, and the unit; absent: unknown.
    origin: place of the first pixel along each axis, in the same units; empty
      where nothing says it.
  """

  store: ts.TensorStore
  sizes: Mapping[str, tuple[float, str]]
  origin: Mapping[str, float]


def find(folder: chunk_store.Folder, choice: stack_reader.Choice) -> Image:
  """The chosen image at the chosen level.

  Raises:
    InputError: no such image or level, or metadata that cannot be read.
  """
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
    return _labelled(folder.place, store, origin=store.domain.origin)
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
) -> Image:
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
    if not any(step['type'] == 'translation' for step in steps):
      origin = []
    widths = [
      _transformed(place, one['coordinateTransformations'], len(axes))[0]
      for one in levels
    ]
    at_x = letters.index('X')
    if any(a[at_x] > b[at_x] for a, b in itertools.pairwise(widths)):
      raise errors.InputError(
        f'{place} lists its levels not from fine to coarse; copy or export it '
        'again'
      )
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
  return Image(
    store,
    {a: (s, unit) for (a, unit), s in zip(axes, scale, strict=True)},
    dict(zip(letters, origin, strict=bool(origin))),
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


def _open_n5(folder: chunk_store.Folder, level: int) -> Image:
  """An array of N5, or a level of a group of them."""
  attributes = folder.read_json('attributes.json') or {}
  if 'dimensions' in attributes:
    _check_level(folder.place, level, 1)
    sizes = _n5_sizes(folder.place, attributes, attributes, 0)
    return _labelled(folder.place, folder.open_array('n5', ''), sizes)
  count = 0
  while folder.read_json(f's{count}/attributes.json'):
    count += 1
  if not count:
    raise _unknown(folder.place)
  _check_level(folder.place, level, count)
  own = folder.read_json(f's{level}/attributes.json') or {}
  sizes = _n5_sizes(folder.place, own, attributes, level)
  return _labelled(folder.place, folder.open_array('n5', f's{level}'), sizes)


def _n5_sizes(
  place: chunk_store.Place,
  own: Mapping[str, Any],
  group: Mapping[str, Any],
  level: int,
) -> list[tuple[float, str]]:
  """Size and unit along each axis, as n5-viewer writes them; [] for none.

  `pixelResolution` is that of the finest level.
  """
  found = own.get('pixelResolution', group.get('pixelResolution'))
  if found is None:
    return []
  try:
    sizes = [float(n) for n in found['dimensions']]
    factors = own.get('downsamplingFactors')
    if factors is None and level:
      factors = group['scales'][level]
    factors = [float(n) for n in factors or [1] * len(sizes)]
    pairs = zip(sizes, factors, strict=True)
    return [(size * factor, str(found['unit'])) for size, factor in pairs]
  except (KeyError, IndexError, TypeError, ValueError) as e:
    raise errors.InputError(
      f'{place} has a pixelResolution {found!r} that cannot be read; expected '
      'such as {"unit": "nm", "dimensions": [4, 4, 40]}, and at a coarse level '
      'downsamplingFactors; correct it, or leave it out'
    ) from e


def _labelled(
  place: chunk_store.Place,
  store: ts.TensorStore,
  stated: Sequence[tuple[float, str]] = (),
  origin: Sequence[int] = (),
) -> Image:
  """An array that has its own axes and units; x comes first by default.

  Args:
    place: of the volume.
    store: the array.
    stated: size and unit along each axis, where the array has none.
    origin: the first pixel along each axis; () where nothing says it.
  """
  names = store.domain.labels
  if not any(names):
    if store.rank > 3:
      raise errors.InputError(
        f'{place} has {store.rank} axes without names; save it with "axes" in '
        'its attributes.json, or with x, y and z alone'
      )
    names = ('x', 'y', 'z')[: store.rank]
  letters = tuple(name[:1].upper() for name in names)
  if {*letters} - {*_AXES} or len({*letters}) < store.rank:
    raise errors.InputError(
      f'{place} has the axes {", ".join(names)}; known are '
      f'{", ".join(_AXES.lower())}; save it with these'
    )
  units = zip(letters, store.dimension_units, strict=True)
  first = zip(letters, origin, strict=bool(origin))
  sizes = {a: (u.multiplier, u.base_unit) for a, u in units if u is not None}
  if stated and not sizes:
    if len(stated) != store.rank:
      raise errors.InputError(
        f'{place} has {store.rank} axes, but a pixelResolution of '
        f'{len(stated)}; correct it'
      )
    sizes = dict(zip(letters, stated, strict=True))
  return Image(
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
