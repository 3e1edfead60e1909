"""ADDN (2018): an adversarially trained U-Net of dense, dilated blocks."""

from typing import ClassVar

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips

# Downsamplings in the generator; the discriminator has one more.
DEPTH = 3
# Dilations of a dense block's convolutions.
DILATIONS = (1, 2, 4)


class DenseBlock(nn.Module):
  """Dilated convolutions, each of which reads all earlier outputs.

  Each is BatchNorm, ReLU and a 3x3 convolution to `growth` channels. A 1x1
  convolution reduces all outputs and the input to `features` channels.
  """

  features: int
  growth: int
  dtype: layers.Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, c]` to `[b, y, x, features]`."""
    for i, dilation in enumerate(DILATIONS, start=1):
      y = layers.batch_norm(f'norm_{i}', train, self.dtype, self.axis_name)(x)
      y = layers.Conv(
        self.growth, dilation=dilation, dtype=self.dtype, name=f'conv_{i}'
      )(nn.relu(y))
      x = jnp.concatenate([x, y], -1)
    x = layers.batch_norm('norm', train, self.dtype, self.axis_name)(x)
    x = nn.relu(x)
    return layers.Conv(self.features, 1, dtype=self.dtype, name='merge')(x)


class Generator(nn.Module):
  """A U-Net whose levels are dense blocks, each as wide as its growth."""

  long_skips: bool
  base_width: int
  dtype: layers.Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, image: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, 1]` to logits, `[b, y, x, 1]` float32."""

    def block(name, x, width):
      make = DenseBlock(width, width, self.dtype, self.axis_name, name=name)
      return make(x, train)

    x = layers.Conv(self.base_width, dtype=self.dtype, name='first')(image)
    down = []
    for i in range(DEPTH + 1):
      x = block(f'down_{i}', x, self.base_width * 2**i)
      if i < DEPTH:
        down.append(x)
        x = layers.max_pool(x)
    for i in reversed(range(DEPTH)):
      width = self.base_width * 2**i
      x = layers.ConvTranspose(width, dtype=self.dtype, name=f'up_{i}_up')(x)
      if self.long_skips:
        x = skips.LongConcatenation(name=f'long_skip_{i}')(x, down[i])
      x = block(f'up_{i}', x, width)
    x = layers.Conv(1, 1, dtype=self.dtype, name='classifier')(x)
    return layers.at_least_float32(x)


class Discriminator(nn.Module):
  """Classifies patches of a segmentation: label or prediction?

  Strided 3x3 convolutions with LeakyReLU(0.2). Without BatchNorm, the logits of
  an example do not depend on the other examples of the batch.
  """

  width: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, inside: jax.Array) -> jax.Array:
    """Maps `[b, y, x, 1]` twice to logits `[b, y / 16, x / 16, 1]` float32.

    The image is normalised; `inside` is the segmentation, in 0..1.
    """
    x = jnp.concatenate([image, inside], -1)
    for i in range(DEPTH + 1):
      width = self.width * 2**i
      x = layers.Conv(width, strides=2, dtype=self.dtype, name=f'conv_{i}')(x)
      x = nn.leaky_relu(x, 0.2)
    x = layers.Conv(1, 1, dtype=self.dtype, name='classifier')(x)
    return layers.at_least_float32(x)


class ADDN(network.Network):
  """A generator that segments, and a discriminator of its segmentations.

  With labels, one backward pass trains both: stopped gradients separate their
  losses. Widths are not published: these give 8,994,058 parameters, the paper
  quotes 8.9 M. Tables of layers show the generator.

  Attributes:
    long_skips: concatenations in the generator.
    base_width: channels of the generator's first level.
    discriminator_width: channels of the discriminator's first level. Each next
      level has twice as many channels as the one before.
    use_running_average: False: a prediction uses the BatchNorm statistics of
      each image alone.
  """

  long_skips: bool = True
  base_width: int = 36
  discriminator_width: int = 64
  use_running_average: bool = True
  adversarial = True
  size_multiple = 2 ** (DEPTH + 1)
  minimum: ClassVar = {'base_width': 1, 'discriminator_width': 1}

  @network.normalising
  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    train: bool,
    sample: bool = False,
    label: jax.Array | None = None,
  ) -> network.Outputs:
    """See `Network`.

    With labels, `judged` has the discriminator's logits `[b, y / 16, x / 16,
    1]`: `real` of the labels; `fake` of the prediction, whose gradient reaches
    only the discriminator; `fooled`, equal to `fake`, whose gradient reaches
    only the generator.
    """
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    logits = Generator(
      self.long_skips, self.base_width, dtype, self.axis_name, name='generator'
    )(image, train)
    outputs: network.Outputs = {'logits': logits}
    if label is None and not self.is_initializing():
      return outputs
    inside = nn.sigmoid(logits)
    fields = self.discriminator_width, dtype
    discriminator = Discriminator(*fields, name='discriminator')
    fake = discriminator(image, lax.stop_gradient(inside))
    if label is not None:
      real = discriminator(image, label)
      frozen = lax.stop_gradient(discriminator.variables)
      fooled = Discriminator(*fields, parent=None).apply(frozen, image, inside)
      assert isinstance(fooled, jax.Array)  # Nothing is mutable.
      outputs['judged'] = {'fake': fake, 'real': real, 'fooled': fooled}
    return outputs
