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
  **dict.fromkeys(('um', 'μm', '\\u00b5m', '\\u00B5m'), 'µm'),
  **dict.fromkeys(('micron', 'microns', 'micrometer', 'micrometre'), 'µm'),
}


def short(unit: str) -> str:
  """A unit's short name; the unit itself if it is not known."""
  return _OTHER_NAMES.get(unit, unit)


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


def is_plausible(size: float) -> bool:
  """Whether a number can be the side of a pixel in nanometres."""
  return config.SMALLEST_PIXEL <= size <= config.LARGEST_PIXEL
