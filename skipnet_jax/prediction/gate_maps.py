"""Pictures of the masks of a network's gates."""

import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from skipnet_jax import plots
from skipnet_jax.models import gates


@functools.partial(jax.jit, static_argnums=0)
def _masks(model: nn.Module, variables: dict[str, Any], image: Any) -> Any:
  _, sown = model.apply(variables, image, train=False, mutable=[gates.GATES])
  return sown.get(gates.GATES, {})


def gate_maps(
  model: nn.Module, variables: dict[str, Any], image: np.ndarray
) -> dict[str, np.ndarray]:
  """The masks of a network's pixel gates on one image.

  Args:
    model: as in `inference.Predictor`.
    variables: params and batch_stats.
    image: `[y, x, slices]` float32, normalised, of a size that the network
      takes.

  Returns:
    Name of the gate, sorted, to its mask `[y, x]` float32 in 0..1; masks of
    lower resolution are enlarged by repeating pixels. `{}` without pixel gates.
  """
  masks = jax.device_get(_masks(model, variables, image[None]))
  height, width, _ = image.shape
  maps = {}
  for path, mask in flax.traverse_util.flatten_dict(masks).items():
    _, y, x, channels = mask.shape
    if channels > 1 or y == x == 1:
      continue
    # Rounded up: padding by reflection makes the ratio less than a power of 2.
    times = 2 ** max(0, int(np.ceil(np.log2(height / y))))
    whole = mask[0, ..., 0].astype(np.float32).repeat(times, 0).repeat(times, 1)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    centre = whole[top : top + height, left : left + width]
    maps['/'.join(path[:-1])] = centre
  return maps


def gate_panel(image: np.ndarray, maps: dict[str, np.ndarray]) -> np.ndarray:
  """Draws an image `[y, x]` beside its `gate_maps`, as `[y, x, 3]` uint8."""
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
    drawn = axis.imshow(mask, cmap='cividis', vmin=0, vmax=1)
    axis.set_title(f'{name}, mean {mask.mean():.3f}', fontsize=9)
  figure.colorbar(drawn, ax=axes.tolist(), shrink=0.8, label='let through')
  return plots.to_array(figure)
