"""What all figures share: a canvas without display, colours, PNG bytes."""

import io
from typing import Any

import numpy as np
from PIL import Image

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, ORANGE, VERMILION, YELLOW = '#0072B2', '#E69F00', '#D55E00', '#F0E442'
GREEN, PINK, SKY, GREY = '#009E73', '#CC79A7', '#56B4E9', '#777777'
# Of lines, in the order in which runs are named.
CYCLE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, 'black', GREY)


def make_figure(width: float, height: float, dpi: float = 150) -> Any:
  """An empty matplotlib Figure of so many inches, drawn by Agg."""
  # Matplotlib takes long to import, and training needs none of it here. The
  # canvas is named, so no display is looked for.
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  made = figure.Figure((width, height), dpi=dpi, layout='constrained')
  backend_agg.FigureCanvasAgg(made)
  return made


def to_array(figure: Any) -> np.ndarray:
  """The drawn figure, `[y, x, 3]` uint8."""
  figure.canvas.draw()
  return np.array(figure.canvas.buffer_rgba())[..., :3].copy()


def to_png(figure: Any) -> bytes:
  """The drawn figure as the content of a PNG file."""
  file = io.BytesIO()
  # 256 colours: a third of the size; rare shades of a colour bar form bands.
  picture = Image.fromarray(to_array(figure))
  picture.quantize(256, dither=Image.Dither.NONE).save(
    file, format='PNG', optimize=True
  )
  return file.getvalue()


def stretch(image: np.ndarray) -> np.ndarray:
  """`[y, x]` of any real dtype as 0..1, but for a percent of outliers."""
  low, high = np.percentile(image, (0.5, 99.5))
  return np.clip((image - low) / max(high - low, 1e-6), 0, 1)
