"""FCN+LSTM (Chen et al. 2016): a U-Net of two scales, then an LSTM over z."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import conv_lstm
from skipnet_jax.models import layers
from skipnet_jax.models import unet

# Of the coarse net, whose image is half as large.
SIZE_MULTIPLE = 2 * unet.SIZE_MULTIPLE


class Scale(nn.Module):
  """A U-Net without classifier, see `unet.contract_and_expand`."""

  base_width: int
  long_skips: bool
  dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to `[b, y, x, base_width]`."""
    return unet.contract_and_expand(
      x,
      False,
      base_width=self.base_width,
      long_skips=self.long_skips,
      dtype=self.dtype,
    )


class FCNLSTM(nn.Module):
  """kU-Net features of each slice, and a bidirectional ConvLSTM over them.

  kU-Net of k = 2: a coarse net on the image halved, whose features are doubled
  by a transposed convolution and stand beside the image before the fine net.
  The hidden states of the slice in the middle are classified. Widths of the
  U-Nets are not published; the hidden states have the published 64 channels and
  5x5 kernels.

  Attributes:
    long_skips: concatenations in both U-Nets.
    base_width: channels of their first levels.
    hidden: channels of each direction's state.
    slices: neighbouring slices that the image consists of; odd, at least 3.
    dtype: 'float32' or 'bfloat16', for compute; the logits are float32.
    axis_name: mapped axis of a pmapped call, or None; of no matter here.
  """

  long_skips: bool = True
  base_width: int = 32
  hidden: int = 64
  slices: int = 3
  dtype: str = 'float32'
  axis_name: str | None = None

  def check(self) -> None:
    """Raises InputError for a setting that no network can be built from."""
    layers.check_least(self, base_width=1, hidden=1, slices=3)

  def check_size(self, size: tuple[int, int]) -> None:
    """Raises InputError unless both sides (y, x) are multiples of 32."""
    layers.check_size(size, SIZE_MULTIPLE)

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> dict[str, jax.Array]:
    """Logits of the probability that a pixel is inside a cell.

    Args:
      image: `[b, y, x, slices]` float32, normalised; y and x multiples of 32.
      train: no meaning here: the network has no BatchNorm and no dropout.
      sample: no meaning here either.

    Returns:
      `{'logits': [b, y, x, 1] float32}` of the slice in the middle.

    Raises:
      InputError: a side is no multiple of 32.
    """
    del train, sample
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    b, y, x, slices = image.shape
    # The slices side by side, as if they were examples.
    pages = jnp.moveaxis(image, -1, 1).reshape(b * slices, y, x, 1)
    half = pages.reshape(-1, y // 2, 2, x // 2, 2, 1).mean((2, 4))
    scale = (self.base_width, self.long_skips, dtype)
    coarse = Scale(*scale, name='coarse')(half)
    coarse = layers.ConvTranspose(
      self.base_width, dtype=dtype, name='coarse_up'
    )(coarse)
    both = jnp.concatenate([pages.astype(dtype), nn.relu(coarse)], -1)
    features = Scale(*scale, name='fine')(both)
    features = features.reshape(b, slices, y, x, -1)
    states = conv_lstm.Bidirectional(self.hidden, dtype=dtype, name='lstm')(
      [features[:, z] for z in range(slices)]
    )
    found = layers.Conv(1, 1, dtype=dtype, name='classifier')(states)
    return {'logits': layers.wide(found)}
