"""Labels, a picture and a table of the cells of a stack."""

import contextlib
import csv

import numpy as np
from PIL import Image
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import volume
from skipnet_jax.prediction import cell_files
from skipnet_jax.prediction import pixel_grid

GREY = np.linspace(0, 255, 40 * 48).reshape(40, 48).astype(np.uint8)
INSIDE = np.ones((40, 48), np.float32)
INSIDE[:, 20] = INSIDE[11] = 0


def write(folder, slices, **options):
  """Writes files of `slices` equal slices."""
  pixels = np.repeat(GREY[None], slices, 0)
  volume.write_stack(folder / 'in.tif', pixels, overwrite=True)
  options = {
    k: folder / v if isinstance(v, str) else v for k, v in options.items()
  }
  files = cell_files.CellFiles(**options)
  grid = pixel_grid.Grid(GREY.shape, GREY.shape)
  with (
    volume.open_stack(folder / 'in.tif') as source,
    contextlib.ExitStack() as stack,
  ):
    files.open(stack, source, False)
    for _ in range(slices):
      files.add(INSIDE, GREY, GREY, grid)
    files.finish()
  return files


def test_a_picture_of_one_slice(tmp_path):
  files = write(tmp_path, 1, overlay='a.png', segmentation='l.tif')
  picture = np.array(Image.open(tmp_path / 'a.png'))
  borders = tifffile.imread(tmp_path / 'l.tif') == 0
  assert borders.any()
  assert (picture[borders] == (0xF0, 0xE4, 0x42)).all()
  grey = picture[~borders]
  assert (grey == grey[:, :1]).all()
  assert (grey[0, 0], grey[-1, 0]) == (0, 255)
  assert [line.partition(':')[0] for line in files.describe()] == [
    *(str(tmp_path / 'l.tif'), str(tmp_path / 'a.png'))
  ]


def test_a_stack_of_pictures_opens_in_imagej(tmp_path):
  write(tmp_path, 3, overlay='a.tif')
  with tifffile.TiffFile(tmp_path / 'a.tif') as file:
    assert file.is_imagej
    assert file.imagej_metadata['slices'] == 3
    assert file.series[0].axes == 'ZYXS'
    pages = file.asarray()
  assert (pages.shape, pages.dtype) == ((3, 40, 48, 3), np.uint8)
  assert np.array_equal(pages[0], pages[2])


@pytest.mark.parametrize('link', [False, True])
def test_a_table(tmp_path, link):
  write(tmp_path, 2, measure='c.csv', link=link, pixel_size=(2.0, 2.0))
  with (tmp_path / 'c.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == (4 if link else 8)
  times = 2 if link else 1
  assert [row['area_pixels'] for row in rows[:4]] == [
    *(str(times * a) for a in (11 * 20, 28 * 20, 11 * 27, 28 * 27))
  ]
  assert rows[0]['area_nm2'] == str(4.0 * times * 11 * 20)
  assert (rows[0]['centroid_y'], rows[0]['centroid_x']) == ('5.0', '9.5')


@pytest.mark.parametrize(
  ('slices', 'options', 'words'),
  [
    (2, {'overlay': 'a.png'}, ['a.png', 'in.tif has 2', '.tif']),
    (1, {'overlay': 'a.jpg'}, ['a.jpg', '.png (one slice), .tif or .tiff']),
    (1, {'measure': 'a.txt'}, ['a.txt', '.csv']),
    (1, {'measure': 'no/a.csv'}, ['no/a.csv', 'does not exist']),
    (1, {'overlay': 'in.tif'}, ['in.tif exists']),
  ],
)
def test_refuses(tmp_path, slices, options, words):
  with pytest.raises(errors.InputError) as caught:
    write(tmp_path, slices, **options)
  for word in words:
    assert word in str(caught.value)
  assert [path.name for path in tmp_path.iterdir()] == ['in.tif']
