"""Opens one channel of one image of a TIFF as a stack of slices.

A file that has more than one image, channel or time point is refused unless
one is chosen. `tiff_images` says which pages are slices.
"""

from collections.abc import Sequence
import contextlib
import math
import pathlib
from typing import Any

import numpy as np
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import pixel_size
from skipnet_jax.data import stack_reader
from skipnet_jax.data import tiff_checks
from skipnet_jax.data import tiff_images

# Axes along which one moves from slice to slice: depth, time, and unnamed ones.
_SLICES = 'ZTIQ'
_NO_FUNCTION = 20  # ImageJ's number of it.


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
        images = tiff_images.find(path, self._tiff, count)
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

  def _open(
    self, image: tiff_images.Image, choice: stack_reader.Choice
  ) -> None:
    first = self._page(image.pages[0])
    self._check_page(first, image.pages[0])
    assert first.dtype is not None  # Else it was refused.
    self.dtype = first.dtype.newbyteorder('=')
    y, x = first.shape
    if image.dims[-2:] != (('Y', y), ('X', x)):
      raise errors.InputError(
        f'{self.path} has the axes {tiff_images.axes_text(image.dims)} and '
        f'pages of {y} x {x} where z, y, x is read; save it with one page for '
        'each slice'
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
    resolution = _resolution(first)
    metadata = {'axes': f'{axis}YX'} | resolution | image.metadata
    self._signed = _is_signed(
      self.path, metadata.pop('calibration', None), self.dtype, self._dtypes
    )
    self.metadata = _in_one_unit(metadata)
    starts = begin + order * page_bytes
    raw = not self._signed
    # Else a resolution is that of a screen, or there is none.
    sized = bool(resolution) and pixel_size.of_metadata(self.metadata)
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
      if tiff_images.is_reduced(page) != image.reduced:
        raise errors.InputError(
          f'{self.path}: page {number + 1} has NewSubfileType '
          f'{page.subfiletype}, page {image.pages[0] + 1} has '
          f'{first.subfiletype}: not all are slices; save the slices alone'
        )
      own = _resolution(page)
      if sized and own and not _alike(own, resolution):
        raise errors.InputError(
          f'{self.path}: page {number + 1} has a resolution of '
          f'{_per_unit(own)}, page {image.pages[0] + 1} of '
          f'{_per_unit(resolution)}; save one stack of equal pixels'
        )
      tiff_checks.check_stored(self.path, page, self._size, z)
      raw = raw and page.is_final
      if not virtual:
        starts[z] = page.dataoffsets[0]
    tiff_checks.check_total(self.path, self.shape, first, self._size)
    self._raw = None
    if self._signed:
      self.dtype = np.dtype(np.int16)
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
      if self._signed:
        return (found.astype(np.int32) - 2**15).astype(self.dtype)
      return found.astype(self.dtype, copy=False)

  def on_disk(self) -> stack_reader.SlicesOnDisk | None:
    """See `StackReader`; None where slices are compressed or in tiles."""
    return self._raw

  def close(self) -> None:
    """Closes the file."""
    self._tiff.close()


def _is_signed(
  path: pathlib.Path, calibration: Any, dtype: np.dtype, dtypes: Sequence[str]
) -> bool:
  """Whether uint16 are int16 plus 32768, as ImageJ keeps these.

  Args:
    path: the file.
    calibration: ImageJ's function and its first two coefficients: grey value =
      c0 + c1 x stored value; or None.
    dtype: as stored.
    dtypes: types of pixels that are accepted.

  Raises:
    InputError: grey values that are no line that rises, or, of labels, are not
      the stored ones.
  """
  if calibration in (None, [0, 0, 1], [_NO_FUNCTION, 0, 0]):
    return False
  signed = calibration == [0, -(2**15), 1] and dtype == np.uint16
  if signed and 'int16' in dtypes:
    return True
  function, _, slope = calibration
  rises = isinstance(slope, (int, float)) and slope > 0
  # A network does not see the offset and the slope of an image.
  if function == 0 and rises and 'int16' not in dtypes:
    return False
  raise errors.InputError(
    f'{path} has a calibration of its grey values (cf, c0, c1 = '
    f'{", ".join(map(str, calibration))}) that would change what they mean; '
    'remove it in ImageJ (Analyze > Calibrate > Function: None) and save again'
  )


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
  path: pathlib.Path, image: tiff_images.Image, choice: stack_reader.Choice
) -> tuple[np.ndarray, str]:
  """The planes of the chosen channel in order, int64, and Z or T."""
  dims = image.dims[:-2]
  axes = ''.join(axis for axis, _ in dims)
  others = axes.replace('C', '', 1)
  if len(others) > 1 or others.strip(_SLICES):
    raise errors.InputError(
      f'{path} has the axes {tiff_images.axes_text(image.dims)} where besides '
      'y and x only z is read; save one stack of slices (ImageJ: Image > '
      'Duplicate)'
    )
  sizes = [size for _, size in dims]
  planes = np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes)
  channels = dict(dims).get('C', 1)
  what = f'{channels} channel' + 's' * (channels > 1)
  channel = choice.pick('channel', channels, what, path)
  if channels > 1:
    planes = planes.take([channel], axes.index('C'))
  return planes.ravel(), 'T' if others == 'T' else 'Z'


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
  return one['resolutionunit'] == other['resolutionunit'] and np.allclose(
    one['resolution'], other['resolution'], rtol=1e-3
  )


def _per_unit(resolution: dict[str, Any]) -> str:
  x, y = resolution['resolution']
  return f'{x:g} x {y:g} pixels per unit'


def _resolution(page: tifffile.TiffPage) -> dict[str, Any]:
  """Pixels per unit, as `StackReader.metadata` has it; {} if not positive."""
  pair = page.tags.valueof(282), page.tags.valueof(283)
  if not all(ratio and ratio[0] > 0 and ratio[1] > 0 for ratio in pair):
    return {}
  return {
    'resolution': tuple(ratio[0] / ratio[1] for ratio in pair),
    'resolutionunit': int(page.resolutionunit),
  }
