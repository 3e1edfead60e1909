"""CUMedVision (Chen et al. 2016, Deep contextual networks)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import vgg


class CUMedVision(nn.Module):
  """A VGG-like path whose three lower levels are each upsampled at once.

  Transposed convolutions of strides 2, 4 and 8, with kernels of twice that,
  give two classes each; the prediction is the sum of the three branches, and
  each is an auxiliary output. There is nothing that skips.

  Attributes:
    base_width: channels of the first level; the last has 8 times as many.
    dtype: 'float32' or 'bfloat16', for compute; the logits are float32.
    axis_name: mapped axis of a pmapped call, or None; of no matter here.
  """

  base_width: int = 64
  dtype: str = 'float32'
  axis_name: str | None = None

  def check(self) -> None:
    """Raises InputError for a setting that no network can be built from."""
    layers.check_least(self, base_width=1)

  def check_size(self, size: tuple[int, int]) -> None:
    """Raises InputError unless both sides (y, x) are multiples of 8."""
    layers.check_size(size, vgg.SIZE_MULTIPLE)

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> dict[str, jax.Array]:
    """Logits of the probability that a pixel is inside a cell.

    Args:
      image: `[b, y, x, 1]` float32, normalised; y and x multiples of 8.
      train: no meaning here: the network has no BatchNorm and no dropout.
      sample: no meaning here either.

    Returns:
      `{'logits': [b, y, x, 1] float32, 'auxiliary': {name: the same}}`, each
      the difference of two channels, whose softmax is the sigmoid of it.

    Raises:
      InputError: a side is no multiple of 8.
    """
    del train, sample
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    found = vgg.Trunk(self.base_width, dtype, name='trunk')(image)
    branches = {}
    for level, x in enumerate(found[1:], start=1):
      stride = 2**level
      x = layers.ConvTranspose(
        2, 2 * stride, stride, dtype=dtype, name=f'branch_{level}_up'
      )(x)
      x = layers.wide(x)
      branches[f'branch_{level}'] = x[..., 1:] - x[..., :1]
    return {'logits': sum(branches.values()), 'auxiliary': branches}
