"""The interface of an open stack, and its form for a folder of slices."""

import abc
from collections.abc import Callable, Iterator, Sequence
import os
import pathlib
import re
from typing import Any
import warnings

import numpy as np
from PIL import Image

from skipnet_jax import errors
from skipnet_jax.data import tiff_checks

# Pillow's names of one-channel pixels; older ones call 16-bit PNG 'I'.
_PNG_DTYPES = {'L': 'uint8', 'I;16': 'uint16', 'I;16B': 'uint16', 'I': 'uint16'}
_KINDS = {'.png': 'PNG', '.tif': 'TIFF', '.tiff': 'TIFF'}


class StackReader(abc.ABC):
  """An open stack that decodes one slice at a time, in one thread at a time.

  Attributes:
    path: where it lies.
    shape: (z, y, x).
    dtype: NumPy type of the pixels, native byte order.
    metadata: what `StackWriter` takes: `axes` ('ZYX' or 'TYX'), `resolution`
      (pixels per unit in x and y), `resolutionunit` (TIFF's: 1 none, 2 inch,
      3 cm), `unit`, `spacing` (between slices), `info` (ImageJ's text). A key
      is absent where the file says nothing.
  """

  path: pathlib.Path
  shape: tuple[int, int, int]
  dtype: np.dtype
  metadata: dict[str, Any]

  def read(self, z: int) -> np.ndarray:
    """Slice `z` as `[y, x]`; `InputError` where it cannot be decoded."""
    if not 0 <= z < len(self):
      raise IndexError(f'slice {z} of {len(self)}')
    return self._read(z)

  @abc.abstractmethod
  def _read(self, z: int) -> np.ndarray:
    """Decodes slice z, which exists."""

  def read_all(self) -> np.ndarray:
    """The whole stack as `[z, y, x]`."""
    with tiff_checks.refusing(
      self.path, f'{self.shape} does not fit in memory'
    ):
      stack = np.empty(self.shape, self.dtype)
    for z, page in enumerate(self):
      stack[z] = page
    return stack

  def memmap(self) -> np.memmap | None:
    """Read-only `[z, y, x]` over the file, or None where it needs decoding."""
    return None

  def close(self) -> None:  # noqa: B027  A folder has nothing to close.
    """Closes the file."""

  def __len__(self) -> int:
    return self.shape[0]

  def __iter__(self) -> Iterator[np.ndarray]:
    return (self.read(z) for z in range(len(self)))

  def __enter__(self) -> 'StackReader':
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()


class FolderStack(StackReader):
  """A folder of PNG slices, or of TIFFs that `open_tiff` reads."""

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Sequence[str],
    open_tiff: Callable[[pathlib.Path, Sequence[str]], StackReader],
  ):
    self.path = path
    self._dtypes, self._open_tiff = tuple(dtypes), open_tiff
    names = [n for n in os.listdir(path) if not n.startswith('.')]
    kinds = {n: _KINDS.get(pathlib.Path(n).suffix.lower()) for n in names}
    self._names = sorted((n for n in names if kinds[n]), key=_natural)
    if len({kinds[n] for n in self._names}) != 1:
      what = 'both PNG and TIFF' if self._names else 'no PNG or TIFF'
      raise errors.InputError(
        f'the folder {path} holds {what} files; expected the slices of one '
        'stack, all PNG or all one-page TIFF'
      )
    first, self.metadata, _ = self._open(0)
    for z, name in enumerate(self._names):
      other = self._open(z)[0]
      if other != first:
        raise errors.InputError(
          f'{path}: {name} is {other}, {self._names[0]} is {first}; the '
          'slices of one stack must have one shape and type'
        )
    self.shape, self.dtype = (len(self._names), *first[0]), first[1]

  def _read(self, z: int) -> np.ndarray:
    found, _, page = self._open(z, pixels=True)
    if found != (self.shape[1:], self.dtype):
      raise errors.InputError(f'{self.path}: {self._names[z]} was just changed')
    return page

  def _open(self, z: int, pixels: bool = False) -> tuple[Any, ...]:
    """-> (shape (y, x), dtype), metadata, pixels or None."""
    path = self.path / self._names[z]
    if path.suffix.lower() == '.png':
      with tiff_checks.refusing(path, 'is no readable PNG'):
        return _open_png(path, self._dtypes, pixels)
    with self._open_tiff(path, self._dtypes) as stack:
      if len(stack) != 1:
        raise errors.InputError(
          f'{path} has {len(stack)} pages where a folder has one per file; '
          'give the path of that file instead of its folder'
        )
      page = stack.read(0) if pixels else None
      return (stack.shape[1:], stack.dtype), stack.metadata, page


def _open_png(
  path: pathlib.Path, dtypes: Sequence[str], pixels: bool
) -> tuple[Any, ...]:
  with warnings.catch_warnings():
    # Large slices are expected; twice as large, Pillow itself refuses.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    image = Image.open(path, formats=['PNG'])
  with image:
    dtype = _PNG_DTYPES.get(image.mode)
    if dtype not in dtypes:
      raise errors.InputError(
        f'{path} has {dtype or "mode " + image.mode} pixels; accepted are '
        f'{", ".join(dtypes)}; {tiff_checks.GREY}'
      )
    shape = image.size[::-1]
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    tiff_checks.check_ratio(path, nbytes, path.stat().st_size)
    page = np.array(image).astype(dtype, copy=False) if pixels else None
  return (shape, np.dtype(dtype)), {'axes': 'ZYX'}, page


def _natural(name: str) -> list[str | int]:
  parts = re.split(r'(\d+)', name.lower())
  return [int(p) if i % 2 else p for i, p in enumerate(parts)]
