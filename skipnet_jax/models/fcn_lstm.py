"""FCN+LSTM (Chen et al. 2016): a U-Net at two scales, then an LSTM over z."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import conv_lstm
from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import unet


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


class FCNLSTM(network.Network):
  """kU-Net features of each slice, then a bidirectional ConvLSTM over slices.

  kU-Net with k = 2: a coarse U-Net reads the image at half size. A transposed
  convolution upsamples its features, which the fine U-Net reads with the image.
  A 1x1 convolution classifies the LSTM's states at the middle slice. The widths
  of the U-Nets are not published; the LSTM has the published 64 channels and
  5x5 kernels.

  Attributes:
    long_skips: concatenations in both U-Nets.
    base_width: channels of their first levels.
    hidden: channels of the LSTM's state in each direction.
    slices: number of neighbouring slices in an image; odd, at least 3.
  """

  long_skips: bool = True
  base_width: int = 32
  hidden: int = 64
  slices: int = 3
  size_multiple = 2 * unet.UNet.size_multiple
  minimum: ClassVar = {'base_width': 1, 'hidden': 1, 'slices': 3}

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    b, y, x, slices = image.shape
    # The slices become examples of the batch.
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
    logits = layers.Conv(1, 1, dtype=dtype, name='classifier')(states)
    return {'logits': layers.at_least_float32(logits)}
