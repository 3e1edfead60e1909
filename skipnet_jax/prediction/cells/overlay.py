"""Draws the borders of cells over the image."""

import numpy as np

from skipnet_jax import plots

_COLOUR = plots.YELLOW


def draw(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The image in grey with the borders of its cells, `[y, x, 3]` uint8.

  Args:
    image: `[y, x]`, grey values; their lowest and highest half percent are
      black and white.
    labels: `[y, x]` integers, 0 on borders.
  """
  grey = np.round(255 * plots.stretch(image)).astype(np.uint8)
  drawn = np.repeat(grey[..., None], 3, axis=-1)
  drawn[labels == 0] = np.frombuffer(bytes.fromhex(_COLOUR[1:]), np.uint8)
  return drawn
