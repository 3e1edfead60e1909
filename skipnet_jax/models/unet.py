"""U-Net (Ronneberger et al. 2015)."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax import errors
from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips

DEPTH = 4  # Number of downsamplings.
# Pixels that 'VALID' removes on each side: 2 for the two convolutions of each
# level, times the size of the level's pixels; the deepest level counts once,
# the other four on both paths.
VALID_BORDER = 2 * 2 * (1 + 2 + 4 + 8) + 2 * 16


def valid_pad(side: int) -> tuple[int, int]:
  """Pixels to pad before and after a side for 'VALID' convolutions.

  At least `VALID_BORDER` on both sides: the paper pads 388 to 572. The padded
  side is 16 n + 12 pixels, which the network can downsample.
  """
  more = (12 - side - 2 * VALID_BORDER) % 2**DEPTH
  return VALID_BORDER + more // 2, VALID_BORDER + (more + 1) // 2


def contract_and_expand(model: 'UNet', x: jax.Array, drop: bool) -> jax.Array:
  """All layers of a U-Net but its classifier; call it in a compact method.

  It maps `[b, y, x, c]` to `[b, y, x, base_width]`; 'VALID' removes
  `VALID_BORDER` on each side. `drop` switches dropout on. A ReLU follows each
  up-convolution too, as in the authors' definition for Caffe.
  """
  dtype = jnp.dtype(model.dtype)

  def level(name, x, features):
    for i in (1, 2):
      x = layers.Conv(
        features, padding=model.padding, dtype=dtype, name=f'{name}_conv_{i}'
      )(x)
      x = nn.relu(x)
    return x

  down = []
  for i in range(DEPTH + 1):
    x = level(f'down_{i}', x, model.base_width * 2**i)
    if i >= DEPTH - 1:
      x = layers.Dropout(model.dropout, model.axis_name)(x, drop)
    if i < DEPTH:
      down.append(x)
      x = layers.max_pool(x)
  for i in reversed(range(DEPTH)):
    features = model.base_width * 2**i
    x = layers.ConvTranspose(
      features, model.up_kernel, dtype=dtype, name=f'up_{i}_up'
    )(x)
    x = nn.relu(x)
    if model.long_skips:
      x = skips.LongConcatenation(name=f'long_skip_{i}')(x, down[i])
    x = level(f'up_{i}', x, features)
  return x


class UNet(network.Network):
  """U-Net, whose long skips are concatenations.

  Attributes:
    long_skips: False: no concatenations, so the convolutions after them are
      smaller.
    padding: 'VALID' as published, with the image padded by reflection so that
      the prediction has its size; or 'SAME'.
    up_kernel: side of the transposed convolutions' kernels: 2 as published; 3
      as in the U-Net that public GPU benchmarks time.
    dropout: rate at the end of the last two contracting levels.
    base_width: channels of the first level; the deepest has 16 times as many.
  """

  long_skips: bool = True
  padding: str = 'SAME'
  up_kernel: int = 2
  dropout: float = 0.5
  base_width: int = 64
  size_multiple = 2**DEPTH
  minimum: ClassVar = {'base_width': 1}
  choices: ClassVar = {'padding': ('SAME', 'VALID'), 'up_kernel': (2, 3)}

  def check_size(self, size: Sequence[int]) -> None:
    """Raises InputError for sides that the network cannot take.

    'SAME' takes multiples of 16, 'VALID' any side of at least 4 pixels.
    """
    if self.padding == 'SAME':
      super().check_size(size)
    elif any(side < 4 for side in size):
      raise errors.InputError(
        f'The image is {size[0]}x{size[1]}; both sides must be at least 4.'
      )

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`.

    The logits are the difference of the paper's two channels: their sigmoid is
    the channels' softmax.
    """
    size = image.shape[1:3]
    self.check_size(size)
    x = image
    if self.padding == 'VALID':
      x = layers.reflect_pad(x, [valid_pad(side) for side in size])
    x = contract_and_expand(self, x, train or sample)
    dtype = jnp.dtype(self.dtype)
    x = layers.Conv(2, 1, dtype=dtype, name='classifier')(x)
    x = layers.at_least_float32(layers.centre_crop(x, size))
    return {'logits': x[..., 1:] - x[..., :1]}
