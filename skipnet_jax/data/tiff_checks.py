"""Checks a TIFF before memory is allocated for any of its pixels.

Works on the pages of `tiff_stack`; imports no TIFF library itself. The limits:
uncompressed slices lie inside the file; a compressed slice larger than 64 MiB
is at most 1000 times as large as its stored bytes; a strip or tile decodes to
at most twice its size, or to 64 MiB; a page has at most 64 images below it; a
tag holds at most 2**20 numbers or 2**24 characters.
Every breach is an `InputError`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import math
import pathlib
import struct
from typing import Any
import zlib

from skipnet_jax import errors
from skipnet_jax import files

COMPRESSIONS = {1: 'none', 5: 'LZW', 8: 'ZIP', 32946: 'ZIP', 32773: 'PackBits'}
_MOST_TAGS = 4096  # of a page, that are checked
_PRIVATE = 2**15  # the first code of a tag that is not TIFF's own
_TEXTS = (1, 2, 7)  # types of bytes
_MOST_NUMBERS, _LONGEST = 2**20, 2**24
_SUBIFDS, _MOST_LEVELS = 330, 64
_SMALL = 64 * 2**20
_RATIO = 1000
_ZIP_RATIO = 1032  # the most that deflate can expand
GREY = 'convert it to one grey value per pixel (ImageJ: Image > Type > 8-bit)'
_AGAIN = 'copy or export it again'


@contextlib.contextmanager
def refusing(path: pathlib.Path | str, what: str) -> Iterator[None]:
  """Turns whatever a library raises on a bad file into an `InputError`.

  Except for a full disk: the commands treat it alike for all files.
  """
  try:
    yield
  except errors.InputError:
    raise
  except OSError as error:
    if error.errno in files.FULL:
      raise
    reason = error.strerror or error
    raise errors.InputError(f'{path} {what}: {reason}') from error
  except Exception as error:
    reason = str(error).partition('\n')[0][:200] or type(error).__name__
    raise errors.InputError(
      f'{path} {what}: it is damaged or of an unknown kind ({reason}); {_AGAIN}'
    ) from error


def count_pages(path: pathlib.Path, size: int) -> int:
  """Counts the pages; tifffile would silently stop where their chain breaks."""
  with path.open('rb') as file:
    head = file.read(16)
    if head[:4] not in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
      what = f'begins with {head[:4]!r}' if head else 'is empty'
      raise errors.InputError(
        f'{path} is not a TIFF: it {what}; expected a TIFF, a PNG or a folder '
        'of PNG slices'
      )
    order = '<' if head[:1] == b'I' else '>'
    big = b'+' in head[2:4]
    count, entry, pointer = ('Q', 20, 'Q') if big else ('H', 12, 'I')
    tag = f'{order}HHQ8x' if big else f'{order}HHI4x'
    seen: set[int] = set()

    def number(kind: str, at: int) -> int:
      length = struct.calcsize(order + kind)
      if at + length > size:
        raise errors.InputError(
          f'{path} is cut short: page {len(seen) + 1} has its directory at '
          f'byte {at} but the file has {size}; {_AGAIN}'
        )
      file.seek(at)
      return struct.unpack(order + kind, file.read(length))[0]

    offset = number(pointer, 8 if big else 4)
    while offset:
      if offset in seen:
        raise errors.InputError(
          f'{path} is damaged: its page directory runs in a circle; {_AGAIN}'
        )
      tags = number(count, offset)
      after = offset + struct.calcsize(order + count) + tags * entry
      following = number(pointer, after)
      file.seek(offset + struct.calcsize(order + count))
      entries = file.read(min(tags, _MOST_TAGS) * entry)
      for code, kind, values in struct.iter_unpack(tag, entries):
        # Each image below a page is opened, which a page with many would delay.
        if code == _SUBIFDS and values > _MOST_LEVELS:
          raise errors.InputError(
            f'{path}: page {len(seen) + 1} has {values} images below it, at '
            f'most {_MOST_LEVELS} are read; save it as plain TIFF'
          )
        # tifffile needs 40 bytes for each number, and 8 for each character. It
        # ignores what would lie outside the file.
        most = _LONGEST if kind in _TEXTS else _MOST_NUMBERS
        if code < _PRIVATE and most < values <= size:
          raise errors.InputError(
            f'{path}: page {len(seen) + 1} has {values} values in tag {code}, '
            f'at most {most} are read; {_AGAIN}'
          )
      seen.add(offset)
      offset = following
  if not seen:
    raise errors.InputError(f'{path} is a TIFF with zero pages; {_AGAIN}')
  return len(seen)


def check_sides(path: pathlib.Path, page: Any, z: int) -> None:
  """Refuses a page without a valid height, width and strips."""
  sides = page.imagelength, page.imagewidth
  # A damaged tag holds a tuple of numbers, which multiplies into memory.
  numbers = (*sides, page.rowsperstrip, page.tilelength, page.tilewidth)
  if 0 in sides or not all(isinstance(n, int) for n in numbers):
    raise errors.InputError(
      f'{path}, page {z + 1}, has no valid height, width and strips '
      f'{str(numbers)[:60]}; {_AGAIN}'
    )


def _nearest(name: str, dtypes: Sequence[str]) -> Sequence[str]:
  """Of the types that are accepted those to convert one of another name to."""
  alike = [dtype for dtype in dtypes if dtype.rstrip('0123456789') in name]
  return alike if name.startswith('float') else (dtypes[-1], dtypes[0])


def check_page(
  path: pathlib.Path, page: Any, z: int, dtypes: Sequence[str], decodable: bool
) -> None:
  """Refuses colour, foreign and unreadable kinds of pixels.

  `decodable`: whether its compression and predictor have a decoder here.
  """
  where = f'{path}, page {z + 1},'
  check_sides(path, page, z)
  if page.axes != 'YX':
    raise errors.InputError(
      f'{where} has shape {page.shape} ({page.axes}) where (y, x) is needed; '
      f'{GREY}'
    )
  if 262 in page.tags and page.photometric != 1:
    name = getattr(page.photometric, 'name', page.photometric)
    raise errors.InputError(
      f'{where} has photometric interpretation {name} where MINISBLACK is '
      f'needed; {GREY}'
    )
  turned = page.tags.valueof(274, 1)
  if turned not in (0, 1):
    raise errors.InputError(
      f'{where} is to be turned or mirrored when shown (Orientation {turned}), '
      'which most programs do not do; save it again without that tag'
    )
  bits = page.bitspersample
  name = f'{bits}-bit' if page.dtype is None else page.dtype.name
  if page.dtype and name != 'bool' and bits != 8 * page.dtype.itemsize:
    name = f'{bits}-bit'
  if name not in dtypes:
    raise errors.InputError(
      f'{where} has {name} pixels; accepted are {", ".join(dtypes)}; convert '
      f'it to {" or ".join(_nearest(name, dtypes))}'
    )
  if page.compression not in COMPRESSIONS:
    kind = getattr(page.compression, 'name', page.compression)
    raise errors.InputError(
      f'{where} is compressed by {kind}; readable are '
      f'{", ".join(dict.fromkeys(COMPRESSIONS.values()))}; save it as one'
    )
  if not decodable:
    raise errors.InputError(
      f'{where} is compressed by {COMPRESSIONS[page.compression]} with '
      f'predictor {int(page.predictor)}, for which no decoder is installed; '
      'pip install imagecodecs, or save the stack uncompressed'
    )


def check_range(
  path: pathlib.Path, page: Any, start: int, size: int, z: int
) -> None:
  """Refuses a slice whose bytes reach outside the file."""
  end = start + math.prod(page.shape) * page.dtype.itemsize
  if start <= 0 or end > size:
    raise errors.InputError(
      f'{path} is cut short: slice {z + 1} of {page.shape} {page.dtype} needs '
      f'bytes {start} to {end} but the file has {size}; {_AGAIN}'
    )


def check_ratio(path: pathlib.Path, nbytes: int, stored: int) -> None:
  """Refuses pixels that are declared far larger than what is stored of them."""
  if nbytes > max(_SMALL, _RATIO * stored):
    raise errors.InputError(
      f'{path} declares {nbytes} bytes of pixels but stores {stored}, less '
      f'than one in {_RATIO}: it is cut short or damaged; {_AGAIN}'
    )


def check_total(
  path: pathlib.Path, shape: tuple[int, ...], page: Any, size: int
):
  """Refuses a stack that declares more than the file can hold."""
  total = math.prod(shape) * page.bitspersample // 8
  limit = size if page.compression == 1 else max(2**30, _RATIO * size)
  if total > limit:
    raise errors.InputError(
      f'{path} declares {shape} {page.dtype}, {total} bytes, but has {size} '
      f'bytes and so holds at most {limit}: it is cut short or its header is '
      f'wrong; {_AGAIN}'
    )


def check_stored(path: pathlib.Path, page: Any, size: int, z: int) -> None:
  """Refuses a page whose strips or tiles cannot hold its pixels."""
  offsets, counts = page.dataoffsets, page.databytecounts
  if page.is_contiguous:
    check_range(path, page, offsets[0], size, z)
    return
  nbytes = math.prod(page.shape) * page.dtype.itemsize
  chunk = math.prod(page.chunks) * page.dtype.itemsize
  packed = math.prod(page.shape) * page.bitspersample // 8
  stored = sum(counts)
  fault = None
  if not len(offsets) == len(counts) == math.prod(page.chunked):
    fault = (
      f'has {len(offsets)} places and {len(counts)} sizes for '
      f'{math.prod(page.chunked)} strips or tiles'
    )
  elif any(
    a <= 0 or n <= 0 or a + n > size
    for a, n in zip(offsets, counts, strict=True)
  ):
    fault = f'points outside the {size} bytes of the file'
  elif page.compression == 1 and stored < packed:
    fault = f'stores {stored} bytes of {packed}'
  elif nbytes > max(_SMALL, _RATIO * stored):
    fault = f'declares {nbytes} bytes but stores only {stored}'
  elif chunk > max(_SMALL, 4 * nbytes):
    fault = f'declares tiles of {chunk} bytes'
  elif page.compression != 1 and max(counts) > 2 * chunk + 1024:
    fault = f'stores {max(counts)} bytes for a strip or tile of {chunk}'
  if fault:
    raise errors.InputError(
      f'{path} is cut short or damaged: slice {z + 1} of {page.shape} '
      f'{fault}; {_AGAIN}'
    )


def check_bomb(path: pathlib.Path, page: Any, file: Any, z: int) -> None:
  """Refuses a ZIP strip that decodes to more than its limit.

  Needed because a strip is otherwise decompressed whole, whatever its size
  should be. Reads only strips that could reach the limit.
  """
  if COMPRESSIONS[page.compression] != 'ZIP':
    return
  limit = max(_SMALL, 2 * math.prod(page.chunks) * page.dtype.itemsize)
  for at, n in zip(page.dataoffsets, page.databytecounts, strict=True):
    if n * _ZIP_RATIO <= limit:
      continue
    file.seek(at)
    if len(zlib.decompressobj().decompress(file.read(n), limit + 1)) > limit:
      raise errors.InputError(
        f'{path}: slice {z + 1} decompresses to more than {limit} bytes; '
        f'{_AGAIN}'
      )
