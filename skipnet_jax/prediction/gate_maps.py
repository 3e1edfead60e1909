"""What the gates of a network let through, as pictures."""

import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from skipnet_jax import plots
from skipnet_jax.models import gates


@functools.partial(jax.jit, static_argnums=0)
def _sown(model: nn.Module, variables: dict[str, Any], image: jax.Array) -> Any:
  _, found = model.apply(variables, image, train=False, mutable=[gates.GATES])
  return found.get(gates.GATES, {})


def gate_maps(
  model: nn.Module, variables: dict[str, Any], image: np.ndarray
) -> dict[str, np.ndarray]:
  """The masks of a network's pixel gates on one image.

  Args:
    model: as in `inference.Predictor`.
    variables: params and batch_stats.
    image: `[y, x, slices]` float32, normalised, of sides that the network
      takes.

  Returns:
    Name of the gate, sorted, to `[y, x]` float32 in 0..1; the masks of lower
    resolutions by repetition. `{}` for a network without.
  """
  found = flax.traverse_util.flatten_dict(
    jax.device_get(_sown(model, variables, image[None]))
  )
  maps = {}
  for path, value in found.items():
    _, y, x, channels = value.shape
    if channels > 1 or y == x == 1:
      continue
    # A mirrored border makes it less than the halvings say: rounded up.
    times = 2 ** max(0, int(np.ceil(np.log2(image.shape[0] / y))))
    whole = (
      value[0, ..., 0].astype(np.float32).repeat(times, 0).repeat(times, 1)
    )
    top, left = (
      (a - b) // 2 for a, b in zip(whole.shape, image.shape, strict=False)
    )
    maps['/'.join(path[:-1])] = whole[
      top : top + image.shape[0], left : left + image.shape[1]
    ]
  return maps


def gate_panel(image: np.ndarray, maps: dict[str, np.ndarray]) -> np.ndarray:
  """Draws the image and its masks side by side, `[y, x, 3]` uint8.

  Args:
    image: `[y, x]`, as stored.
    maps: of `gate_maps`, at least one.
  """
  count = len(maps) + 1
  columns = min(3, count)
  rows = -(-count // columns)
  figure = plots.make_figure(3.2 * columns, 3.4 * rows, dpi=120)
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes:
    axis.axis('off')
  axes[0].imshow(plots.stretch(image), cmap='gray')
  axes[0].set_title('image', fontsize=9)
  for axis, (name, mask) in zip(axes[1:], maps.items(), strict=False):
    shown = axis.imshow(mask, cmap='cividis', vmin=0, vmax=1)
    axis.set_title(f'{name}, mean {mask.mean():.3f}', fontsize=9)
  figure.colorbar(shown, ax=axes.tolist(), shrink=0.8, label='let through')
  return plots.to_array(figure)
