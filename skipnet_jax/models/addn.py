"""ADDN (2018): an adversarially trained U-Net of dense, dilated blocks."""

from typing import ClassVar

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips

# Halvings of the generator; the discriminator has one more.
DEPTH = 3
# Of a dense block's convolutions.
DILATIONS = (1, 2, 4)


class DenseBlock(nn.Module):
  """Dilated convolutions, each of which sees all that came before it.

  BatchNorm, ReLU, 3x3 convolution to `growth` channels, with the dilations 1, 2
  and 4; a 1x1 convolution of all of it to `features`.

  Attributes:
    features: output channels.
    growth: what each convolution adds.
    dtype: compute dtype.
    axis_name: mapped axis of a pmapped call, or None.
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
  """A U-Net whose levels are dense blocks.

  Attributes:
    long_skips: concatenations from the contracting to the expanding path.
    base_width: channels of the first level; each has twice as many as the one
      before, and its block grows by as many.
    dtype: compute dtype.
    axis_name: mapped axis of a pmapped call, or None.
  """

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
    return layers.wide(x)


class Discriminator(nn.Module):
  """Judges patches of an image and its map: is the map from the labels?

  Strided 3x3 convolutions with LeakyReLU(0.2), no BatchNorm, so that a
  judgement does not depend on what else is in the batch.

  Attributes:
    width: channels after the first halving; each has twice as many as the one
      before.
    dtype: compute dtype.
  """

  width: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, inside: jax.Array) -> jax.Array:
    """Maps `[b, y, x, 1]` twice to logits `[b, y / 16, x / 16, 1]` float32.

    Args:
      image: normalised.
      inside: the map, in 0..1.
    """
    x = jnp.concatenate([image, inside], -1)
    for i in range(DEPTH + 1):
      width = self.width * 2**i
      x = layers.Conv(width, strides=2, dtype=self.dtype, name=f'conv_{i}')(x)
      x = nn.leaky_relu(x, 0.2)
    x = layers.Conv(1, 1, dtype=self.dtype, name='classifier')(x)
    return layers.wide(x)


class ADDN(network.Network):
  """A generator that segments, and a discriminator that judges its maps.

  Given labels, the discriminator judges both; the losses' gradients are kept
  apart by where they are stopped, so that one backward pass serves both. Widths
  are not published: these give 8,994,058 parameters, 8.9 M are quoted. Tables
  of layers show the generator.

  Attributes:
    long_skips: the generator's.
    base_width: channels of its first level.
    discriminator_width: channels of the discriminator's first level.
  """

  long_skips: bool = True
  base_width: int = 36
  discriminator_width: int = 64
  # A training step gives such a model the labels too.
  adversarial = True
  size_multiple = 2 ** (DEPTH + 1)
  least: ClassVar = {'base_width': 1, 'discriminator_width': 1}

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    train: bool,
    sample: bool = False,
    label: jax.Array | None = None,
  ) -> network.Outputs:
    """See `Network`.

    With labels also `judged`: logits of the discriminator `[b, y / 16, x / 16,
    1]` of the labels (`real`), of the prediction (`fake`), whose gradient
    reaches the discriminator alone, and of it again (`fooled`), whose gradient
    reaches the generator alone.
    """
    del sample
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    logits = Generator(
      self.long_skips, self.base_width, dtype, self.axis_name, name='generator'
    )(image, train)
    outputs: network.Outputs = {'logits': logits}
    if label is None and not self.is_initializing():
      return outputs
    fake = nn.sigmoid(logits)
    fields = self.discriminator_width, dtype
    discriminator = Discriminator(*fields, name='discriminator')
    judged = {'fake': discriminator(image, lax.stop_gradient(fake))}
    if label is not None:
      judged['real'] = discriminator(image, label)
      frozen = lax.stop_gradient(discriminator.variables)
      fooled = Discriminator(*fields, parent=None).apply(frozen, image, fake)
      assert not isinstance(fooled, tuple)  # With what is mutable: nothing.
      judged['fooled'] = fooled
      outputs['judged'] = judged
    return outputs
