"""Draws the README's pictures: cells.png and heat_map.png.

python tools/pictures.py --output=docs/pictures --overwrite

cells.png is slice 24 of the ISBI 2012 stack, counted from 0, its prediction and
its cells by `predict`. The network that ships, em_membranes, was not trained on
this slice. heat_map.png has two of the four heat maps of Figure 4, from the
committed results.
"""

import csv
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags
import numpy as np

from skipnet_jax import cli

_OUTPUT = flags.DEFINE_string('output', None, 'Folder of the pictures.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace existing files.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
SLICE = 24
HEAT_MAP = 'experiments/results/figure_4/heat_map_net_change.csv'
# Runs of the heat map, and what their panels are called.
SHOWN = {
  'a_long_short_r9': '(a) long and short skips',
  'b_long_r9': '(b) long skips alone',
}
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


def cells() -> Any:
  """A figure of the slice, its prediction and its cells."""
  from skipnet_jax import environment
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
      numbers = stack.read_all()[0]
  drawn = {
    'image': plots.stretch(image),
    'prediction: bright inside cells': prediction,
    'cells': colour(image, numbers),
  }
  figure = plots.make_figure(9, 3.25, dpi=100)
  for axes, (title, picture) in zip(
    figure.subplots(1, 3), drawn.items(), strict=True
  ):
    axes.imshow(picture, cmap='gray', vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
  return figure


def heat_map() -> Any:
  """A figure of the net change of each layer in each epoch, of two runs."""
  from matplotlib import colors

  from skipnet_jax import plots

  with (ROOT / HEAT_MAP).open() as file:
    rows = list(csv.DictReader(file))
  figure = plots.make_figure(9, 3.4, dpi=100)
  axes = figure.subplots(1, 2)
  for ax, (run, title) in zip(axes, SHOWN.items(), strict=True):
    mine = [row for row in rows if row['run'] == run]
    epochs = [name for name in mine[0] if name.isdecimal()]
    table = np.array([[float(row[e]) for e in epochs] for row in mine])
    image = ax.imshow(
      table,
      norm=colors.LogNorm(1e-4, 2e-2),
      aspect='auto',
      interpolation='nearest',
      extent=(0.5, len(epochs) + 0.5, len(mine), 0),
    )
    ax.set_title(title, fontsize=10)
    ax.set_xlabel('epoch')
    ax.set_ylabel('convolution, from input to output')
  figure.colorbar(image, ax=list(axes), label='change of the weights')
  return figure


def main() -> None:
  """Draws both pictures."""
  output = pathlib.Path(cli.require(_OUTPUT))
  from skipnet_jax import files
  from skipnet_jax import plots

  drawn = {'cells': cells, 'heat_map': heat_map}
  paths = [output / f'{name}.png' for name in drawn]
  files.check_outputs(paths, overwrite=_OVERWRITE.value)
  output.mkdir(parents=True, exist_ok=True)
  for path, draw in zip(paths, drawn.values(), strict=True):
    files.write_whole(path, plots.to_png(draw()))


if __name__ == '__main__':
  cli.run(main)
