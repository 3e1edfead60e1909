"""Sound stacks, and broken ones.

For tools/hostile.py; what they hold also for the tests.
"""

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image
import tifffile

SOUND, REFUSED = 0, 2


def with_tag(data: bytes, code: int, value: int, page: int = 0) -> bytes:
  """Sets a tag of a classic little-endian TIFF to one number."""
  data = bytearray(data)
  at = struct.unpack_from('<I', data, 4)[0]
  for _ in range(page):
    count = struct.unpack_from('<H', data, at)[0]
    at = struct.unpack_from('<I', data, at + 2 + 12 * count)[0]
  for entry in range(struct.unpack_from('<H', data, at)[0]):
    place = at + 2 + 12 * entry
    if struct.unpack_from('<H', data, place)[0] == code:
      struct.pack_into('<HII', data, place + 2, 4, 1, value)
      return bytes(data)
  raise ValueError(f'no tag {code}')


def pixels():
  """What every sound input holds, `[10, 64, 64] uint8`."""

  return np.random.default_rng(0).integers(0, 255, (10, 64, 64), np.uint8)


def corpus(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, int]]:
  """Name to (path, exit code) of stacks of 10 slices of 64x64."""
  image, found = pixels(), {}

  def put(name, data, code=REFUSED):
    path = folder / f'{name.replace(" ", "_")}.tif'
    path.write_bytes(data)
    found[name] = path, code

  def write(array, **options):
    path = folder / 'made.tif'
    tifffile.imwrite(path, array, **{'photometric': 'minisblack'} | options)
    data = path.read_bytes()
    path.unlink()
    return data

  plain = write(image, metadata=None)
  put('plain', plain, SOUND)
  put('tiled', write(image, tile=(16, 16)), SOUND)
  put('big-endian', write(image.astype('>u2'), byteorder='>'), SOUND)
  put('BigTIFF', write(image, bigtiff=True), SOUND)
  put('ZIP', write(image, compression='zlib'), SOUND)
  put('empty', b'')
  put('header alone', plain[:8])
  put('cut in the first page', plain[: len(plain) // 30])
  put('cut in the middle', plain[: len(plain) // 2])
  planes = write(image, imagej=True)
  put('last pixel missing', planes[:-1])
  put('text', b'not a TIFF at all\n' * 99)
  put('PNG by another name', b'\x89PNG\r\n\x1a\n' + plain[8:])
  put('directories in a circle', b'II*\0\x08\0\0\0\0\0\x08\0\0\0')
  put('no directory', b'II*\0\0\0\0\0')
  put('directory outside the file', b'II*\0\xff\xff\xff\x7f')
  put('width 2**31-1', with_tag(plain, 256, 2**31 - 1))
  put('height 2**31-1', with_tag(plain, 257, 2**31 - 1))
  put('height 0', with_tag(plain, 257, 0))
  put('width as of negative numbers', with_tag(plain, 256, 2**32 - 64))
  # Uncompressed pixels lie from where the first strip begins.
  put('rows per strip 0', with_tag(plain, 278, 0), SOUND)
  put('strip of no bytes', with_tag(plain, 279, 0), SOUND)
  put('strip offset outside', with_tag(plain, 273, 2**32 - 16))
  put('strip offset zero', with_tag(plain, 273, 0))
  put('third page of another width', with_tag(plain, 256, 32, page=2))
  put('float16', write(image.astype('f2')))
  put('float64', write(image.astype('f8')))
  put('int32', write(image.astype('i4')))
  put('complex', write(image.astype('c8')))
  put('one bit', write(image > 127))
  put('palette', with_tag(plain, 262, 3))
  put('RGB', write(np.stack([image] * 3, -1), photometric='rgb'))
  put(
    'planar RGB',
    write(np.stack([image] * 3, 1), photometric='rgb', planarconfig='separate'),
  )
  put('two channels', write(np.stack([image] * 2, 1), imagej=True))
  for name, code in {'JPEG': 7, 'ZSTD': 50000, 'unknown codec': 12345}.items():
    put(f'compressed by {name}', with_tag(plain, 259, code))
  put('LZW that is none', with_tag(plain, 259, 5))
  bomb = write(
    np.zeros((1, 9000, 9000), 'u1'), compression='zlib', rowsperstrip=9000
  )
  put('ZIP bomb in a small slice', with_tag(with_tag(bomb, 257, 64), 278, 64))
  put(
    'ZIP of a declared 100000 x 100000',
    with_tag(
      with_tag(write(image[:1], compression='zlib'), 256, 10**5), 257, 10**5
    ),
  )
  values = image.astype('f4')
  values[3, 5, 7] = np.nan
  put('NaN in slice 4', write(values))
  values[3, 5, 7] = np.inf
  put('infinite in slice 4', write(values))
  # Folders of slices.
  for name in ('folder of PNG', 'folder with a missing PNG header'):
    path = folder / name.replace(' ', '_')
    path.mkdir()
    for z, page in enumerate(image):
      Image.fromarray(page).save(path / f'{z}.png')
    found[name] = path, SOUND
  (path / '4.png').write_bytes((path / '4.png').read_bytes()[20:])
  found[name] = path, REFUSED
  path = folder / 'bomb_png'
  path.mkdir()
  head = struct.pack('>IIBBBBB', 50_000, 50_000, 8, 0, 0, 0, 0)
  chunk = b'IHDR' + head
  (path / '0.png').write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + struct.pack('>I', len(head))
    + chunk
    + struct.pack('>I', zlib.crc32(chunk))
  )
  found['PNG of a declared 50000 x 50000'] = path, REFUSED
  path = folder / 'empty_folder'
  path.mkdir()
  found['empty folder'] = path, REFUSED
  found['a missing file'] = folder / 'nothing.tif', REFUSED
  return found
