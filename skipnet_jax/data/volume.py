"""Reads and writes stacks of slices: TIFF, PNG, folders; reads OME-Zarr.

Nothing here depends on JAX. What a file declares is checked when it is opened
(`tiff_checks`, `tiff_images`, `tiff_stack`), before any pixel is allocated.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import math
import os
import pathlib
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
import tifffile

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import ome_zarr
from skipnet_jax.data import pixel_size
from skipnet_jax.data import stack_folder
from skipnet_jax.data import stack_reader
from skipnet_jax.data import tiff_checks
from skipnet_jax.data import tiff_stack

IMAGE_DTYPES = ('uint8', 'uint16', 'float32')
_WRITE_DTYPES = (*IMAGE_DTYPES, 'uint32')
_FRACTIONS = 2.0**-31, 2.0**31  # between which TIFF keeps pixels per unit
_CLASSIC_LIMIT = 2**32 - 2**25  # bytes of pixels, leaving room for directories

StackReader = stack_reader.StackReader
Choice = stack_reader.Choice
check_same_slices = stack_folder.check_same_slices
# `[z, y, x]` in memory or on the disk.
Stack = np.ndarray | stack_reader.SlicesOnDisk

# What tifffile logs about a broken file, the InputError says.
logging.getLogger('tifffile').addHandler(logging.NullHandler())
logging.getLogger('tifffile').propagate = False


def open_stack(
  path: str | os.PathLike,
  *,
  dtypes: Sequence[str] = IMAGE_DTYPES,
  choice: Choice = Choice(),  # noqa: B008
) -> StackReader:
  """Opens a TIFF, a PNG, a folder of PNG or one-page TIFF slices, or OME-Zarr.

  OME-Zarr, N5 and Neuroglancer's volumes may lie at a URL. A folder's slices
  are taken in the order of the numbers in their names: slice_2 before slice_10,
  z-1 before z0.25. Pixels of one bit are bool.

  Args:
    path: the file or the folder, or the URL of a volume.
    dtypes: types of pixels that are accepted.
    choice: which image, channel, level and time, where there are several.

  Raises:
    InputError: missing, empty or cut short; not a TIFF; colour, complex or any
      pixel type outside `dtypes`; slices of unequal shape; dimensions that the
      file cannot hold; compression without a decoder; several images, channels
      or time points and none chosen; a description that does not fit the pages;
      a volume without multiscale metadata, or that cannot be reached.
  """
  if ome_zarr.is_one(path):
    return ome_zarr.ChunkedStack(path, dtypes, choice)
  path = pathlib.Path(path)
  if choice.level or choice.time:
    raise errors.InputError(
      f'{path} has neither levels nor times to choose from: leave out --level '
      'and --time.'
    )
  with tiff_checks.refusing(path, 'cannot be opened'):
    if path.is_dir():
      return stack_folder.FolderStack(
        path, dtypes, lambda p: tiff_stack.TiffStack(p, dtypes, choice), choice
      )
    if not path.is_file():
      what = 'a pipe or a device is' if path.exists() else 'there is no stack'
      raise errors.InputError(
        f'{what} at {path}; expected a TIFF, a PNG or a folder of PNG slices'
      )
    if path.suffix.lower() == '.png':
      return stack_folder.PngFile(path, dtypes, choice)
    return tiff_stack.TiffStack(path, dtypes, choice)


@contextlib.contextmanager
def replacing(
  path: pathlib.Path, suffixes: tuple[str, ...], overwrite: bool
) -> Iterator[BinaryIO]:
  """`files.replacing`, with an `InputError` for what the system refuses.

  Args:
    path: of the file.
    suffixes: one of which its name must end in.
    overwrite: whether it may exist.
  """
  if path.suffix.lower() not in suffixes:
    raise errors.InputError(
      f'cannot write {path}: its name must end in {" or ".join(suffixes)}'
    )
  with contextlib.ExitStack() as undo:
    with tiff_checks.refusing(path, 'cannot be written'):
      if not path.parent.is_dir():
        raise errors.InputError(
          f'cannot write {path}: the folder {path.parent} does not exist; make '
          'it'
        )
      files.check_outputs([path], overwrite=overwrite)
      file = undo.enter_context(files.replacing(path))
    yield file
    with tiff_checks.refusing(path, 'cannot be written'):
      undo.close()


def _in_fractions(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Metadata that TIFF can keep: 0.1 nm in metres become nanometres."""
  found = dict(metadata)
  least, most = _FRACTIONS
  if all(least <= n <= most for n in found.get('resolution', ())):
    return found
  nanometres = pixel_size.metres(str(found.get('unit', ''))) / 1e-9
  x, y = found.pop('resolution')
  for key in ('unit', 'resolutionunit'):
    found.pop(key, None)
  spacing = found.pop('spacing', 0.0)
  if nanometres:
    found |= {'unit': 'nm', 'resolutionunit': 1}
    found['resolution'] = x / nanometres, y / nanometres
    found |= {'spacing': spacing * nanometres} if spacing else {}
  return found


class _Widened(Exception):
  """Leaves the block of a file that is given up for a wider one."""


class StackWriter:
  """Writes a TIFF stack slice by slice, within a `with` block.

  The file is written whole, see `files.replacing`. ImageJ's own format up to
  4 GiB, except for uint32, which ImageJ has not; BigTIFF above.

  Args:
    path: ends in .tif or .tiff.
    shape: (z, y, x), or (z, y, x, 3) of the colours red, green and blue.
    dtype: float32, uint8, uint16 or uint32; uint8 of colours.
    metadata: as in `StackReader.metadata`; other keys are left out.
    overwrite: whether an existing file may be replaced.

  Raises:
    InputError: the path exists, or cannot be written, or has another ending.
    OSError: the disk is full.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    shape: tuple[int, ...],
    dtype: Any,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
  ):
    self.path = pathlib.Path(path)
    self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
    if self.shape[2] == 1:
      # Readers take an axis of length 1 at the end for the colours.
      raise errors.InputError(
        f'cannot write {path}: its slices would be one pixel wide, which TIFF '
        'readers misunderstand; give wider slices'
      )
    colours = self.shape[3:] == (3,) and self.dtype == np.uint8
    grey = len(self.shape) == 3 and self.dtype.name in _WRITE_DTYPES
    if not colours and not grey:
      raise ValueError(
        f'cannot write {self.shape} {self.dtype}: a stack is (z, y, x) of '
        f'{", ".join(_WRITE_DTYPES)}, or (z, y, x, 3) of uint8'
      )
    self._metadata = _in_fractions(metadata or {})
    self._overwrite = overwrite
    self._written = 0
    self._undo = contextlib.ExitStack()

  def __enter__(self) -> 'StackWriter':
    self._begin()
    return self

  def _begin(self) -> None:
    given = self._metadata
    colours = len(self.shape) == 4
    kept = {'axes': given.get('axes', 'ZYX') + 'S' * colours}
    kept |= {k: given[k] for k in ('unit', 'spacing') if k in given}
    big = math.prod(self.shape) * self.dtype.itemsize > _CLASSIC_LIMIT
    imagej = self.dtype.name in IMAGE_DTYPES and not big
    if 'unit' in kept:
      unit = str(kept['unit'])
      if not unit.isascii():
        # One of several characters for it; ImageJ's own way to write it.
        unit = pixel_size.short(unit).replace('\xb5', '\\u00B5')
        unit = unit.replace('\xc5', 'angstrom')
      kept['unit'] = unit.encode('ascii', 'backslashreplace').decode()
    if 'info' in given:
      kept['Info' if imagej else 'info'] = given['info']
    tags = {k: given[k] for k in ('resolution', 'resolutionunit') if k in given}
    with contextlib.ExitStack() as undo:
      self._file = undo.enter_context(
        replacing(self.path, ('.tif', '.tiff'), self._overwrite)
      )
      with tiff_checks.refusing(self.path, 'cannot be written'):
        with tifffile.TiffWriter(self._file, bigtiff=big, imagej=imagej) as out:
          written = out.write(
            shape=self.shape,
            dtype=self.dtype,
            photometric='rgb' if colours else 'minisblack',
            metadata=kept,
            returnoffset=True,
            **tags,
          )
        assert written is not None  # Thanks to returnoffset.
        self._first = written[0]
        self._file.seek(self._first)
      self._undo = undo.pop_all()

  def write(self, page: np.ndarray) -> None:
    """Appends one slice, `[y, x]` or `[y, x, 3]` of the stack's dtype."""
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

  def widen(self) -> None:
    """Goes on in uint32 where it was uint16, with the slices written so far."""
    if self.dtype == np.uint32:
      return
    narrow, first, stored = self._file, self._first, self.dtype
    count = math.prod(self.shape[1:])
    # Removes the narrow file at the end.
    with contextlib.suppress(_Widened), self._undo:
      self.dtype = np.dtype(np.uint32)
      self._begin()
      narrow.seek(first)
      with tiff_checks.refusing(self.path, 'cannot be written'):
        for _ in range(self._written):
          page = np.frombuffer(narrow.read(count * stored.itemsize), stored)
          self._file.write(page.astype(self.dtype).data)
      raise _Widened

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    # Where a file appeared under another output's name, this one is kept.
    done = self._written == self.shape[0]
    if kind is not None and not (
      done and issubclass(kind, files.AppearedError)
    ):
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


class PngWriter:
  """Writes one picture as `StackWriter` does; its path ends in .png."""

  def __init__(self, path: str | os.PathLike, overwrite: bool = False):
    self.path = pathlib.Path(path)
    self._replacing = replacing(self.path, ('.png',), overwrite)

  def __enter__(self) -> 'PngWriter':
    self._file = self._replacing.__enter__()
    return self

  def write(self, page: np.ndarray) -> None:
    """Writes the picture, `[y, x]` or `[y, x, 3]` uint8."""
    with tiff_checks.refusing(self.path, 'cannot be written'):
      Image.fromarray(np.ascontiguousarray(page)).save(self._file, format='PNG')

  def __exit__(self, *exc_info: Any) -> None:
    self._replacing.__exit__(*exc_info)


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes `[y, x]` or `[y, x, 3] uint8`, replacing what is there at once."""
  if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)):
    raise ValueError(f'a PNG takes uint8, got {array.shape} {array.dtype}')
  with PngWriter(path, overwrite=True) as writer:
    writer.write(array)


def check_finite(
  array: np.ndarray, name: str, first: int = 0, top: int = 0, left: int = 0
) -> None:
  """Refuses NaN and infinite pixels in `[z, y, x]` or `[y, x]`; any dtype.

  `first`, `top` and `left` are the slice, the row and the column at which
  `array` begins in the stack that `name` names.
  """
  if not np.issubdtype(array.dtype, np.floating):
    return
  for z, page in enumerate(array if array.ndim == 3 else array[None], first):
    bad = ~np.isfinite(page)
    if bad.any():
      y, x = np.argwhere(bad)[0]
      raise errors.InputError(
        f'{name} has {bad.sum()} pixels in slice {z + 1} that are not finite, '
        f'the first {page[y, x]} at row {top + y}, column {left + x} (counted '
        "from 0); replace them (say, by the slice's mean)"
      )
