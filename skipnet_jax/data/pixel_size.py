"""The size of a stack's pixels, from what its file says."""

from collections.abc import Mapping
from typing import Any

from skipnet_jax import config

# Metres in the units of length that microscopes and ImageJ write.
METRES = {
  'pm': 1e-12,
  'Å': 1e-10,
  'nm': 1e-9,
  'µm': 1e-6,
  'mm': 1e-3,
  'cm': 1e-2,
  'm': 1.0,
}
_LONG = {
  **{'pm': 'picometer', 'Å': 'angstrom', 'nm': 'nanometer', 'µm': 'micrometer'},
  **{'mm': 'millimeter', 'cm': 'centimeter', 'm': 'meter'},
}
_OTHER_NAMES = {
  **{name: unit for unit, name in _LONG.items()},
  **dict.fromkeys(('angstrom', 'angstroms', 'Ångström'), 'Å'),
  **dict.fromkeys(('nanometer', 'nanometers', 'nanometre'), 'nm'),
  **dict.fromkeys(('\\u00c5', '\\u00C5', '\\xc5', '\u212b', '\xc5'), 'Å'),
  **dict.fromkeys(('um', 'μm', '\\u00b5m', '\\u00B5m', '\\u03bcm'), 'µm'),
  **dict.fromkeys(('micron', 'microns', 'micrometer', 'micrometre'), 'µm'),
}


def short(unit: str) -> str:
  """A unit's short name; the unit itself if it is not known."""
  unit = unit.strip()
  return _OTHER_NAMES.get(unit) or _OTHER_NAMES.get(unit.lower(), unit)


def long(unit: str) -> str:
  """A unit's name in OME-Zarr; '' if it is not known."""
  return _LONG.get(short(unit), '')


def metres(unit: str) -> float:
  """Metres in a unit of length; 0 if it is not known."""
  return METRES.get(short(unit), 0.0)


def of_metadata(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
  """Sides y and x of a pixel in nanometres; None if not known.

  Only a size with a unit of OME-XML, ImageJ or tifffile counts. TIFF's own
  tags, in inches or centimetres, are those of a screen or a printer, and
  ImageJ takes inches over from them.

  Args:
    metadata: as in `StackReader.metadata`.
  """
  unit = str(metadata.get('unit', ''))
  length = metres(unit)
  x, y = metadata.get('resolution', (0.0, 0.0))
  if unit == 'cm' or not (length and x > 0 and y > 0):
    return None
  size = length * 1e9 / y, length * 1e9 / x
  return size if all(map(is_plausible, size)) else None


def spacing(metadata: Mapping[str, Any]) -> float:
  """Nanometres from one slice to the next; 0 if not known.

  Args:
    metadata: as in `StackReader.metadata`.
  """
  unit = str(metadata.get('unit', ''))
  along_z = metadata.get('axes', 'ZYX').startswith('Z')
  # As in `of_metadata`.
  length = metres(unit) if along_z and unit != 'cm' else 0.0
  return metadata.get('spacing', 0.0) * length * 1e9


def why_unknown(metadata: Mapping[str, Any]) -> str:
  """Why `of_metadata` cannot use what a file says; '' if it says nothing."""
  unit = str(metadata.get('unit', ''))
  x, y = metadata.get('resolution', (0.0, 0.0))
  # ImageJ takes inches over from the tags.
  if unit in ('', 'cm', 'inch') or not (x > 0 and y > 0):
    return ''
  if not metres(unit):
    return f'its unit {unit!r} is not known'
  sides = [metres(unit) * 1e9 / n for n in (y, x)]
  return f'{sides[0]:.4g} x {sides[1]:.4g} nm cannot be the sides of a pixel'


def is_plausible(size: float) -> bool:
  """Whether a number can be the side of a pixel in nanometres."""
  return config.SMALLEST_PIXEL <= size <= config.LARGEST_PIXEL
