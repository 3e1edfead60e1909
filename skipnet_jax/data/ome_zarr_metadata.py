"""What an OME-Zarr image says of itself: its settings, axes and levels.

The folder of an image is begun here; `ome_zarr_writer` writes its blocks.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import secrets
from typing import Any

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import pixel_size

VERSIONS = ('0.5', '0.4')
# The coarsest level is no longer or wider.
COARSEST = 512
_KEY = 'skipnet_jax'
_COLOURS = {'red': 'FF0000', 'green': '00FF00', 'blue': '0000FF'}


def read_settings(path: pathlib.Path) -> dict[str, Any] | None:
  """The settings that a volume was begun with; None if there is no volume.

  Raises:
    InputError: something else is there.
  """
  if not os.path.lexists(path):
    return None
  for name in ('zarr.json', '.zattrs'):
    content = files.read_json(path / name)
    found = content.get('attributes', content).get(_KEY)
    if isinstance(found, dict):
      return found
  # What a process leaves that is killed at its start.
  if os.path.isdir(path) and all(p.suffix == '.part' for p in path.iterdir()):
    return None
  raise errors.InputError(
    f'{path} exists and is not a volume that this command began: choose '
    'another name.'
  )


def begin(
  path: pathlib.Path,
  settings: Mapping[str, Any],
  metadata: Mapping[str, Any],
  version: str,
  colours: bool = False,
) -> dict[str, Any]:
  """Makes the folder of a volume, unless another process just did.

  Args:
    path: of the folder.
    settings: of the volume, with `shape`, `block` and `axes`, the letters of
      these; kept in its attributes.
    metadata: as in `StackReader.metadata`.
    version: one of VERSIONS.
    colours: whether pixels are red, green and blue.

  Returns:
    The settings that the volume has.

  Raises:
    InputError: it cannot be made, or something else is there.
  """
  try:
    path.mkdir(exist_ok=True)
    image = _multiscales(path.name, settings, metadata, colours)
    kept = {_KEY: dict(settings)}
    shown = {'omero': _omero()} if colours else {}
    if version == '0.5':
      ome = {'version': version, 'multiscales': [image]} | shown
      group = {'zarr_format': 3, 'node_type': 'group'}
      group['attributes'] = {'ome': ome} | kept
      _write_once(path / 'zarr.json', group)
    else:
      image['version'] = version
      _write_once(path / '.zattrs', {'multiscales': [image]} | shown | kept)
      _write_once(path / '.zgroup', {'zarr_format': 2})
  except OSError as e:
    if e.errno in files.FULL:
      raise
    raise errors.InputError(
      f'{path} cannot be written: {e.strerror}; choose another folder.'
    ) from e
  return read_settings(path) or {}


def _write_once(path: pathlib.Path, value: Any) -> None:
  """Writes a file whole, unless it exists."""
  part = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
  try:
    part.write_text(json.dumps(value, indent=2))
    with contextlib.suppress(FileExistsError):
      os.link(part, path)
  finally:
    part.unlink(missing_ok=True)


def level_shapes(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
  """Of all levels; each is half as fine in y and x as the last."""
  z, y, x = shape
  found = [(z, y, x)]
  while max(y, x) > COARSEST:
    y, x = -(-y // 2), -(-x // 2)
    found.append((z, y, x))
  return found


def _multiscales(
  name: str,
  settings: Mapping[str, Any],
  metadata: Mapping[str, Any],
  colours: bool,
) -> dict[str, Any]:
  """What OME-Zarr says of an image."""
  unit = pixel_size.long(str(metadata.get('unit', '')))
  per_x, per_y = 1.0, 1.0
  # Without a unit, only a resolution without TIFF's own is one of pixels.
  if unit or metadata.get('resolutionunit') == 1:
    per_x, per_y = metadata.get('resolution', (1.0, 1.0))
  size = [float(metadata.get('spacing', 1.0)), 1 / per_y, 1 / per_x]
  origin = metadata.get('origin', (0.0, 0.0, 0.0))
  axes = [
    {'name': letter.lower(), 'type': 'time' if letter == 'T' else 'space'}
    for letter in settings['axes']
  ]
  for axis in axes if unit else ():
    if axis['type'] == 'space':
      axis['unit'] = unit
  datasets = []
  channel = channel_axis(settings['axes'])
  if colours:
    axes.insert(channel, {'name': 'c', 'type': 'channel'})
  for level in range(len(level_shapes(settings['shape']))):
    factors = [1, 2**level, 2**level]
    scale = [s * f for s, f in zip(size, factors, strict=True)]
    if colours:
      scale.insert(channel, 1.0)
    steps: list[dict[str, Any]] = [{'type': 'scale', 'scale': scale}]
    # The middle of the first pixel.
    first = [
      o + (f - 1) / 2 * s for o, f, s in zip(origin, factors, size, strict=True)
    ]
    if any(first) or 'origin' in metadata:
      if colours:
        first.insert(channel, 0.0)
      steps.append({'type': 'translation', 'translation': first})
    datasets.append({'path': str(level), 'coordinateTransformations': steps})
  return {'name': name, 'axes': axes, 'datasets': datasets}


def channel_axis(axes: str) -> int:
  """Place of the axis of colours: OME-Zarr orders t, c, z, y, x."""
  return 1 if axes.startswith('T') else 0


def _omero() -> dict[str, Any]:
  """How a viewer shows three channels as colours."""
  window = {'start': 0, 'end': 255, 'min': 0, 'max': 255}
  channels = [
    {'label': name, 'color': colour, 'active': True, 'window': window}
    for name, colour in _COLOURS.items()
  ]
  return {'channels': channels, 'rdefs': {'model': 'color'}}
