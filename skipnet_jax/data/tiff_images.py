"""Which pages of a TIFF are its images, and which of their planes.

tifffile tells what a page means (`TiffFile.series`), where a description says
it. A description that does not fit the pages is refused.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import ome
from skipnet_jax.data import tiff_checks

# Formats whose planes are not pages: tifffile's name, and the user's.
_FOREIGN = {
  'lsm': 'Zeiss LSM',
  'stk': 'MetaMorph STK',
  'ndpi': 'Hamamatsu NDPI',
  'fluoview': 'Olympus FluoView',
  'scanimage': 'ScanImage',
  'svs': 'Aperio SVS',
  'scn': 'Leica SCN',
  'qpi': 'PerkinElmer QPTIFF',
  'bif': 'Ventana BIF',
  'avs': 'Argos AVS',
  'eer': 'an EER movie',
  'philips': 'Philips TIFF',
  'mdgel': 'an MD gel scan',
}
# Descriptions of the axes in the order in which tifffile looks for them, and
# a text by which one is known that tifffile cannot read.
_DESCRIPTIONS = {
  'shaped': 'tifffile wrote',
  'ome': 'openmicroscopy.org/Schemas',
  'imagej': 'ImageJ=',
  'sis': 'Olympus SIS',
}
# Types of OME-XML; of others nothing is checked.
_OME_TYPES = {
  **{name: np.dtype(name) for name in ('int8', 'int16', 'int32')},
  **{name: np.dtype(name) for name in ('uint8', 'uint16', 'uint32')},
  **{'float': np.dtype('float32'), 'double': np.dtype('float64')},
}
_REDUCED_OR_MASK = 0b101  # of NewSubfileType
_PAGE_NAME = 285  # Number of the tag.


@dataclasses.dataclass(frozen=True)
class Image:
  """One image of a file.

  Attributes:
    pages: the page of each plane in the order of `dims`, numbered from 0; only
      the first one where the other planes follow it without pages.
    dims: letter and length of each axis; those of length one are left out,
      except y and x.
    reduced: whether it is a preview or a mask of another image.
    label: size, type and name for messages.
    metadata: as in `StackReader.metadata`.
  """

  pages: list[int]
  dims: tuple[tuple[str, int], ...]
  reduced: bool
  label: str
  metadata: dict[str, Any]


def find(
  path: pathlib.Path, tiff: tifffile.TiffFile, count: int
) -> list[Image]:
  """All images of a file with `count` pages, but for previews and masks.

  Raises:
    InputError: for a microscope's own format; where a description cannot be
      read or does not fit the pages; where a page is in no image or in two.
  """
  first = tiff.pages.first
  foreign = [n for k, n in _FOREIGN.items() if getattr(first, f'is_{k}', False)]
  kinds = [k for k in _DESCRIPTIONS if getattr(first, f'is_{k}')]
  if first.is_micromanager and not kinds:
    foreign = ['Micro-Manager TIFF']
  if foreign:
    raise errors.InputError(f'{path} is {foreign[0]}; save it as plain TIFF')
  if kinds:
    images = _described(path, tiff, count, kinds[0])
    alike = len({image.label for image in images}) == 1
    if kinds[0] == 'shaped' and alike and len(images) == count:
      # tifffile was given one slice after the other, if these are pages.
      one, pages = images[0], [*range(count)]
      if len(one.dims) == 2:
        dims = ('I', count), *one.dims
        images = [dataclasses.replace(one, pages=pages, dims=dims)]
  else:
    text = first.tags.valueof(270, '')
    if isinstance(text, bytes):
      text = text.decode('latin-1')
    # Without its zeros, UTF-16 looks like ASCII.
    text = str(text).replace('\0', '')
    for mark in _DESCRIPTIONS.values():
      if mark in text:
        raise errors.InputError(
          f'{path} has a description with {mark!r} that cannot be read; save '
          'it as plain TIFF'
        )
    images = _undescribed(path, tiff, count)
  numbers = [number for image in images for number in image.pages]
  if len(set(numbers)) < len(numbers):
    raise errors.InputError(
      f'{path} declares one page to be several planes; export it again'
    )
  for number in {*range(count)} - {*numbers}:
    if not is_reduced(tiff.pages[number].aspage()):
      raise errors.InputError(
        f'{path} declares {len(numbers)} planes but has {count} pages; save '
        'the slices alone'
      )
  whole = [image for image in images if not image.reduced]
  for number in sorted(number for image in whole for number in image.pages):
    page = tiff.pages[number].aspage()
    for below in page.pages or ():
      below = below.aspage()
      sides = zip(below.shape, page.shape, strict=False)
      if not is_reduced(below) and any(a >= b for a, b in sides):
        raise _hidden(path)
  if not whole and first.subifds:
    raise _hidden(path)
  return whole or images


def _undescribed(
  path: pathlib.Path, tiff: tifffile.TiffFile, count: int
) -> list[Image]:
  """Pages of equal shape and type are the slices of one image."""
  groups: dict[Any, list[int]] = {}
  reduced: dict[Any, bool] = {}
  names: list[str] = []
  for number in range(count):
    page = tiff.pages[number].aspage()
    tiff_checks.check_sides(path, page, number)
    text = page.description
    if number and any(getattr(page, f'is_{kind}') for kind in _DESCRIPTIONS):
      raise errors.InputError(
        f'{path} has a description on page {number + 1} '
        f'({" ".join(text.split())[:80]}) and none on page 1; export it again'
      )
    names.append(str(page.tags.valueof(_PAGE_NAME, '')))
    key = page.axes, page.shape, str(page.dtype)
    groups.setdefault(key, []).append(number)
    reduced.setdefault(key, is_reduced(page))
  images = []
  for key, pages in groups.items():
    axes, shape, dtype = key
    dims = (('I', len(pages)), *zip(axes, shape, strict=True))
    dims = dims[len(pages) == 1 :]
    label = f'{axes_text(dims)} {dtype}'
    images.append(Image(pages, dims, reduced[key], label, {}))
  # Names of slices differ, but for their numbers; those of channels return.
  words = [''.join(filter(str.isalpha, name)) for name in names]
  if all(words) and 1 < len({*words}) < count:
    shown = ', '.join(dict.fromkeys(names))
    raise errors.InputError(
      f'{path} has pages of {len({*words})} kinds by their names '
      f'({shown[:80]}); save one of them as a stack of its own'
    )
  return images


def _described(
  path: pathlib.Path, tiff: tifffile.TiffFile, count: int, kind: str
) -> list[Image]:
  """The images as tifffile reads them from a file's description."""
  text = tiff.pages.first.description
  metadata: Sequence[dict[str, Any]] = ({},)
  if kind == 'ome':
    metadata = ome.read(path, text, count)
  found = tiff.series
  if kind == 'shaped':
    metadata = tiff.shaped_metadata or ()
  elif kind == 'imagej':
    metadata = (tiff.imagej_metadata or {},)
  unfit = errors.InputError(
    f'{path} has {count} pages, to which its description does not fit '
    f'({" ".join(text.split())[:80]}); it is cut short or was changed; copy or '
    'export it again'
  )
  if {one.kind for one in found} != {kind} or len(found) != len(metadata):
    raise unfit
  images = []
  for one, given in zip(found, metadata, strict=True):
    if one.keyframe.is_subifd:
      if not is_reduced(one.keyframe):
        raise _hidden(path)
      continue
    stated = _OME_TYPES.get(given.get('Type', ''), one.dtype)
    if kind == 'ome' and stated != one.dtype:
      raise errors.InputError(
        f'{path} has pages of {one.dtype}, but its OME-XML says '
        f'{given["Type"]}; correct the one that is wrong, or export it again'
      )
    sizes, axes = one.shape, one.axes
    # Before 2026.5, tifffile left axes of length one out of these two.
    if hasattr(one, 'get_shape'):
      sizes, axes = one.get_shape(False), one.get_axes(False)
    planes = math.prod(sizes) // max(1, math.prod(one.keyframe.shape))
    virtual = one.is_truncated and len(one) == count == 1
    # What tifffile passes over where it does not fit.
    if kind == 'shaped' and sizes != tuple(given['shape']):
      raise unfit
    if kind == 'imagej' and given.get('images', planes) != planes:
      raise unfit
    if not (virtual or len(one) == planes <= count):
      raise errors.InputError(
        f'{path} declares {planes} slices but has {count} pages; it is cut '
        'short or was changed; copy or export it again'
      )
    pages = [page.index for page in one if page is not None]
    if len(pages) < len(one):
      raise errors.InputError(
        f'{path} lacks {len(one) - len(pages)} of the {len(one)} planes that '
        'it declares; export it again'
      )
    dims = tuple(
      (axis, size)
      for axis, size in zip(axes, sizes, strict=True)
      if size != 1 or axis in 'YX'
    )
    label = f'{axes_text(dims)} {one.dtype} ' + (
      repr(one.name) if one.name else ''
    )
    label = label[:80].strip()
    kept = _kept(given, kind)
    images.append(Image(pages, dims, is_reduced(one.keyframe), label, kept))
  return images


def _kept(given: dict[str, Any], kind: str) -> dict[str, Any]:
  """What counts of a description, as `StackReader.metadata` has it.

  Anything may stand there. Only OME-XML says a resolution; the others have it
  in the tags.
  """
  keys = ('resolution', 'resolutionunit') if kind == 'ome' else ()
  kept = {key: given[key] for key in keys if key in given}
  spacing = given.get('spacing')
  if isinstance(spacing, (int, float)) and 0 < spacing < math.inf:
    kept['spacing'] = spacing
  if kind == 'imagej' and 'cf' in given:
    kept['calibration'] = [given.get(key, 0) for key in ('cf', 'c0', 'c1')]
  for key in ('unit', 'yunit', 'zunit', 'info', 'Info'):
    if isinstance(given.get(key), str):
      kept[key.lower()] = given[key]
  return kept


def _hidden(path: pathlib.Path) -> errors.InputError:
  return errors.InputError(
    f'{path} has an image below a page (SubIFDs) that is not marked as its '
    'preview; save it as plain TIFF'
  )


def is_reduced(page: tifffile.TiffPage) -> bool:
  """Whether its NewSubfileType says that it is a preview or a mask."""
  return bool(page.subfiletype & _REDUCED_OR_MASK)


def axes_text(dims: Sequence[tuple[str, int]]) -> str:
  """For messages: 'Z 30 x Y 512 x X 512'."""
  return ' x '.join(f'{axis} {size}' for axis, size in dims)
