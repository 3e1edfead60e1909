"""FCN+LSTM (Chen et al. 2016): a U-Net at two scales, then an LSTM over z."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import unet

GATES = 4  # Input, forget, candidate, output, in this order in the kernel.


class ConvLSTM(nn.Module):
  """A convolutional LSTM (Shi et al. 2015): its gates are convolutions.

  `c' = f c + i g`, `h' = o tanh(c')`, where i, f and o are sigmoids and g is a
  tanh of one convolution with bias. There are no peepholes. The bias of the
  forget gate starts at 1.
  """

  features: int
  kernel_size: int = 5
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, sequence: Sequence[jax.Array]) -> list[jax.Array]:
    """Maps slices `[b, y, x, c]` to the hidden state after each of them.

    A state is `[b, y, x, features]` float32; the initial state is zero.
    """
    convolve = layers.Conv(
      GATES * self.features,
      self.kernel_size,
      kernel_init=nn.initializers.lecun_normal(),
      dtype=self.dtype,
      name='gates',
    )
    shape = (*sequence[0].shape[:3], self.features)
    cell = hidden = layers.at_least_float32(jnp.zeros(shape, self.dtype))
    states = []
    for x in sequence:
      both = jnp.concatenate([layers.at_least_float32(x), hidden], -1)
      z = layers.at_least_float32(convolve(both))
      i, f, g, o = jnp.split(z, GATES, -1)
      cell = nn.sigmoid(f + 1) * cell + nn.sigmoid(i) * jnp.tanh(g)
      hidden = nn.sigmoid(o) * jnp.tanh(cell)
      states.append(hidden)
    return states


class Bidirectional(nn.Module):
  """Two ConvLSTMs, one from each end of the stack.

  They end at the middle slice, unless another layer reads `every` slice.
  """

  features: int
  kernel_size: int = 5
  every: bool = False
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, sequence: Sequence[jax.Array]) -> list[jax.Array]:
    """Maps slices `[b, y, x, c]` to `[b, y, x, 2 features]` of each of them.

    Without `every`, to the middle slice's alone.
    """

    def run(name, slices):
      lstm = ConvLSTM(self.features, self.kernel_size, self.dtype, name=name)
      return lstm(slices)

    middle = len(sequence) // 2
    first, last = (0, len(sequence)) if self.every else (middle, middle + 1)
    up = run('up', sequence[:last])[first:]
    down = run('down', sequence[first:][::-1])[::-1][: last - first]
    return [jnp.concatenate(both, -1) for both in zip(up, down, strict=True)]


class Scale(nn.Module):
  """A U-Net without classifier, see `unet.contract_and_expand`."""

  base_width: int
  long_skips: bool
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c]` to `[b, y, x, base_width]`."""
    model = unet.UNet(
      base_width=self.base_width,
      long_skips=self.long_skips,
      dtype=self.dtype,
      parent=None,
    )
    return unet.contract_and_expand(model, x, drop=False)


class FCNLSTM(network.Network):
  """kU-Net features of each slice, then bidirectional ConvLSTMs over slices.

  kU-Net with k = 2: a coarse U-Net reads the image at half size. A transposed
  convolution upsamples its features, which the fine U-Net reads with the image.
  Every layer of the stacked LSTMs reads both directions of the one below. A 1x1
  convolution classifies the last one's states at the middle slice. The widths
  of the U-Nets are not published; the LSTMs have the published 64 channels and
  5x5 kernels.

  Attributes:
    long_skips: concatenations in both U-Nets.
    base_width: channels of their first levels.
    hidden: channels of an LSTM's state in each direction.
    lstm_layers: number of stacked bidirectional LSTMs.
    slices: number of neighbouring slices in an image; odd, at least 3.
  """

  long_skips: bool = True
  base_width: int = 32
  hidden: int = 64
  lstm_layers: int = 3
  slices: int = 3
  size_multiple = 2 * unet.UNet.size_multiple
  minimum: ClassVar = {
    'base_width': 1,
    'hidden': 1,
    'lstm_layers': 1,
    'slices': 3,
  }
  maximum: ClassVar = {'lstm_layers': 100}

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
    scale = (self.base_width, self.long_skips, self.dtype)
    coarse = Scale(*scale, name='coarse')(half)
    coarse = layers.ConvTranspose(
      self.base_width, dtype=dtype, name='coarse_up'
    )(coarse)
    both = jnp.concatenate([pages.astype(dtype), nn.relu(coarse)], -1)
    features = Scale(*scale, name='fine')(both)
    features = features.reshape(b, slices, y, x, -1)
    states = [features[:, z] for z in range(slices)]
    for i in range(1, self.lstm_layers + 1):
      states = Bidirectional(
        self.hidden,
        every=i < self.lstm_layers,
        dtype=dtype,
        name=f'lstm_{i}',
      )(states)
    (middle,) = states
    logits = layers.Conv(1, 1, dtype=dtype, name='classifier')(middle)
    return {'logits': layers.at_least_float32(logits)}
