"""Folders of slices: their order, and which belong together."""

import random

from made_stacks import make_pixels
from made_stacks import refuse
import numpy as np
from PIL import Image
import pytest

from skipnet_jax import errors
from skipnet_jax.data import labels
from skipnet_jax.data import pixel_size
from skipnet_jax.data import volume


def fill(folder, stems, ending='png'):
  """Writes slices in an order of chance; the k-th has the value k."""
  folder.mkdir(exist_ok=True)
  numbered = list(enumerate(stems))
  random.Random(0).shuffle(numbered)
  for k, stem in numbered:
    Image.fromarray(np.full((3, 4), k, np.uint8)).save(
      folder / f'{stem}.{ending}'
    )
  return folder


@pytest.mark.parametrize(
  'stems',
  [
    ['z0', 'z0.25', 'z0.5', 'z0.75', 'z1', 'z1.25'],
    ['z-10', 'z-2', 'z-1.5', 'z-0.25', 'z0', 'z0.25', 'z2'],
    ['-1', '0', '+1', '+2'],
    ['z-1.00', 'z-0.50', 'z0.00', 'z0.50', 'z10.00'],
    ['z0,25', 'z0,5', 'z1'],
    ['0.0', '0.25', '0.5', '1.0', '10.0'],
    ['slice-8', 'slice-9', 'slice-10'],
    ['a_1-2', 'a_1-10', 'a_2-1'],
    ['v1.8', 'v1.9', 'v1.10', 'v1.11'],
    ['2026.1.9_z9', '2026.1.9_z10', '2026.1.10_z1'],
    ['img.008', 'img.009', 'img.010'],
    ['S1', 's2', 'S3'],
    ['alpha', 'beta', 'gamma'],
    ['c1', 'c2', 'c10'],
    ['t1_z1', 't2_z2'],
    ['Slice 01', 'slice_02', 'Slice 03'],
    ['em_1', 'em-2', 'em_3', 'em 4'],
    ['em_1200_z1', 'em_1205_z2', 'em_1205_z3'],
    ['z0.1', 'z0.15', 'z0.2'],
    ['x1', 'x2', 'x3'],
    [f'z{9 * 10**4000}'[:200], f'z{9 * 10**4000}'[:210]],
  ],
)
def test_the_order_is_that_of_the_numbers(tmp_path, stems):
  with volume.open_stack(fill(tmp_path / 'a', stems)) as stack:
    assert [page[0, 0] for page in stack] == list(range(len(stems)))


@pytest.mark.parametrize(
  'stems',
  [
    *(['1', '01'], ['z1.5', 'z1,5'], ['a', 'A'], ['em_1', 'em_1_mask']),
    *(['z1', 'mask'], ['z1', 'MAX_z1-3'], ['z2', 'z2 (1)'], ['im_1', 'img_2']),
    *(['slice1', 'retake_slice2'], ['A_1', 'B_2'], ['s0a', 's10']),
  ],
)
def test_an_unknown_order_is_refused(tmp_path, stems):
  refuse(fill(tmp_path / 'a', stems), *stems, 'order is not known')


def test_the_name_of_most_slices_is_the_right_one(tmp_path):
  stems = ['z1', 'z2', 'z3', 'z4_old']
  refuse(fill(tmp_path / 'a', stems), 'z4_old.png', 'order is not known')


@pytest.mark.parametrize(
  'stems',
  [
    [f's1.{n}' for n in range(1, 13) if n != 10],
    ['v1.8', 'v1.9', 'v1.11', 'v1.12'],
  ],
)
def test_pairs_of_integers_may_be_decimals(tmp_path, stems):
  refuse(fill(tmp_path / 'a', stems), stems[0], stems[-1], 'may be decimals')


@pytest.mark.parametrize(
  ('stems', 'sides'),
  [
    ([f'a{i}-{j}' for i in (1, 2) for j in (1, 2, 3)], '2 x 3'),
    # The third number is the second one again.
    ([f'a{i}_{j}_{9 - j}' for i in (1, 2, 3) for j in (1, 2)], '2 x 3'),
    ([f'{i}_{j}_{k}' for i in (1, 2) for j in (1, 2) for k in (1, 2)], '2 x 2'),
  ],
)
def test_a_grid_is_no_stack(tmp_path, stems, sides):
  refuse(fill(tmp_path / 'a', stems), sides, stems[0], 'which of them count')


@pytest.mark.parametrize(
  'stems',
  [
    ['z0_c0', 'z0_c1', 'z1_c0', 'z1_c1'],
    ['img_channel000_z000', 'img_channel001_z000'],
    ['t1-z1', 't1-z2', 't2-z1'],
    ['z1_w1', 'z1_w2', 'z2_w1'],
    ['z1_x0_y0', 'z1_x1_y0', 'z2_x0_y0'],
    ['s1_row1', 's1_row2', 's2_row1'],
    ['tile_1', 'tile_2'],
  ],
)
def test_channels_and_times_are_no_slices(tmp_path, stems):
  refuse(fill(tmp_path / 'a', stems), '2 channels, times or', stems[0])


def test_a_slice_of_another_kind_is_not_left_out(tmp_path):
  fill(tmp_path / 'a', ['3'], 'jpg')
  refuse(fill(tmp_path / 'a', ['1', '2']), 'JPEG and PNG')


@pytest.mark.parametrize('name', ['z3.jxl', 'Z_3.png.part', 'z3.tif.gz'])
def test_a_slice_of_an_unknown_kind_is_not_left_out(tmp_path, name):
  folder = fill(tmp_path / 'a', ['z1', 'z2', 'z4'])
  for beside in ('z1.txt', 'z2.png.xml', 'notes.txt', 'Thumbs.db', '.z3.png'):
    (folder / beside).write_text('no slice')
  with volume.open_stack(folder) as stack:
    assert len(stack) == 3
  (folder / name).write_text('no picture')
  refuse(folder, f'{name}, which is named as a slice')


@pytest.mark.parametrize(
  ('stems', 'words'),
  [
    (['z1', 'z2', 'z4', 'z5'], 'no slice between z2.png and z4.png: '),
    (['5', '10', '20', '25', '35'], '10.png and 20.png and at 1 other place: '),
    (['z1', 'z3', 'z5'], ''),
    (['t7', 't19', 't20', 't48'], ''),
    (['z1', 'z9'], ''),
    (['a', 'b', 'd'], ''),
  ],
)
def test_gaps_between_numbers_are_named(tmp_path, stems, words):
  with volume.open_stack(fill(tmp_path / 'a', stems)) as stack:
    assert words in stack.note
    assert bool(words) == bool(stack.note)


@pytest.mark.parametrize(
  ('images', 'labels'),
  [
    (['em_z07', 'em_z08'], ['label_7', 'label_8']),
    (['a_1', 'a_2'], ['seg2_1', 'seg2_2']),
    (['a', 'b'], ['a', 'b']),
    # These say nothing.
    (['one'], ['another']),
    (['a', 'b'], ['mask of a', 'mask of b']),
    (['1', '2'], ['left', 'right']),
  ],
)
def test_slices_that_belong_together(tmp_path, images, labels):
  with (
    volume.open_stack(fill(tmp_path / 'i', images)) as image,
    volume.open_stack(fill(tmp_path / 'l', labels)) as label,
  ):
    volume.check_same_slices(image, label)


@pytest.mark.parametrize(
  ('images', 'labels', 'words'),
  [
    (['0', '1', '2'], ['1', '2', '3'], ('slice 1', '0.png', '1.png')),
    (['z1', 'z2', 'z4'], ['z1', 'z2', 'z3'], ('slice 3', 'z4.png', 'z3.png')),
    (['z0.5', 'z1'], ['z0.25', 'z1'], ('slice 1', 'z0.5.png', 'z0.25.png')),
    (['a', 'b', 'd'], ['a', 'b', 'c'], ('slice 3', 'd.png', 'c.png')),
    (['em_z07'], ['label_z08'], ('slice 1', 'em_z07.png', 'label_z08.png')),
    (['1', '2'], ['v2_2', 'v3_3'], ('slice 1', '1.png', 'v2_2.png')),
  ],
)
def test_slices_that_do_not(tmp_path, images, labels, words):
  with (
    volume.open_stack(fill(tmp_path / 'i', images)) as image,
    volume.open_stack(fill(tmp_path / 'l', labels)) as label,
    pytest.raises(errors.InputError) as caught,
  ):
    volume.check_same_slices(image, label)
  for word in words:
    assert word in str(caught.value)


def test_a_tiff_says_nothing_about_its_slices(tmp_path):
  volume.write_stack(tmp_path / 'a.tif', make_pixels(shape=(2, 3, 4)))
  with (
    volume.open_stack(fill(tmp_path / 'i', ['1', '2'])) as image,
    volume.open_stack(tmp_path / 'a.tif') as label,
  ):
    volume.check_same_slices(image, label)


@pytest.mark.parametrize(
  'compression', [None, 'packbits', 'tiff_adobe_deflate']
)
def test_labels_of_one_bit(tmp_path, compression):
  # Rows do not end at a whole byte.
  inside = make_pixels(shape=(3, 9, 11)) > 128
  pages = [Image.fromarray(page) for page in inside]
  path = tmp_path / ('a.tif' if compression else 'a')
  if compression:
    rest = {'save_all': True, 'append_images': pages[1:]}
    pages[0].save(path, compression=compression, **rest)
  else:
    path.mkdir()
    for z, page in enumerate(pages):
      page.save(path / f'{z}.png')
  refuse(path, 'bool pixels; accepted are uint8')
  with volume.open_stack(path, dtypes=labels.DTYPES) as stack:
    label = stack.read_all()
  found = labels.find_inside(label, inside.shape, 'one bit')
  np.testing.assert_array_equal(found, inside)
  if not compression:
    Image.fromarray(inside[0].astype(np.uint8)).save(path / '1.png')
    refuse(path, '(9, 11) uint8', '(9, 11) bool', dtypes=labels.DTYPES)


@pytest.mark.parametrize('kind', ['channel', 'series'])
def test_png_has_one_image_of_one_channel(tmp_path, kind):
  choice = volume.Choice(**{kind: 2, 'prefix': 'data.'})
  folder = fill(tmp_path / 'a', ['1'])
  for path in (folder, folder / '1.png'):
    refuse(path, f'data.{kind} is 2: choose one', choice=choice)


def test_one_png_is_a_stack_of_one_slice(tmp_path):
  path, pixels = tmp_path / 'a.PNG', np.arange(12, dtype=np.uint16)
  Image.fromarray(pixels.reshape(3, 4)).save(path)
  with volume.open_stack(path) as stack:
    assert (stack.shape, stack.dtype) == ((1, 3, 4), np.uint16)
    assert np.array_equal(stack.read_all().ravel(), pixels)
    assert stack.path == path
  Image.new('RGB', (4, 3)).save(path)
  refuse(path, 'mode RGB', 'convert it to one grey value')
  path.write_bytes(b'no picture')
  refuse(path, 'is no readable PNG')


def test_a_slice_that_changes_while_it_is_read(tmp_path):
  with volume.open_stack(fill(tmp_path / 'a', ['1', '2'])) as stack:
    assert stack.read(1)[0, 0] == 1
    fill(tmp_path / 'a', ['1', '2'])
    with pytest.raises(errors.InputError, match=r'1\.png was changed while'):
      stack.read(0)


def test_slices_of_another_pixel_size_are_refused(tmp_path):
  pixels = np.zeros((1, 8, 9), np.uint8)
  given = {'resolutionunit': 1, 'unit': 'nm'}
  for name, per_unit in (('a_1', 0.25), ('a_2', 0.25001), ('a_3', 0.125)):
    metadata = given | {'resolution': (per_unit,) * 2}
    volume.write_stack(tmp_path / f'{name}.tif', pixels, metadata)
  refuse(tmp_path, 'a_3.tif has pixels of 8 x 8 nm, a_1.tif of 4 x 4 nm')
  # The first file says no size.
  volume.write_stack(tmp_path / 'a_0.tif', pixels)
  refuse(tmp_path, 'a_3.tif has pixels of 8 x 8 nm, a_1.tif of 4 x 4 nm')
  (tmp_path / 'a_3.tif').unlink()
  with volume.open_stack(tmp_path) as stack:
    assert len(stack) == 3
    assert pixel_size.of_metadata(stack.metadata) == pytest.approx((4, 4))


def test_a_png_that_pillow_takes_for_a_bomb(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  Image.fromarray(np.zeros((40, 50), np.uint8)).save(path)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 900)
  refuse(path, 'is larger than the 1800 pixels', 'save it as TIFF')


def test_a_png_that_is_to_be_turned_is_refused(tmp_path):
  exif = Image.Exif()
  for orientation in (1, 6):
    exif[0x0112] = orientation
    path = tmp_path / f'{orientation}.png'
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path, exif=exif)
  refuse(tmp_path / '6.png', 'Orientation 6')
  with volume.open_stack(tmp_path / '1.png') as stack:
    assert stack.shape == (1, 4, 5)


@pytest.mark.parametrize('name', ['info', 'attributes.json', 'zarr.json'])
def test_a_folder_of_slices_may_have_a_file_of_any_name(tmp_path, name):
  folder = fill(tmp_path / 'a', ['z1', 'z2'])
  (folder / name).write_text('about these slices')
  with volume.open_stack(folder) as stack:
    assert len(stack) == 2


def stack_of(tmp_path, name, **metadata):
  """An open TIFF whose pixels are 4 nm."""
  path = tmp_path / f'{name}.tif'
  given = {'resolution': (0.25, 0.25), 'resolutionunit': 1, 'unit': 'nm'}
  volume.write_stack(path, make_pixels(shape=(2, 8, 9)), given)
  stack = volume.open_stack(path)
  stack.close()
  stack.metadata |= metadata
  return stack


@pytest.mark.parametrize(
  ('first', 'second', 'words'),
  [
    ({'spacing': 40.0}, {'spacing': 80.0}, 'slices 40 nm apart'),
    ({'spacing': 40.0}, {'spacing': 40.4}, ''),
    ({'spacing': 40.0}, {}, ''),
    ({'origin': (0.0, 0.0, 0.0)}, {'origin': (80.0, 0.0, 0.0)}, 'begins at'),
    ({'origin': (0.0, 0.0, 0.0)}, {}, ''),
    # Two pixels far away, and rounding.
    ({'origin': (0.0, 0.0, 1e6)}, {'origin': (0.0, 0.0, 1e6 + 8)}, 'begins at'),
    ({'origin': (0.0, 0.0, 1e6)}, {'origin': (0.0, 0.0, 1e6 + 1)}, ''),
    # Half the distance of the slices is another place, not half a pixel.
    (
      {'origin': (0.0, 0.0, 0.0), 'spacing': 40.0},
      {'origin': (10.0, 0.0, 0.0), 'spacing': 40.0},
      '',
    ),
    (
      {'origin': (4.0, 0.0, 0.0)},
      {
        'origin': (4.0, 0.0, 0.0),
        **{'unit': 'µm', 'resolution': (250.0, 250.0)},
      },
      'begins at',
    ),
    (
      {'origin': (400.0, 0.0, 0.0)},
      {
        'origin': (0.4, 0.0, 0.0),
        **{'unit': 'µm', 'resolution': (250.0, 250.0)},
      },
      '',
    ),
  ],
)
def test_stacks_of_other_places_are_refused(tmp_path, first, second, words):
  both = stack_of(tmp_path, 'a', **first), stack_of(tmp_path, 'b', **second)
  for pair in (both, both[::-1]):
    if words:
      with pytest.raises(errors.InputError) as caught:
        volume.check_same_slices(*pair)
      assert words in str(caught.value) or pair is not both
    else:
      volume.check_same_slices(*pair)
