"""A convolutional LSTM (Shi et al. 2015), and one of both directions."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers

GATES = 4  # input, forget, candidate, output: in this order in the kernel


class ConvLSTM(nn.Module):
  """One direction: its gates are convolutions of input and hidden state.

  `c' = f c + i g`, `h' = o tanh(c')`, with i, f and o sigmoids and g a tanh of
  one convolution with bias; no peepholes. The forget gate's bias begins at 1.

  Attributes:
    features: hidden channels.
    kernel_size: side of the kernel, in pixels.
    dtype: compute dtype of the convolution; the state is float32.
  """

  features: int
  kernel_size: int = 5
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, sequence: Sequence[jax.Array]) -> list[jax.Array]:
    """Maps slices `[b, y, x, c]` to the hidden state after each of them.

    Each is `[b, y, x, features]` float32; the first slice meets zeros.
    """
    convolve = layers.Conv(
      GATES * self.features,
      self.kernel_size,
      kernel_init=nn.initializers.lecun_normal(),
      dtype=self.dtype,
      name='gates',
    )
    shape = (*sequence[0].shape[:3], self.features)
    cell = hidden = layers.wide(jnp.zeros(shape, self.dtype))
    found = []
    for x in sequence:
      both = jnp.concatenate([layers.wide(x), hidden], -1)
      z = layers.wide(convolve(both))
      i, f, g, o = jnp.split(z, GATES, -1)
      cell = nn.sigmoid(f + 1) * cell + nn.sigmoid(i) * jnp.tanh(g)
      hidden = nn.sigmoid(o) * jnp.tanh(cell)
      found.append(hidden)
    return found


class Bidirectional(nn.Module):
  """Two of them, which meet in the middle slice from either end.

  Attributes:
    features: hidden channels of each.
    kernel_size: side of the kernels, in pixels.
    dtype: compute dtype of the convolutions.
  """

  features: int
  kernel_size: int = 5
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, sequence: Sequence[jax.Array]) -> jax.Array:
    """Maps slices `[b, y, x, c]` to the middle's `[b, y, x, 2 features]`."""

    def run(name, slices):
      lstm = ConvLSTM(self.features, self.kernel_size, self.dtype, name=name)
      return lstm(slices)[-1]

    middle = len(sequence) // 2
    up = run('up', sequence[: middle + 1])
    down = run('down', sequence[middle:][::-1])
    return jnp.concatenate([up, down], -1)
