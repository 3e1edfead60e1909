"""A convolutional LSTM (Shi et al. 2015), in one direction and in both."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers

GATES = 4  # Input, forget, candidate, output, in this order in the kernel.


class ConvLSTM(nn.Module):
  """One direction: its gates are convolutions of input and hidden state.

  `c' = f c + i g`, `h' = o tanh(c')`, where i, f and o are sigmoids and g is a
  tanh of one convolution with bias. There are no peepholes. The bias of the
  forget gate starts at 1. The state is float32.

  Attributes:
    features: hidden channels.
    kernel_size: side of the kernel, in pixels.
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
  """Two ConvLSTMs, one from each end of the stack to the middle slice.

  Attributes:
    features: hidden channels of each.
    kernel_size: side of the kernels, in pixels.
  """

  features: int
  kernel_size: int = 5
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, sequence: Sequence[jax.Array]) -> jax.Array:
    """Maps slices `[b, y, x, c]` to `[b, y, x, 2 features]` of the middle."""

    def run(name, slices):
      lstm = ConvLSTM(self.features, self.kernel_size, self.dtype, name=name)
      return lstm(slices)[-1]

    middle = len(sequence) // 2
    up = run('up', sequence[: middle + 1])
    down = run('down', sequence[middle:][::-1])
    return jnp.concatenate([up, down], -1)
