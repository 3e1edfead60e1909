"""Which pages of a TIFF are its slices, and what a description says of them."""

import json

from made_stacks import make_pixels
from made_stacks import refuse
import numpy as np
import pytest
import tifffile

from skipnet_jax.data import labels
from skipnet_jax.data import pixel_size
from skipnet_jax.data import volume

IMAGE = make_pixels(shape=(3, 20, 24))


def write_pages(path, *pages, **options):
  """Each page is an array, or options and an array."""
  with tifffile.TiffWriter(path, **options) as out:
    for page in pages:
      own, array = page if isinstance(page, tuple) else ({}, page)
      out.write(array, **{'photometric': 'minisblack', 'metadata': None} | own)
  return path


@pytest.mark.parametrize('below', [IMAGE[0], np.repeat(IMAGE[0], 2, 0)])
@pytest.mark.parametrize('kind', ['plain', 'imagej', 'last'])
def test_an_image_below_a_page_is_not_passed_over(tmp_path, below, kind):
  text = 'ImageJ=1.54f\nimages=3\nslices=3\n' if kind == 'imagej' else None
  has = {'subifds': 1}
  pages = [({'description': text}, IMAGE[0]), *IMAGE[1:]]
  at = -1 if kind == 'last' else 0
  own, array = pages[at] if isinstance(pages[at], tuple) else ({}, pages[at])
  pages[at] = own | has, array
  path = tmp_path / 'a.tif'
  for preview, found in (({}, below), ({'subfiletype': 1}, below[::2, ::2])):
    there = list(pages)
    there.insert(3 if kind == 'last' else 1, (preview, found))
    write_pages(path, *there)
    if preview:
      with volume.open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read_all(), IMAGE)
    else:
      refuse(path, 'image below a page (SubIFDs)')


def test_names_of_pages_that_return_are_channels(tmp_path):
  def named(*names):
    return [
      ({'extratags': [(285, 2, 0, name, True)]}, page)
      for name, page in zip(names, (*IMAGE, *IMAGE), strict=False)
    ]

  path = tmp_path / 'a.tif'
  names = ('DAPI', 'GFP', 'DAPI', 'GFP')
  refuse(write_pages(path, *named(*names)), '2 kinds', 'DAPI, GFP')
  for fine in (
    ('slice 1', 'slice 2', 'slice 3'),
    ('EM', 'EM', 'EM'),
    ('left', 'middle', 'right'),
  ):
    with volume.open_stack(write_pages(path, *named(*fine))) as stack:
      assert len(stack) == 3


def test_a_description_of_a_later_page_is_not_passed_over(tmp_path):
  text = json.dumps({'shape': [2, 20, 24], 'axes': 'CYX'})
  pages = IMAGE[0], ({'description': text}, IMAGE[1]), IMAGE[2]
  refuse(write_pages(tmp_path / 'a.tif', *pages), 'description on page 2')


@pytest.mark.parametrize('stated', ['uint8', 'int8', 'uint16'])
def test_a_type_that_does_not_fit_is_refused(tmp_path, stated):
  path = tmp_path / 'a.ome.tif'
  tifffile.imwrite(path, IMAGE, ome=True, metadata={'axes': 'ZYX'})
  with tifffile.TiffFile(path) as tiff:
    text = tiff.ome_metadata
  tifffile.tiffcomment(path, text.replace('Type="uint8"', f'Type="{stated}"'))
  if stated == 'uint8':
    with volume.open_stack(path) as stack:
      np.testing.assert_array_equal(stack.read_all(), IMAGE)
  else:
    refuse(path, f'pages of uint8, but its OME-XML says {stated}')


def calibrated(path, pixels, **calibration):
  metadata = {'axes': 'ZYX', **calibration}
  tifffile.imwrite(path, pixels, imagej=True, metadata=metadata)
  return path


def test_signed_labels_of_imagej(tmp_path):
  numbers = np.array([[[0, 0, 1], [-1, 7, 300]]], np.int16)
  stored = (numbers.astype(np.int32) + 2**15).astype(np.uint16)
  path = calibrated(tmp_path / 'a.tif', stored, cf=0, c0=-(2**15), c1=1)
  with volume.open_stack(path, dtypes=labels.DTYPES) as stack:
    assert (stack.dtype, stack.on_disk()) == (np.int16, None)
    np.testing.assert_array_equal(stack.read_all(), numbers)
  # A network does not see the offset.
  with volume.open_stack(path) as stack:
    np.testing.assert_array_equal(stack.read_all(), stored)


@pytest.mark.parametrize(
  ('calibration', 'of_image'),
  [
    ({'cf': 0, 'c0': 3, 'c1': 0.5}, True),
    ({'cf': 0, 'c0': 255, 'c1': -1}, False),
    ({'cf': 21, 'c0': 0, 'c1': 0}, False),
  ],
)
def test_other_grey_values_of_imagej(tmp_path, calibration, of_image):
  path = calibrated(tmp_path / 'a.tif', IMAGE, **calibration)
  words = 'calibration of its grey values', str(calibration['c0'])
  refuse(path, *words, dtypes=labels.DTYPES)
  if of_image:
    with volume.open_stack(path) as stack:
      assert 'calibration' not in stack.metadata
  else:
    refuse(path, *words)
  for nothing in ({'cf': 0, 'c0': 0, 'c1': 1}, {'cf': 20}):
    calibrated(path, IMAGE, **nothing)
    with volume.open_stack(path, dtypes=labels.DTYPES) as stack:
      np.testing.assert_array_equal(stack.read_all(), IMAGE)


def test_pages_of_other_pixel_sizes_are_refused(tmp_path):
  text = 'ImageJ=1.54f\nimages=3\nslices=3\nunit=nm\n'
  path = tmp_path / 'a.tif'
  for unit, sizes in (
    (text, (4, 4.001, 8)),
    (text, (4, 4.001, 4)),
    # Without a unit, a resolution is that of a screen.
    (None, (4, 8, 8)),
  ):
    pages = [
      ({'resolution': (1 / nm, 1 / nm), 'resolutionunit': 1}, page)
      for nm, page in zip(sizes, IMAGE, strict=True)
    ]
    pages[0] = pages[0][0] | {'description': unit}, IMAGE[0]
    write_pages(path, *pages)
    if unit and sizes[2] == 8:
      refuse(path, 'page 3 has a resolution of 0.125 x 0.125', 'page 1 of 0.25')
    else:
      with volume.open_stack(path) as stack:
        assert len(stack) == 3


def test_pixels_of_a_tenth_of_a_nanometre_in_metres(tmp_path):
  path = tmp_path / 'a.tif'
  given = {'resolution': (1e10, 5e9), 'resolutionunit': 1, 'unit': 'm'}
  volume.write_stack(path, IMAGE, given | {'spacing': 4e-8})
  with volume.open_stack(path) as stack:
    assert pixel_size.of_metadata(stack.metadata) == pytest.approx((0.2, 0.1))
    assert pixel_size.spacing(stack.metadata) == pytest.approx(40)
  volume.write_stack(path, IMAGE, given | {'unit': 'ell'}, overwrite=True)
  with volume.open_stack(path) as stack:
    assert 'unit' not in stack.metadata
