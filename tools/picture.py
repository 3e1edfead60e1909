"""Draws the README's picture: a slice, its prediction and its cells.

python tools/picture.py --output=docs/pictures/cells.png

The slice is number 24 of the ISBI 2012 stack, counted from 0, on which the
network that ships, em_membranes, was not trained. `predict` segments it.
"""

import pathlib
import subprocess
import sys
import tempfile

from absl import flags
import numpy as np

from skipnet_jax import cli

_OUTPUT = flags.DEFINE_string('output', None, 'PNG file.')
SLICE = 24
# Seed of the colours of cells.
_SEED = 3


def colour(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
  """The image with its cells in colours, `[y, x, 3]` float 0..1.

  Args:
    image: `[y, x]` grey values.
    cells: `[y, x]` integers, 0 on borders.
  """
  from matplotlib import colors

  from skipnet_jax import plots

  generator = np.random.default_rng(_SEED)
  hues = generator.permutation(cells.max() + 1) / (cells.max() + 1)
  hsv = np.stack([hues, np.full_like(hues, 0.75), np.ones_like(hues)], 1)
  palette = colors.hsv_to_rgb(hsv)
  palette[0] = 0
  grey = plots.stretch(image)[..., None]
  return 0.55 * grey + 0.45 * palette[cells]


def main() -> None:
  """Predicts the slice and draws the picture."""
  output = pathlib.Path(cli.require(_OUTPUT))
  from skipnet_jax import environment
  from skipnet_jax import files
  from skipnet_jax import plots
  from skipnet_jax.data import isbi2012
  from skipnet_jax.data import volume

  folder = isbi2012.find(None) or isbi2012.download(environment.cache_dir())
  image = isbi2012.load(folder, 'train')[0][SLICE]
  with tempfile.TemporaryDirectory() as name:
    here = pathlib.Path(name)
    volume.write_stack(here / 'slice.tif', image[None])
    command = [
      *(sys.executable, '-m', 'skipnet_jax.predict'),
      *('--pretrained=em_membranes', '--pixel_size=4', '--method=multicut'),
      *('--input=slice.tif', '--output=p.tif', '--segmentation=cells.tif'),
    ]
    subprocess.run(command, cwd=here, check=True)
    with volume.open_stack(here / 'p.tif') as stack:
      prediction = stack.read_all()[0]
    with volume.open_stack(here / 'cells.tif', dtypes=('uint16',)) as stack:
      cells = stack.read_all()[0]
  drawn = {
    'image': plots.stretch(image),
    'prediction: bright inside cells': prediction,
    'cells': colour(image, cells),
  }
  figure = plots.make_figure(9, 3.25, dpi=100)
  for axes, (title, picture) in zip(
    figure.subplots(1, 3), drawn.items(), strict=True
  ):
    axes.imshow(picture, cmap='gray', vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
  output.parent.mkdir(parents=True, exist_ok=True)
  files.write_whole(output, plots.to_png(figure))


if __name__ == '__main__':
  cli.run(main)
