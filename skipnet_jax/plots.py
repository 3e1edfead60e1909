"""Shared by all figures: a canvas without display, colours, PNG bytes."""

import io
from typing import Any
import warnings

import numpy as np
from PIL import Image

# Okabe and Ito's colours, distinct with every kind of colour vision.
BLUE, ORANGE, VERMILION, YELLOW = '#0072B2', '#E69F00', '#D55E00', '#F0E442'
GREEN, PINK, SKY, GREY = '#009E73', '#CC79A7', '#56B4E9', '#777777'
# Colours of lines, in the order of the runs.
CYCLE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, 'black', GREY)


def make_figure(width: float, height: float, dpi: float = 150) -> Any:
  """An empty matplotlib Figure; width and height in inches."""
  # Imported late, because matplotlib takes long to import. With a canvas,
  # matplotlib searches for no display.
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  empty = figure.Figure((width, height), dpi=dpi, layout='constrained')
  backend_agg.FigureCanvasAgg(empty)
  return empty


def legend_label(name: str) -> str:
  """A run's name as a label; a legend leaves out labels that begin with `_`."""
  return f' {name}' if name.startswith('_') else name


def to_array(figure: Any) -> np.ndarray:
  """The drawn figure, `[y, x, 3]` uint8.

  Names of runs and files are drawn as they are: matplotlib takes what lies
  between two dollar signs as a formula, except in its own labels of ticks.
  """
  from matplotlib import text

  own = {
    label
    for axes in figure.axes
    for axis in (axes.xaxis, axes.yaxis)
    for label in axis.get_ticklabels(which='both')
  }
  for label in set(figure.findobj(text.Text)) - own:
    label.set_parse_math(False)
    # Bytes of a file's name that are not UTF-8.
    name = label.get_text().encode(errors='backslashreplace').decode()
    label.set_text(name)
  with warnings.catch_warnings():
    # A letter that the font lacks, such as a Chinese one, becomes a box.
    warnings.filterwarnings('ignore', 'Glyph .* missing from font')
    figure.canvas.draw()
  return np.array(figure.canvas.buffer_rgba())[..., :3].copy()


def to_png(figure: Any) -> bytes:
  """The drawn figure as the content of a PNG file."""
  file = io.BytesIO()
  # With 256 colours, the file has a third of the size; colour bars may show
  # bands.
  picture = Image.fromarray(to_array(figure))
  picture.quantize(256, dither=Image.Dither.NONE).save(
    file, format='PNG', optimize=True
  )
  return file.getvalue()


def stretch(image: np.ndarray) -> np.ndarray:
  """Scales `[y, x]` of any real dtype to 0..1; clips one percent of it."""
  low, high = np.percentile(image, (0.5, 99.5))
  return np.clip((image - low) / (high - low or 1.0), 0, 1)
