"""What files of tifffile, ImageJ and OME-XML say of their pixels."""

import numpy as np
import pytest
import tifffile

from skipnet_jax.data import pixel_size
from skipnet_jax.data import volume


def size_in(path, **options):
  options = {'photometric': 'minisblack'} | options
  tifffile.imwrite(path, np.zeros((2, 8, 9), np.uint8), **options)
  with volume.open_stack(path) as stack:
    return pixel_size.of_metadata(stack.metadata)


@pytest.mark.parametrize(
  ('x', 'y', 'unit', 'expected'),
  [
    (4.6, 4.6, 'nm', (4.6, 4.6)),
    (0.0046, 0.0092, 'µm', (9.2, 4.6)),
    (46.0, 46.0, 'Å', (4.6, 4.6)),
    (46.0, 46.0, '\u212b', (4.6, 4.6)),
    (0.0046, 0.0046, '\u03bcm', (4.6, 4.6)),
    (1.0, 1.0, 'm', None),
    (1.0, 1.0, 'pixel', None),
  ],
)
def test_ome(tmp_path, x, y, unit, expected):
  found = size_in(
    tmp_path / 'a.ome.tif',
    ome=True,
    metadata={
      'axes': 'ZYX',
      'PhysicalSizeX': x,
      'PhysicalSizeXUnit': unit,
      'PhysicalSizeY': y,
      'PhysicalSizeYUnit': unit,
    },
  )
  assert found == (pytest.approx(expected) if expected else None)


@pytest.mark.parametrize(
  ('unit', 'per_unit', 'expected'),
  [
    ('nm', 0.25, 4),
    ('micron', 250, 4),
    ('\\u00B5m', 250, 4),
    ('um', 100, 10),
    ('Nanometers', 0.25, 4),
    ('\\u00c5', 0.025, 4),
    ('Angstrom', 0.025, 4),
    # What ImageJ makes of a scanner's 72 dots an inch, and of 28 a centimetre.
    ('inch', 72, None),
    ('cm', 28, None),
    ('pixel', 1, None),
    ('', 1, None),
  ],
)
def test_imagej(tmp_path, unit, per_unit, expected):
  found = size_in(
    tmp_path / 'a.tif',
    imagej=True,
    resolution=(per_unit, per_unit),
    metadata={'axes': 'ZYX', 'unit': unit},
  )
  assert found == (pytest.approx((expected, expected)) if expected else None)


def test_tags_of_a_printer_are_not_believed(tmp_path):
  # 6.35e6 dots an inch would be 4 nm.
  for resolution, unit in ((300, 2), (118, 3), (6.35e6, 2), (2.5e6, 3)):
    found = size_in(
      tmp_path / 'a.tif', resolution=(resolution,) * 2, resolutionunit=unit
    )
    assert found is None


def test_sizes_are_kept_by_what_is_written(tmp_path):
  given = {'resolution': (0.25, 0.2), 'resolutionunit': 1, 'unit': 'nm'}
  for dtype in ('float32', 'uint32'):
    pixels = np.zeros((2, 8, 9), dtype)
    volume.write_stack(tmp_path / f'{dtype}.tif', pixels, given)
    with volume.open_stack(
      tmp_path / f'{dtype}.tif', dtypes=[dtype]
    ) as written:
      found = pixel_size.of_metadata(written.metadata)
    assert found == pytest.approx((5, 4))


@pytest.mark.parametrize('dtype', ['float32', 'uint32'])
@pytest.mark.parametrize(
  ('unit', 'per_unit'), [('Å', 0.025), ('\u03bcm', 250.0), ('µm', 250.0)]
)
def test_units_outside_of_ascii_are_kept_too(tmp_path, dtype, unit, per_unit):
  given = {'resolution': (per_unit,) * 2, 'resolutionunit': 1, 'unit': unit}
  pixels = np.zeros((2, 8, 9), dtype)
  volume.write_stack(tmp_path / 'a.tif', pixels, given)
  with volume.open_stack(tmp_path / 'a.tif', dtypes=[dtype]) as written:
    found = pixel_size.of_metadata(written.metadata)
  assert found == pytest.approx((4, 4))


def test_units_of_imagej_that_differ_by_axis(tmp_path):
  with_y = {'axes': 'ZYX', 'unit': 'nm', 'yunit': 'um'}
  options = {'imagej': True, 'resolution': (0.25, 200.0)}
  found = size_in(tmp_path / 'a.tif', metadata=with_y, **options)
  assert found == pytest.approx((5, 4))
  with_y['yunit'] = 'furlong'
  assert size_in(tmp_path / 'b.tif', metadata=with_y, **options) is None
  with_z = {'axes': 'ZYX', 'unit': 'nm', 'zunit': 'um', 'spacing': 0.05}
  path = tmp_path / 'c.tif'
  assert size_in(path, metadata=with_z, imagej=True, resolution=(0.25, 0.25))
  with volume.open_stack(path) as stack:
    assert stack.metadata['spacing'] == pytest.approx(50)


@pytest.mark.parametrize(
  'said',
  [
    *({'resolution': r} for r in ([30, 4, 4], 4.0, None, '4x4', ['4', '4'])),
    {'resolution': [4, 4], 'resolutionunit': 'nm'},
    *({'spacing': s} for s in (None, '30 nm', -30, float('nan'), [1])),
    {'unit': 4},
  ],
)
def test_what_anybody_may_write_counts_only_if_it_fits(tmp_path, said):
  given = {'axes': 'ZYX', 'unit': 'nm'} | said
  # The tags, which tifffile writes, have one pixel in a nanometre.
  size = (1, 1) if given['unit'] == 'nm' else None
  assert size_in(tmp_path / 'a.tif', metadata=given) == size
  with volume.open_stack(tmp_path / 'a.tif') as stack:
    volume.write_stack(tmp_path / 'b.tif', stack.read_all(), stack.metadata)
  with volume.open_stack(tmp_path / 'b.tif') as written:
    assert 'spacing' not in written.metadata
    assert pixel_size.of_metadata(written.metadata) == size
