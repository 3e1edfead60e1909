"""PNG as a stack: one, or a folder of slices in their order."""

from collections.abc import Callable, Sequence
import math
import os
import pathlib
from typing import Any
import warnings

import numpy as np
from PIL import Image

from skipnet_jax import errors
from skipnet_jax.data import pixel_size
from skipnet_jax.data import slice_names
from skipnet_jax.data import stack_reader
from skipnet_jax.data import tiff_checks

# Pillow's names of one-channel pixels; older ones call 16-bit PNG 'I'.
_PNG_DTYPES = {
  '1': 'bool',
  'L': 'uint8',
  'I;16': 'uint16',
  'I;16B': 'uint16',
  'I': 'uint16',
}
_KINDS = {
  **{'.png': 'PNG', '.tif': 'TIFF', '.tiff': 'TIFF'},
  # These are not read, but would be slices that are missing.
  **{'.jpg': 'JPEG', '.jpeg': 'JPEG', '.bmp': 'BMP', '.gif': 'GIF'},
  **{'.jp2': 'JPEG 2000', '.webp': 'WebP', '.mrc': 'MRC', '.btf': 'BigTIFF'},
  **{'.pgm': 'PGM', '.dm3': 'DM3', '.dm4': 'DM4', '.czi': 'CZI'},
}
_ORIENTATION = 0x0112  # In Exif; 1: as it is.


class FolderStack(stack_reader.StackReader):
  """A folder of PNG slices, or of TIFFs that `open_tiff` reads."""

  path: pathlib.Path

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Sequence[str],
    open_tiff: Callable[[pathlib.Path], stack_reader.StackReader],
    choice: stack_reader.Choice,
  ):
    self.path = path
    self._dtypes, self._open_tiff = tuple(dtypes), open_tiff
    names = [n for n in os.listdir(path) if not n.startswith('.')]
    kinds = {n: _KINDS.get(pathlib.Path(n).suffix.lower()) for n in names}
    found = {kind for kind in kinds.values() if kind}
    if found not in ({'PNG'}, {'TIFF'}):
      what = ' and '.join(sorted(found)) or 'no PNG or TIFF'
      raise errors.InputError(
        f'the folder {path} holds {what} files; expected the slices of one '
        'stack, all PNG or all one-page TIFF'
      )
    if found == {'PNG'}:
      _check_choice(path, choice)
    self.names = slice_names.in_order(path, [n for n in names if kinds[n]])
    slice_names.check_others(
      path, self.names, [n for n in names if not kinds[n]]
    )
    self.note = slice_names.gaps_between(path, self.names)
    self._stamps = []
    for name in self.names:
      if not (path / name).is_file():
        raise errors.InputError(
          f'{path / name} is no file but a folder, a pipe or a device; leave '
          'only the slices in their folder'
        )
      self._stamps.append(stack_reader.stamp(path / name))
    first, self.metadata, _ = self._open(0)
    size, sized = pixel_size.of_metadata(self.metadata), self.names[0]
    for z, name in enumerate(self.names):
      other, metadata, _ = self._open(z)
      if other != first:
        raise errors.InputError(
          f'{path}: {name} is {other[0]} {other[1]}, {self.names[0]} is '
          f'{first[0]} {first[1]}; the slices of one stack must have one shape '
          'and type'
        )
      own = pixel_size.of_metadata(metadata)
      if size and own and not np.allclose(own, size, rtol=1e-3):
        raise errors.InputError(
          f'{path}: {name} has pixels of {own[1]:g} x {own[0]:g} nm, '
          f'{sized} of {size[1]:g} x {size[0]:g} nm; the slices of one '
          'stack must have one pixel size'
        )
      if own and not size:
        self.metadata, size, sized = metadata, own, name
    self.shape, self.dtype = (len(self.names), *first[0]), first[1]

  def _read(self, z: int) -> np.ndarray:
    with stack_reader.unchanged(self.path / self.names[z], self._stamps[z]):
      return self._open(z, pixels=True)[2]

  def _open(self, z: int, pixels: bool = False) -> tuple[Any, ...]:
    """-> (shape (y, x), dtype), metadata, pixels or None."""
    path = self.path / self.names[z]
    if path.suffix.lower() == '.png':
      with tiff_checks.refusing(path, 'is no readable PNG'):
        return _open_png(path, self._dtypes, pixels)
    with self._open_tiff(path) as stack:
      if len(stack) != 1:
        raise errors.InputError(
          f'{path} has {len(stack)} slices where a folder has one per file; '
          'give the path of that file instead of its folder'
        )
      page = stack.read(0) if pixels else None
      return (stack.shape[1:], stack.dtype), stack.metadata, page


class PngFile(stack_reader.StackReader):
  """A PNG as a stack of one slice."""

  path: pathlib.Path

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Sequence[str],
    choice: stack_reader.Choice,
  ):
    self.path, self._dtypes = path, tuple(dtypes)
    _check_choice(path, choice)
    self._stamp = stack_reader.stamp(path)
    (shape, self.dtype), self.metadata, _ = self._open(pixels=False)
    self.shape = (1, *shape)

  def _read(self, z: int) -> np.ndarray:
    with stack_reader.unchanged(self.path, self._stamp):
      return self._open(pixels=True)[2]

  def _open(self, *, pixels: bool) -> tuple[Any, ...]:
    with tiff_checks.refusing(self.path, 'is no readable PNG'):
      return _open_png(self.path, self._dtypes, pixels)


def _check_choice(path: pathlib.Path, choice: stack_reader.Choice) -> None:
  choice.pick('series', 1, 'one image', path)
  choice.pick('channel', 1, 'one channel', path)


def _open_png(
  path: pathlib.Path, dtypes: Sequence[str], pixels: bool
) -> tuple[Any, ...]:
  with warnings.catch_warnings():
    # Large slices are expected; twice as large, Pillow itself refuses.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    try:
      image = Image.open(path, formats=['PNG'])
    except Image.DecompressionBombError as e:
      raise errors.InputError(
        f'{path} is larger than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels '
        'that are read of a PNG; save it as TIFF'
      ) from e
  with image:
    dtype = _PNG_DTYPES.get(image.mode)
    if dtype not in dtypes:
      raise errors.InputError(
        f'{path} has {dtype or "mode " + image.mode} pixels; accepted are '
        f'{", ".join(dtypes)}; {tiff_checks.GREY}'
      )
    turned = image.getexif().get(_ORIENTATION, 1)
    if turned != 1:
      raise errors.InputError(
        f'{path} says that it is to be shown turned or mirrored (Orientation '
        f'{turned}); save it as it is to be read'
      )
    frames = getattr(image, 'n_frames', 1)
    if frames > 1:
      raise errors.InputError(
        f'{path} is an animation of {frames} images; save each as a file of '
        'its own'
      )
    shape = image.size[::-1]
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    tiff_checks.check_ratio(path, nbytes, path.stat().st_size)
    page = np.array(image).astype(dtype, copy=False) if pixels else None
  return (shape, np.dtype(dtype)), {'axes': 'ZYX'}, page


def check_same_slices(
  first: stack_reader.StackReader, second: stack_reader.StackReader
) -> None:
  """Refuses two stacks whose slices are not the same ones.

  Pixel sizes and distances between slices, if both say one, must be equal, and
  of volumes the origins to half a pixel. Of two folders, compared are also the
  numbers in the names that are not the same in all of a folder, so that
  em_z07.png goes with label_7.png, and of single slices all numbers; else the
  names without their ending, where the folders have some in common. Other
  names, and TIFF stacks, say nothing.
  """
  _check_same_place(first, second)
  names = first.names, second.names
  if not all(names):
    return
  keys = [slice_names.varying(n) for n in names]
  if not all(keys) or len(keys[0][0]) != len(keys[1][0]):
    keys = [[pathlib.Path(n).stem for n in each] for each in names]
    if not set(keys[0]) & set(keys[1]):
      return
  for z, (a, b) in enumerate(zip(*keys, strict=False)):
    if a != b:
      raise errors.InputError(
        f'slice {z + 1} is {names[0][z]} in {first.path} but {names[1][z]} in '
        f'{second.path}; give the slices that belong together the same numbers'
      )


def _check_same_place(
  first: stack_reader.StackReader, second: stack_reader.StackReader
) -> None:
  both = first, second
  one, other = (pixel_size.of_metadata(stack.metadata) for stack in both)
  if one and other and not np.allclose(one, other, rtol=0.02):
    raise errors.InputError(
      f'{first.path} has pixels of {one[0]:g} x {one[1]:g} nm, but '
      f'{second.path} of {other[0]:g} x {other[1]:g} nm; give stacks of the '
      'same pixels, or correct what one of them says'
    )
  gaps = [pixel_size.spacing(stack.metadata) for stack in both]
  if all(gaps) and not math.isclose(*gaps, rel_tol=0.02):
    raise errors.InputError(
      f'{first.path} has slices {gaps[0]:g} nm apart, but {second.path} '
      f'{gaps[1]:g} nm; give stacks of the same slices, or correct what one of '
      'them says'
    )
  here, there = (stack.metadata.get('origin') for stack in both)
  units = [str(stack.metadata.get('unit', '')) for stack in both]
  lengths = [pixel_size.metres(unit) for unit in units]
  if not (here and there) or (units[0] != units[1] and not all(lengths)):
    return
  own, factor = first.metadata, lengths[1] / lengths[0] if all(lengths) else 1
  x, y = (1 / n for n in own['resolution'])
  moved = np.abs(np.subtract(here, np.multiply(there, factor)))
  if np.any(moved > np.multiply(0.5, (own.get('spacing', x), y, x))):
    raise errors.InputError(
      f'{first.path} begins at {_place(here, units[0])}, but {second.path} at '
      f'{_place(there, units[1])} (z, y, x); give stacks of the same place'
    )


def _place(origin: Sequence[float], unit: str) -> str:
  return f'({", ".join(f"{n:g}" for n in origin)}) {unit}'.strip()
