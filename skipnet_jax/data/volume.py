"""Read and write stacks of slices: multi-page TIFF, folders of PNG or TIFF.

The only module that imports tifffile; nothing here depends on JAX. What a file
declares is checked when it is opened (`tiff_checks`), before any pixel is
allocated.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import math
import os
import pathlib
import sys
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
import tifffile

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import stack_folder
from skipnet_jax.data import tiff_checks

IMAGE_DTYPES = ('uint8', 'uint16', 'float32')
_WRITE_DTYPES = (*IMAGE_DTYPES, 'uint32')
_CLASSIC_LIMIT = 2**32 - 2**25  # bytes of pixels, leaving room for directories

StackReader = stack_folder.StackReader

# What tifffile logs about a broken file, the InputError says.
logging.getLogger('tifffile').addHandler(logging.NullHandler())
logging.getLogger('tifffile').propagate = False


def open_stack(
  path: str | os.PathLike, *, dtypes: Sequence[str] = IMAGE_DTYPES
) -> StackReader:
  """Opens a multi-page TIFF, or a folder of PNG or one-page TIFF slices.

  A folder's slices are taken in natural order: slice_2 before slice_10.

  Raises:
    InputError: missing, empty or cut short; not a TIFF; colour, complex or any
      pixel type outside `dtypes`; slices of unequal shape; dimensions that the
      file cannot hold; compression without a decoder.
  """
  path = pathlib.Path(path)
  with tiff_checks.refusing(path, 'cannot be opened'):
    if path.is_dir():
      return stack_folder.FolderStack(path, dtypes, _TiffStack)
    if not path.is_file():
      raise errors.InputError(
        f'there is no stack at {path}; expected a multi-page TIFF or a folder '
        'of PNG slices'
      )
    return _TiffStack(path, dtypes)


def _check_page(
  path: pathlib.Path, page: tifffile.TiffPage, z: int, dtypes: Sequence[str]
) -> None:
  codecs, predictors = tifffile.TIFF.DECOMPRESSORS, tifffile.TIFF.UNPREDICTORS
  decodable = page.compression in codecs and page.predictor in predictors
  tiff_checks.check_page(path, page, z, dtypes, decodable)


class _TiffStack(StackReader):
  def __init__(self, path: pathlib.Path, dtypes: Sequence[str]):
    self.path = path
    self._size = path.stat().st_size
    count = tiff_checks.count_pages(path, self._size)
    with contextlib.ExitStack() as undo:
      # Vendors whose pages tifffile would rearrange; they are refused instead.
      self._tiff = undo.enter_context(
        tifffile.TiffFile(path, is_lsm=False, is_ndpi=False, is_scanimage=False)
      )
      self._check(count, dtypes)
      undo.pop_all()

  def _check(self, count: int, dtypes: Sequence[str]) -> None:
    first = self._tiff.pages.first
    _check_page(self.path, first, 0, dtypes)
    assert first.dtype is not None  # Else it was refused.
    self.dtype = first.dtype.newbyteorder('=')
    self._page_bytes = math.prod(first.shape) * self.dtype.itemsize
    declared, self.metadata = tiff_checks.describe(
      self.path, first, self._tiff.imagej_metadata
    )
    # One directory entry for many slices: how ImageJ writes large stacks.
    virtual = count == 1 and declared > 1 and first.is_final
    if declared > count and not virtual:
      raise errors.InputError(
        f'{self.path} is cut short: it declares {declared} slices but has '
        f'{count} pages; copy or export it again'
      )
    y, x = first.shape
    self.shape = (declared if virtual else count, y, x)
    if virtual:
      tiff_checks.check_total(self.path, self.shape, first, self._size)
    starts = np.arange(self.shape[0], dtype=np.int64) * self._page_bytes
    starts += first.dataoffsets[0]
    if virtual:
      last = int(starts[-1]), self._size, declared - 1
      tiff_checks.check_range(self.path, first, *last)
    raw = True
    for z in range(count):
      page = self._tiff.pages[z]
      # Frames are pages read in part, which TiffFile makes on request.
      assert isinstance(page, tifffile.TiffPage)
      _check_page(self.path, page, z, dtypes)
      if page.shape != first.shape or page.dtype != first.dtype:
        raise errors.InputError(
          f'{self.path}: page {z + 1} is {page.shape} {page.dtype}, page 1 is '
          f'{first.shape} {first.dtype}; save one stack of equal slices'
        )
      tiff_checks.check_stored(self.path, page, self._size, z)
      raw = raw and page.is_final
      if not virtual:
        starts[z] = page.dataoffsets[0]
    tiff_checks.check_total(self.path, self.shape, first, self._size)
    # Where each slice's pixels begin, if they lie in the file as they are.
    self._starts = starts if raw else None

  def _read(self, z: int) -> np.ndarray:
    what = f'cannot be read at slice {z + 1}'
    with tiff_checks.refusing(self.path, what):
      if self._starts is not None:
        stored = self.dtype.newbyteorder(self._tiff.byteorder)
        count, start = math.prod(self.shape[1:]), int(self._starts[z])
        page = np.fromfile(self.path, stored, count, offset=start)
        page = page.reshape(self.shape[1:])
      else:
        source = self._tiff.pages[z]
        tiff_checks.check_bomb(self.path, source, self._tiff.filehandle, z)
        page = source.asarray(maxworkers=1).reshape(self.shape[1:])
      return page.astype(self.dtype, copy=False)

  def memmap(self) -> np.memmap | None:
    if self._starts is None or self._starts[0] % self.dtype.itemsize:
      return None
    native = self._tiff.byteorder == ('<' if sys.byteorder == 'little' else '>')
    if not native and self.dtype.itemsize > 1:
      return None
    if np.any(np.diff(self._starts) != self._page_bytes):
      return None
    start = int(self._starts[0])
    with tiff_checks.refusing(self.path, 'cannot be mapped'):
      return np.memmap(self.path, self.dtype, 'r', start, self.shape)

  def close(self) -> None:
    self._tiff.close()


@contextlib.contextmanager
def _replacing(
  path: pathlib.Path, suffixes: tuple[str, ...], overwrite: bool
) -> Iterator[BinaryIO]:
  """`files.replacing`, with an `InputError` for what the system refuses."""
  if path.suffix.lower() not in suffixes:
    raise errors.InputError(
      f'cannot write {path}: its name must end in {" or ".join(suffixes)}'
    )
  with contextlib.ExitStack() as undo:
    with tiff_checks.refusing(path, 'cannot be written'):
      fault = None
      if not path.parent.is_dir():
        fault = f'the folder {path.parent} does not exist; make it'
      elif path.is_dir():
        fault = 'it is a folder; choose another name'
      elif path.exists() and not overwrite:
        fault = 'it exists; choose another name or pass --overwrite'
      if fault:
        raise errors.InputError(f'cannot write {path}: {fault}')
      file = undo.enter_context(files.replacing(path))
    yield file
    with tiff_checks.refusing(path, 'cannot be written'):
      undo.close()


class StackWriter:
  """Writes a TIFF stack slice by slice, within a `with` block.

  The file is written whole, see `files.replacing`. ImageJ's own format up to
  4 GiB, except for uint32, which ImageJ has not; BigTIFF above.

  Args:
    path: ends in .tif or .tiff.
    shape: (z, y, x).
    dtype: float32, uint8, uint16 or uint32.
    metadata: as in `StackReader.metadata`; other keys are left out.
    overwrite: whether an existing file may be replaced.

  Raises:
    InputError: the path exists, or cannot be written, or has another ending.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    shape: tuple[int, int, int],
    dtype: Any,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
  ):
    self.path = pathlib.Path(path)
    self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
    if len(self.shape) != 3 or self.dtype.name not in _WRITE_DTYPES:
      raise ValueError(
        f'cannot write {self.shape} {self.dtype}: a stack is (z, y, x) of '
        f'{", ".join(_WRITE_DTYPES)}'
      )
    self._metadata = dict(metadata or {})
    self._overwrite = overwrite
    self._written = 0
    self._undo = contextlib.ExitStack()

  def __enter__(self) -> 'StackWriter':
    given = self._metadata
    kept = {'axes': given.get('axes', 'ZYX')}
    kept |= {k: given[k] for k in ('unit', 'spacing') if k in given}
    big = math.prod(self.shape) * self.dtype.itemsize > _CLASSIC_LIMIT
    imagej = self.dtype.name in IMAGE_DTYPES and not big
    if 'unit' in kept:
      # ImageJ's own way to write the micro sign in ASCII.
      unit = str(kept['unit']).replace('\xb5', '\\u00B5')
      kept['unit'] = unit.encode('ascii', 'backslashreplace').decode()
    if 'info' in given:
      kept['Info' if imagej else 'info'] = given['info']
    tags = {k: given[k] for k in ('resolution', 'resolutionunit') if k in given}
    with self._undo as undo:
      self._file = undo.enter_context(
        _replacing(self.path, ('.tif', '.tiff'), self._overwrite)
      )
      with tiff_checks.refusing(self.path, 'cannot be written'):
        with tifffile.TiffWriter(self._file, bigtiff=big, imagej=imagej) as out:
          written = out.write(
            shape=self.shape,
            dtype=self.dtype,
            photometric='minisblack',
            metadata=kept,
            returnoffset=True,
            **tags,
          )
        assert written is not None  # Thanks to returnoffset.
        self._file.seek(written[0])
      self._undo = undo.pop_all()
    return self

  def write(self, page: np.ndarray) -> None:
    """Appends one slice, `[y, x]` of the stack's dtype."""
    if page.shape != self.shape[1:] or page.dtype != self.dtype:
      raise ValueError(
        f'{self.path} takes slices of {self.shape[1:]} {self.dtype}, got '
        f'{page.shape} {page.dtype}'
      )
    if self._written == self.shape[0]:
      raise ValueError(f'{self.path} already has its {self.shape[0]} slices')
    with tiff_checks.refusing(self.path, 'cannot be written'):
      self._file.write(np.ascontiguousarray(page).data)
    self._written += 1

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    if kind is not None:
      self._undo.__exit__(kind, error, trace)
      return
    with self._undo:
      if self._written != self.shape[0]:
        raise ValueError(
          f'{self.path} got {self._written} of its {self.shape[0]} slices'
        )


def write_stack(
  path: str | os.PathLike,
  array: np.ndarray,
  metadata: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes `array`, `[z, y, x]`, as `StackWriter` does."""
  with StackWriter(path, array.shape, array.dtype, metadata, overwrite) as out:
    for page in array:
      out.write(page)


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes `[y, x]` or `[y, x, 3] uint8`, replacing what is there at once."""
  if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)):
    raise ValueError(f'a PNG takes uint8, got {array.shape} {array.dtype}')
  path = pathlib.Path(path)
  with (
    _replacing(path, ('.png',), overwrite=True) as file,
    tiff_checks.refusing(path, 'cannot be written'),
  ):
    Image.fromarray(np.ascontiguousarray(array)).save(file, format='PNG')


def check_finite(array: np.ndarray, name: str, first: int = 0) -> None:
  """Refuses NaN and infinite pixels in `[z, y, x]` or `[y, x]`; any dtype.

  `first` is the place of `array` in the stack that `name` names.
  """
  if not np.issubdtype(array.dtype, np.floating):
    return
  for z, page in enumerate(array if array.ndim == 3 else array[None], first):
    bad = ~np.isfinite(page)
    if bad.any():
      y, x = np.argwhere(bad)[0]
      raise errors.InputError(
        f'{name} has {bad.sum()} pixels in slice {z + 1} that are not finite, '
        f'the first {page[y, x]} at row {y}, column {x}; replace them (say, by '
        "the slice's mean)"
      )
