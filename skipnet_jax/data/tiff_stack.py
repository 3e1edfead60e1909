"""Opens a TIFF as a stack: which pages are its slices, and in which order.

tifffile tells what a page means (`TiffFile.series`). A file that has more than
one image, channel or time point is refused unless one is chosen, and so is a
file whose description does not fit its pages.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import ome
from skipnet_jax.data import pixel_size
from skipnet_jax.data import stack_reader
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
# Axes along which one moves from slice to slice: depth, time, and unnamed ones.
_SLICES = 'ZTIQ'
_REDUCED_OR_MASK = 0b101  # of NewSubfileType


@dataclasses.dataclass(frozen=True)
class _Image:
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


class TiffStack(stack_reader.StackReader):
  """One channel of one image of a TIFF; see `volume.open_stack`."""

  path: pathlib.Path

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Sequence[str],
    choice: stack_reader.Choice,
  ):
    self.path, self._dtypes = path, dtypes
    self._stamp = stack_reader.stamp(path)
    self._size = path.stat().st_size
    count = tiff_checks.count_pages(path, self._size)
    with contextlib.ExitStack() as undo:
      self._tiff = undo.enter_context(
        tifffile.TiffFile(
          path,
          # tifffile would rearrange their pages at once; they are refused.
          is_lsm=False,
          is_ndpi=False,
          is_scanimage=False,
          # Reads other files too; the file's own description serves.
          is_mmstack=False,
          is_ndtiff=False,
        )
      )
      try:
        images = _find_images(path, self._tiff, count)
      except Exception:
        # What is wrong with its first page tells more.
        page = self._page(0)
        self._check_page(page, 0)
        tiff_checks.check_stored(path, page, self._size, 0)
        raise
      labels = [f'{i} is {image.label}' for i, image in enumerate(images, 1)]
      what = f'{len(images)} image' + 's' * (len(images) > 1)
      what += f' ({", ".join(labels[:5])}{", ..." * (len(images) > 5)})'
      self._open(images[choice.pick('series', len(images), what, path)], choice)
      undo.pop_all()

  def _open(self, image: _Image, choice: stack_reader.Choice) -> None:
    first = self._page(image.pages[0])
    self._check_page(first, image.pages[0])
    assert first.dtype is not None  # Else it was refused.
    self.dtype = first.dtype.newbyteorder('=')
    y, x = first.shape
    if image.dims[-2:] != (('Y', y), ('X', x)):
      raise errors.InputError(
        f'{self.path} has the axes {_name(image.dims)} and pages of {y} x {x} '
        'where z, y, x is read; save it with one page for each slice'
      )
    planes = math.prod(size for _, size in image.dims[:-2])
    virtual = planes > len(image.pages)
    page_bytes = y * x * self.dtype.itemsize
    begin = first.dataoffsets[0]
    if virtual:
      tiff_checks.check_total(self.path, (planes, y, x), first, self._size)
      last = begin + (planes - 1) * page_bytes
      tiff_checks.check_range(self.path, first, last, self._size, planes - 1)
    order, axis = _slices(self.path, image, choice)
    self.shape = (len(order), y, x)
    metadata = {'axes': f'{axis}YX'} | _resolution(first) | image.metadata
    self.metadata = _in_one_unit(metadata)
    starts = begin + order * page_bytes
    raw = True
    self._pages = [image.pages[0 if virtual else i] for i in order]
    for z, number in enumerate(self._pages[:1] if virtual else self._pages):
      page = self._page(number)
      self._check_page(page, number)
      if (page.shape, page.dtype) != (first.shape, first.dtype):
        raise errors.InputError(
          f'{self.path}: page {number + 1} is {page.shape} {page.dtype}, page '
          f'{image.pages[0] + 1} is {first.shape} {first.dtype}; save one '
          'stack of equal slices'
        )
      if _is_reduced(page) != image.reduced:
        raise errors.InputError(
          f'{self.path}: page {number + 1} has NewSubfileType '
          f'{page.subfiletype}, page {image.pages[0] + 1} has '
          f'{first.subfiletype}: not all are slices; save the slices alone'
        )
      tiff_checks.check_stored(self.path, page, self._size, z)
      raw = raw and page.is_final
      if not virtual:
        starts[z] = page.dataoffsets[0]
    tiff_checks.check_total(self.path, self.shape, first, self._size)
    self._raw = None
    if raw:
      stored = self.dtype.newbyteorder(self._tiff.byteorder)
      self._raw = stack_reader.SlicesInFile(
        self.path, stored, starts, (y, x), self._stamp
      )

  def _page(self, number: int) -> tifffile.TiffPage:
    return self._tiff.pages[number].aspage()

  def _check_page(self, page: tifffile.TiffPage, number: int) -> None:
    codecs, predictors = tifffile.TIFF.DECOMPRESSORS, tifffile.TIFF.UNPREDICTORS
    decodable = page.compression in codecs and page.predictor in predictors
    tiff_checks.check_page(self.path, page, number, self._dtypes, decodable)

  def _read(self, z: int) -> np.ndarray:
    if self._raw is not None:
      return self._raw[z]
    with (
      stack_reader.unchanged(self.path, self._stamp),
      tiff_checks.refusing(self.path, f'cannot be read at slice {z + 1}'),
    ):
      page = self._page(self._pages[z])
      tiff_checks.check_bomb(self.path, page, self._tiff.filehandle, z)
      found = page.asarray(maxworkers=1).reshape(self.shape[1:])
      return found.astype(self.dtype, copy=False)

  def on_disk(self) -> stack_reader.SlicesOnDisk | None:
    """See `StackReader`; None where slices are compressed or in tiles."""
    return self._raw

  def close(self) -> None:
    """Closes the file."""
    self._tiff.close()


def _find_images(
  path: pathlib.Path, tiff: tifffile.TiffFile, count: int
) -> list[_Image]:
  """All images of a file with `count` pages, but for previews and masks."""
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
    if not _is_reduced(tiff.pages[number].aspage()):
      raise errors.InputError(
        f'{path} declares {len(numbers)} planes but has {count} pages; save '
        'the slices alone'
      )
  whole = [image for image in images if not image.reduced]
  if not whole and first.subifds:
    raise _hidden(path)
  return whole or images


def _undescribed(
  path: pathlib.Path, tiff: tifffile.TiffFile, count: int
) -> list[_Image]:
  """Pages of equal shape and type are the slices of one image."""
  groups: dict[Any, list[int]] = {}
  reduced: dict[Any, bool] = {}
  for number in range(count):
    page = tiff.pages[number].aspage()
    tiff_checks.check_sides(path, page, number)
    key = page.axes, page.shape, str(page.dtype)
    groups.setdefault(key, []).append(number)
    reduced.setdefault(key, _is_reduced(page))
  images = []
  for key, pages in groups.items():
    axes, shape, dtype = key
    dims = (('I', len(pages)), *zip(axes, shape, strict=True))
    dims = dims[len(pages) == 1 :]
    label = f'{_name(dims)} {dtype}'
    images.append(_Image(pages, dims, reduced[key], label, {}))
  return images


def _described(
  path: pathlib.Path, tiff: tifffile.TiffFile, count: int, kind: str
) -> list[_Image]:
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
      if not _is_reduced(one.keyframe):
        raise _hidden(path)
      continue
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
    label = f'{_name(dims)} {one.dtype} ' + (repr(one.name) if one.name else '')
    label = label[:80].strip()
    kept = _kept(given, kind)
    images.append(_Image(pages, dims, _is_reduced(one.keyframe), label, kept))
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
  for key in ('unit', 'yunit', 'zunit', 'info', 'Info'):
    if isinstance(given.get(key), str):
      kept[key.lower()] = given[key]
  return kept


def _in_one_unit(metadata: dict[str, Any]) -> dict[str, Any]:
  """Metadata whose sizes are all in `unit`: ImageJ may have others for y, z."""
  unit = pixel_size.metres(metadata.get('unit', ''))
  y, z = (metadata.pop(key, '') for key in ('yunit', 'zunit'))
  if y and 'resolution' in metadata:
    of_x, of_y = metadata['resolution']
    ratio = unit / (pixel_size.metres(y) or math.inf)
    if ratio:
      metadata['resolution'] = of_x, of_y * ratio
    elif y != metadata.get('unit'):
      # One of the two is not known.
      metadata.pop('unit', None)
  if z and 'spacing' in metadata and z != metadata.get('unit'):
    spacing = metadata.pop('spacing')
    if unit and pixel_size.metres(z):
      metadata['spacing'] = spacing * pixel_size.metres(z) / unit
  return metadata


def _slices(
  path: pathlib.Path, image: _Image, choice: stack_reader.Choice
) -> tuple[np.ndarray, str]:
  """The planes of the chosen channel in order, int64, and Z or T."""
  dims = image.dims[:-2]
  axes = ''.join(axis for axis, _ in dims)
  others = axes.replace('C', '', 1)
  if len(others) > 1 or others.strip(_SLICES):
    raise errors.InputError(
      f'{path} has the axes {_name(image.dims)} where besides y and x only z '
      'is read; save one stack of slices (ImageJ: Image > Duplicate)'
    )
  sizes = [size for _, size in dims]
  planes = np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes)
  channels = dict(dims).get('C', 1)
  what = f'{channels} channel' + 's' * (channels > 1)
  channel = choice.pick('channel', channels, what, path)
  if channels > 1:
    planes = planes.take([channel], axes.index('C'))
  return planes.ravel(), 'T' if others == 'T' else 'Z'


def _hidden(path: pathlib.Path) -> errors.InputError:
  return errors.InputError(
    f'{path} has an image below a page (SubIFDs) that is not marked as its '
    'preview; save it as plain TIFF'
  )


def _is_reduced(page: tifffile.TiffPage) -> bool:
  return bool(page.subfiletype & _REDUCED_OR_MASK)


def _name(dims: Sequence[tuple[str, int]]) -> str:
  return ' x '.join(f'{axis} {size}' for axis, size in dims)


def _resolution(page: tifffile.TiffPage) -> dict[str, Any]:
  """Pixels per unit, as `StackReader.metadata` has it; {} if not positive."""
  pair = page.tags.valueof(282), page.tags.valueof(283)
  if not all(ratio and ratio[0] > 0 and ratio[1] > 0 for ratio in pair):
    return {}
  return {
    'resolution': tuple(ratio[0] / ratio[1] for ratio in pair),
    'resolutionunit': int(page.resolutionunit),
  }
