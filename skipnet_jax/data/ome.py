"""What an OME-XML header says of its file, before tifffile follows it."""

import math
import pathlib
from typing import Any
from xml.etree import ElementTree

from skipnet_jax import errors
from skipnet_jax.data import pixel_size

# Parsed in less than a second.
_LONGEST = 8 * 2**20


def read(path: pathlib.Path, text: str, pages: int) -> list[dict[str, Any]]:
  """Pixel size of each image, as `StackReader.metadata` has it, and its `Type`.

  Args:
    path: the file.
    text: the header.
    pages: how many there are in the file.

  Raises:
    InputError: a header that cannot be read, one of a set of several files, or
      one that names more planes than there are pages.
  """
  root = _parse(path, text)
  for element in root.iter():
    place = None
    if _name(element) == 'BinaryOnly':
      place = element.get('MetadataFile')
    elif _name(element) == 'UUID' and root.get('UUID') != element.text:
      place = element.get('FileName')
      if not root.get('UUID') and (place or '').lower() == path.name.lower():
        place = None
    if place is not None:
      raise errors.InputError(
        f'{path} is one file of several that make an image together, beside '
        f'{place!r}; save the whole image as one file (ImageJ: File > Save As '
        '> Tiff)'
      )
  images = [e for e in root.iter() if _name(e) == 'Pixels']
  declared = named = 0
  for pixels in images:
    planes = math.prod(int(pixels.get(f'Size{axis}', 1)) for axis in 'CZT')
    channels = [e for e in pixels if _name(e) == 'Channel']
    samples = int(channels[0].get('SamplesPerPixel', 1)) if channels else 1
    declared += planes // max(samples, 1)
    for data in pixels:
      if _name(data) == 'TiffData':
        count = data.get('PlaneCount') or data.get('NumPlanes')
        # Without a number it means all pages, unless it has the first one's.
        named += int(count or (1 if 'IFD' in data.attrib else pages))
  if max(declared, named) > pages:
    raise errors.InputError(
      f'{path} declares {max(declared, named)} planes in its OME-XML but has '
      f'{pages} pages; it is cut short or was changed; copy or export it again'
    )
  return [_described(pixels) for pixels in images]


def _parse(path: pathlib.Path, text: str) -> ElementTree.Element:
  fault = ''
  if len(text) > _LONGEST:
    fault = f'has {len(text)} characters, at most {_LONGEST} are read'
  elif '<!DOCTYPE' in text or '<!ENTITY' in text:
    fault = 'defines entities, which are not read'
  else:
    try:
      return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
      fault = f'is damaged ({error})'
  raise errors.InputError(
    f'the OME-XML header of {path} {fault}; save the stack as plain TIFF'
  )


def _name(element: ElementTree.Element) -> str:
  """The tag without its namespace."""
  return element.tag.rpartition('}')[2]


def _described(pixels: ElementTree.Element) -> dict[str, Any]:
  size: dict[str, float] = {}
  unit = pixels.get('PhysicalSizeXUnit', 'µm')
  for axis in 'XYZ':
    own = pixels.get(f'PhysicalSize{axis}Unit', 'µm')
    value = float(pixels.get(f'PhysicalSize{axis}', 'nan'))
    if own != unit:
      to, by = pixel_size.metres(own), pixel_size.metres(unit)
      value *= to / by if to and by else math.nan
    if 0 < value < math.inf:
      size[axis] = value
  found: dict[str, Any] = {}
  if pixels.get('Type'):
    found['Type'] = pixels.get('Type')
  if {'X', 'Y'} <= size.keys():
    found['resolution'] = 1 / size['X'], 1 / size['Y']
    found |= {'resolutionunit': 1, 'unit': unit}
    if 'Z' in size:
      found['spacing'] = size['Z']
  return found
