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

# Halvings between the five levels.
DEPTH = 4
PADDINGS = ('SAME', 'VALID')
# What 'VALID' cuts off on each side, in pixels: 2 for the two convolutions of
# each of four levels on both ways, as often as a level's pixel is wide, and of
# the deepest.
VALID_BORDER = 2 * 2 * (1 + 2 + 4 + 8) + 2 * 16


def valid_pad(side: int) -> tuple[int, int]:
  """Pixels to mirror before and after a side, in 'VALID', for it to fit.

  At least `VALID_BORDER` on both sides; 572 for the paper's 388. The network
  fits inputs of 16 n + 12 pixels.
  """
  least = side + 2 * VALID_BORDER
  more = (12 - least) % 2**DEPTH
  before = VALID_BORDER + more // 2
  return before, least + more - side - before


def contract_and_expand(
  x: jax.Array,
  drop: bool,
  *,
  base_width: int,
  long_skips: bool = True,
  padding: str = 'SAME',
  up_kernel: int = 2,
  dropout: float = 0.0,
  dtype: layers.Dtype = jnp.float32,
  axis_name: str | None = None,
) -> jax.Array:
  """All of a U-Net but its classifier, within a compact method.

  Args:
    x: `[b, y, x, c]`.
    drop: whether dropout is on.
    base_width: as in `UNet`, like what follows.
    long_skips: as in `UNet`.
    padding: as in `UNet`.
    up_kernel: as in `UNet`.
    dropout: as in `UNet`.
    dtype: compute dtype.
    axis_name: as in `UNet`.

  Returns:
    `[b, y, x, base_width]`, in 'VALID' 2 `VALID_BORDER` pixels smaller.
  """

  def level(name, x, features):
    for i in (1, 2):
      x = layers.Conv(
        features, padding=padding, dtype=dtype, name=f'{name}_conv_{i}'
      )(x)
      x = nn.relu(x)
    return x

  down = []
  for i in range(DEPTH + 1):
    x = level(f'down_{i}', x, base_width * 2**i)
    if i >= DEPTH - 1:
      x = layers.Dropout(dropout, axis_name)(x, drop)
    if i < DEPTH:
      down.append(x)
      x = layers.max_pool(x)
  for i in reversed(range(DEPTH)):
    features = base_width * 2**i
    x = layers.ConvTranspose(
      features, up_kernel, dtype=dtype, name=f'up_{i}_up'
    )(x)
    if long_skips:
      x = skips.LongConcatenation(name=f'long_skip_{i}')(x, down[i])
    x = level(f'up_{i}', x, features)
  return x


class UNet(network.Network):
  """U-Net with its long skips as concatenations.

  Attributes:
    long_skips: False: no concatenations; the convolutions after them are
      smaller then.
    padding: 'VALID' as published: the image is mirrored around so that the
      prediction has its size; or 'SAME'.
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
  least: ClassVar = {'base_width': 1}

  def check(self) -> None:
    """Raises InputError for a setting that no network can be built from."""
    super().check()
    if self.padding not in PADDINGS:
      raise errors.InputError(
        f'model.padding is {self.padding!r}; it must be SAME or VALID.'
      )
    if self.up_kernel not in (2, 3):
      raise errors.InputError(
        f'model.up_kernel is {self.up_kernel}; it must be 2 or 3.'
      )

  def check_size(self, size: Sequence[int]) -> None:
    """Raises InputError for sides that do not fit.

    In 'SAME' they must be multiples of 16. 'VALID' takes any of at least 4
    pixels, see `valid_pad`.
    """
    if self.padding == 'SAME':
      super().check_size(size)
    elif min(size) < 4:
      raise errors.InputError(
        f'The image is {size[0]}x{size[1]}; both sides must be at least 4.'
      )

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`.

    The logits are the difference of the paper's two channels, whose softmax is
    the sigmoid of it.
    """
    size = image.shape[1:3]
    self.check_size(size)
    dtype = jnp.dtype(self.dtype)
    x = image
    if self.padding == 'VALID':
      x = layers.mirror(x, [valid_pad(side) for side in size])
    x = contract_and_expand(
      x,
      train or sample,
      base_width=self.base_width,
      long_skips=self.long_skips,
      padding=self.padding,
      up_kernel=self.up_kernel,
      dropout=self.dropout,
      dtype=dtype,
      axis_name=self.axis_name,
    )
    x = layers.Conv(2, 1, dtype=dtype, name='classifier')(x)
    x = layers.wide(layers.centre(x, size))
    return {'logits': x[..., 1:] - x[..., :1]}
