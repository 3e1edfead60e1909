"""Stacks whose pages are slices, or something else: channels, times, masks.

For tools/hostile.py and the tests.
"""

import os
import pathlib

from hostile_inputs import REFUSED
from hostile_inputs import SOUND
from hostile_inputs import pixels
from hostile_inputs import with_tag
import numpy as np
from PIL import Image
import tifffile


def ome_xml(
  inner: str = '<TiffData/>', z: int = 10, c: int = 1, images: int = 1
) -> str:
  """OME-XML of images of 64x64 uint8; `inner` stands in each one's Pixels."""
  pixels = (
    '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="64" '
    f'SizeY="64" SizeZ="{z}" SizeC="{c}" SizeT="1">{inner}</Pixels>'
  )
  return (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    + images * f'<Image ID="Image:0">{pixels}</Image>'
    + '</OME>'
  )


def meanings(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, int]]:
  """Sound files whose pages are the ten slices, or something else.

  Returns:
    As `hostile_inputs.corpus`.
  """
  image, found = pixels(), {}

  def write(name, code, *arrays, **options):
    """One call of the writer for each array."""
    path = folder / f'{name.replace(" ", "_")}.tif'
    common = {'photometric': 'minisblack'} | options
    kind = {k: common.pop(k) for k in ('imagej', 'ome') if k in common}
    big = common.pop('bigtiff', False)
    with tifffile.TiffWriter(path, bigtiff=big, **kind) as writer:
      for array in arrays:
        own, array = array if isinstance(array, tuple) else ({}, array)
        writer.write(array, **common | own)
    found[name] = path, code

  def axes(name, code, letters, *shape, **options):
    planes = np.resize(image, (*shape, 64, 64))
    write(name, code, planes, metadata={'axes': f'{letters}YX'}, **options)

  def described(name, code, text, planes=image, encoding='utf-8', **options):
    """Pages without metadata of their own, the first with a description."""
    plain = {'metadata': None, 'contiguous': False}
    first = plain | {'description': text.encode(encoding)}
    write(
      name,
      code,
      (first, planes[0]),
      *((plain, p) for p in planes[1:]),
      **options,
    )

  # Axes.
  axes('one channel of ten slices', SOUND, 'CZ', 1, 10)
  axes('one time of ten slices', SOUND, 'TZ', 1, 10)
  axes('ten times of one slice', SOUND, 'TZ', 10, 1)
  axes('ten frames of ImageJ', SOUND, 'TZ', 10, 1, imagej=True)
  axes('one slice of three channels', REFUSED, 'ZC', 1, 3)
  axes('three channels of ten slices', REFUSED, 'CZ', 3, 10)
  axes('ten slices of three channels', REFUSED, 'ZC', 10, 3)
  axes('two channels of ImageJ', REFUSED, 'ZC', 10, 2, imagej=True)
  axes('two times of five slices', REFUSED, 'TZ', 2, 5)
  axes('two times of ImageJ', REFUSED, 'TZ', 2, 5, imagej=True)
  axes('ten positions', REFUSED, 'P', 10)
  write('two axes without names', REFUSED, image.reshape(2, 5, 64, 64))
  transposed = np.ascontiguousarray(image.transpose(1, 2, 0))
  write('z is the last axis', REFUSED, transposed, metadata={'axes': 'YXZ'})
  rgba = {'photometric': 'rgb', 'extrasamples': ['unassalpha']}
  write('RGB with alpha', REFUSED, np.stack([image] * 4, -1), **rgba)
  write(
    'one directory for two channels',
    REFUSED,
    image.reshape(5, 2, 64, 64),
    imagej=True,
    truncate=True,
    metadata={'axes': 'ZCYX'},
  )
  write('int8', REFUSED, image.astype('i1'))
  write('pages written one by one', SOUND, *image)
  # Images, previews and masks.
  small = image[:, ::2, ::2]
  write('two images', REFUSED, image, image[:7], metadata={'axes': 'ZYX'})
  zyx = {'metadata': {'axes': 'ZYX'}}
  write('two images of OME', REFUSED, image, image[:7], ome=True, **zyx)
  write('pages of different sizes', REFUSED, *small[:3], *image, metadata=None)
  preview = {'subfiletype': 1}
  write(
    'previews', SOUND, *image, *((preview, p) for p in small), metadata=None
  )
  write('a mask', REFUSED, *image, (preview, image[0]), metadata=None)
  path = found['a mask'][0]
  path.write_bytes(with_tag(path.read_bytes(), 254, 4, page=10))
  write('a projection', REFUSED, *image, (preview, image.max(0)), metadata=None)
  write(
    'a pyramid',
    SOUND,
    ({'subifds': 1}, image),
    (preview, small),
    metadata={'axes': 'ZYX'},
  )
  write(
    'a pyramid of OME',
    SOUND,
    ({'subifds': 1}, image),
    (preview, small),
    ome=True,
    metadata={'axes': 'ZYX'},
  )
  zipped = {'compression': 'zlib', 'rowsperstrip': 5}
  write(
    'every second page compressed',
    SOUND,
    *((zipped if z % 2 else {}, p) for z, p in enumerate(image)),
    metadata=None,
  )
  # Descriptions that say more or less than the pages.
  described(
    'ImageJ with too few slices', REFUSED, 'ImageJ=1.54f\nimages=5\nslices=5\n'
  )
  described(
    'ImageJ with too many slices',
    REFUSED,
    'ImageJ=1.54f\nimages=30\nslices=30\n',
  )
  described(
    'ImageJ with ten images in one directory',
    REFUSED,
    'ImageJ=1.54f\nimages=10\n',
    image[:1],
  )
  described(
    'ImageJ after a space',
    REFUSED,
    ' ImageJ=1.54f\nimages=10\nchannels=2\nslices=5\n',
  )
  described('tifffile with too few slices', REFUSED, '{"shape": [5, 64, 64]}')
  described('OME with too few slices', REFUSED, ome_xml(z=9))
  described('OME with too many slices', REFUSED, ome_xml(z=11))
  described('OME with 10**9 slices', REFUSED, ome_xml(z=10**9))
  # OME-XML in other words.
  described('OME', SOUND, ome_xml())
  described('OME as BigTIFF', SOUND, ome_xml(), bigtiff=True)
  described('OME with two channels', REFUSED, ome_xml(z=5, c=2))

  def prefixed(text):
    for tag in ('OME', 'Image', 'Pixels', 'TiffData'):
      text = text.replace(f'<{tag}', f'<o:{tag}').replace(
        f'</{tag}', f'</o:{tag}'
      )
    return text.replace('xmlns=', 'xmlns:o=')

  described('OME with a prefix', SOUND, prefixed(ome_xml()))
  described('two channels with a prefix', REFUSED, prefixed(ome_xml(z=5, c=2)))
  described(
    'two channels in other quotes', REFUSED, ome_xml(z=5, c=2).replace('"', "'")
  )
  for encoding in ('utf-16', 'utf-16-be'):
    words = ome_xml(z=5, c=2).replace('UTF-8', encoding.upper())
    described(f'two channels in {encoding}', REFUSED, words, encoding=encoding)
  described(
    'two channels of ImageJ in utf-16',
    REFUSED,
    'ImageJ=1.54f\nimages=10\nchannels=2\nslices=5\n',
    encoding='utf-16',
  )
  described('two channels as bytes', REFUSED, ome_xml(z=5, c=2))
  path = found['two channels as bytes'][0]
  # The type of the description: bytes in place of ASCII.
  path.write_bytes(path.read_bytes().replace(b'\x0e\1\2\0', b'\x0e\1\1\0', 1))
  described('a text in utf-16', SOUND, 'ten slices of a fly', encoding='utf-16')
  long = f'<!--{"a" * 3000}--><OME'
  described(
    'two channels after a comment',
    REFUSED,
    ome_xml(z=5, c=2).replace('<OME', long),
  )
  described(
    'two channels before a comment',
    REFUSED,
    ome_xml(z=5, c=2) + '<!-- the end of it -->',
  )
  described(
    'a header of 300 kB',
    SOUND,
    ome_xml('<TiffData/>' + '<Plane TheZ="0" TheC="0" TheT="0"/>' * 8000),
  )
  described('many open tags', REFUSED, '<OME>' + '<Pixels ' * 40_000 + '</OME>')
  entity = '<!DOCTYPE OME [<!ENTITY a "b">]><OME'
  described('an entity', REFUSED, ome_xml().replace('<OME', entity))
  # Which page is which slice.
  backwards = ''.join(
    f'<TiffData FirstZ="{9 - i}" IFD="{i}"/>' for i in range(10)
  )
  described('slices backwards', SOUND, ome_xml(backwards), image[::-1])
  blocks = (
    '<TiffData FirstZ="0" IFD="6" PlaneCount="4"/>'
    '<TiffData FirstZ="4" IFD="0" PlaneCount="6"/>'
  )
  described(
    'slices in two blocks', SOUND, ome_xml(blocks), np.roll(image, 6, 0)
  )
  described(
    'one page for two slices',
    REFUSED,
    ome_xml(backwards.replace('IFD="1"', 'IFD="0"')),
  )
  described(
    'a slice without a page',
    REFUSED,
    ome_xml(backwards.replace('FirstZ="8"', 'FirstZ="9"')),
  )
  uuid = 'urn:uuid:00000000-0000-0000-0000-00000000000'

  def of_file(name, digit):
    return ome_xml(
      f'<TiffData IFD="0" PlaneCount="10"><UUID FileName="{name}">{uuid}{digit}'
      '</UUID></TiffData>'
    ).replace('<OME', f'<OME UUID="{uuid}1"')

  described('OME that was renamed', SOUND, of_file('before.ome.tif', 1))
  described('one file of several', REFUSED, of_file('another.ome.tif', 2))
  binary = f'<OME><BinaryOnly MetadataFile="a.ome.xml" UUID="{uuid}1"/></OME>'
  described('OME described elsewhere', REFUSED, binary)
  # Formats whose pages are no slices.
  for name, tag in {
    'STK': (33628, '2I', 1, (3, 1), True),
    'Micro-Manager': (51123, 's', 0, '{}', True),
  }.items():
    write(name, REFUSED, image, metadata=None, extratags=[tag])
  for name, software in {
    'ScanImage': 'SI.2020',
    'QPTIFF': 'PerkinElmer-QPI',
  }.items():
    write(name, REFUSED, image, metadata=None, software=software)
  described('SVS', REFUSED, 'Aperio Image Library')
  # Folders.
  rising = [f'z{z:g}' for z in (-1.5, -1, -0.25, 0, 0.25, 0.5, 1, 2, 10, 11)]
  for name, names in {
    'heights': rising,
    'numbers after hyphens': [f's-{z}' for z in range(1, 11)],
    'numbers after points': [f's1.{z}' for z in range(1, 11)],
    'heights with a comma': [
      f'z{z / 2:g}'.replace('.', ',') for z in range(10)
    ],
    'ten times by name': [f't{t}_z1' for t in range(1, 11)],
    'two channels by name': [f'z{z}_c{c}' for z in range(5) for c in (0, 1)],
    'two times by name': [f't{t}_z{z}' for t in (1, 2) for z in range(5)],
    'masks beside slices': [
      f'em_{z}{end}' for z in range(5) for end in ('', '_mask')
    ],
    'two colours by name': [
      f'{z}_{name}' for z in range(5) for name in ('DAPI', 'GFP')
    ],
  }.items():
    path = folder / name.replace(' ', '_')
    path.mkdir()
    for stem, page in zip(names, image, strict=True):
      Image.fromarray(page).save(path / f'{stem}.png')
    two = name.startswith(('two', 'masks'))
    found[name] = path, REFUSED if two else SOUND
  for name in (
    *('one number twice', 'an animation', 'a pipe among slices'),
    *('JPEG among PNG', 'one bit among eight', 'a slice of another size'),
  ):
    path = folder / name.replace(' ', '_')
    path.mkdir()
    pages = [Image.fromarray(page) for page in image]
    pages[0].save(path / '1.png')
    if name == 'one number twice':
      pages[1].save(path / '01.png')
    elif name == 'an animation':
      pages[0].save(path / '1.png', save_all=True, append_images=pages[1:])
    elif name == 'JPEG among PNG':
      pages[1].save(path / '2.jpg')
    elif name == 'one bit among eight':
      pages[1].convert('1').save(path / '2.png')
    elif name == 'a slice of another size':
      pages[1].crop((0, 0, 64, 63)).save(path / '2.png')
    else:
      os.mkfifo(path / '2.png')
    found[name] = path, REFUSED
  os.mkfifo(folder / 'pipe.tif')
  found['a pipe'] = folder / 'pipe.tif', REFUSED
  return found
