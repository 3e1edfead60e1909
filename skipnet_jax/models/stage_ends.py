"""The end of a stage of FC-ResNet, in the form that moves fewer bytes.

A bottleneck block upsamples the wide sum of its residual path and its shortcut,
and a 1x1 convolution of the long skip makes it narrow again. Here that is a
product of the small images, and the wide image is never written.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from skipnet_jax.models import blocks
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import layers
from skipnet_jax.models import skips

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Upsampled:
  """`dropout(upsample(main)) + upsample(short)`, not computed.

  Attributes:
    main: the residual path, `[b, y, x, k]`.
    short: the shortcut, of the same shape, or None.
    dropout: what drops units of the upsampled image; of rate 0 if nothing does.
    split: whether results are split, `[b, y, x, 4, k]`, see
      `layers.split_pixels`.
  """

  main: Array
  short: Array | None
  dropout: layers.Dropout
  split: bool = False

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """Of the upsampled image."""
    b, h, w, k = self.main.shape
    return b, 2 * h, 2 * w, k

  def whole(self) -> Array:
    """The upsampled image, `[b, 2y, 2x, k]` or split."""
    y = self.dropout(layers.upsample(self.main), True)
    if self.short is not None:
      y = y + layers.upsample(self.short)
    return layers.split_pixels(y) if self.split else y

  def __add__(self, other: Array) -> Array:
    return self.whole() + other

  def times(self, w: Array, bias: Array) -> Array:
    """Its product with w `[k, n]` plus bias `[n]`, of the shape of `whole`."""
    w = w.astype(self.main.dtype)
    # The four pixels of each small one are the first axis.
    x = jnp.broadcast_to(self.main, (4, *self.main.shape))
    if self.dropout.rate:
      x = layers.dropped(
        x,
        self._units(),
        layers.dropout_layer(self.dropout.path),
        self.dropout.words(),
        self.dropout.rate,
      )
    y = x @ w
    if self.short is not None:
      y = y + jnp.broadcast_to(self.short @ w, y.shape)
    y = y + layers.spread(bias, y)
    y = jnp.moveaxis(y, 0, 3)
    return y if self.split else layers.joined_pixels(y)

  def _units(self) -> Array:
    """The units' numbers, see `layers.Dropout`: `[4, b, y, x, k]`."""
    shape = (4, *self.main.shape)
    pixel, image, y, x, channel = (
      lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(5)
    )
    unit = layers.split_units(self.shape, pixel, image, y, x, channel)
    return unit + self.dropout.first(4 * self.main.size)


def joined_next(module: blocks.BottleneckBlock) -> bool:
  """Whether a long skip takes what a block at the end of a stage gives."""
  stage = module.parent
  network = stage.parent if isinstance(stage, fc_resnet.Stage) else None
  # A subclass may use its stages in another way.
  return type(network) is fc_resnet.FCResNet and network.long_skips


def end(
  module: blocks.BottleneckBlock, main: Array, x: Array, drop: bool
) -> Upsampled:
  """What a block that upsamples gives; `main` is its path before that."""
  skip = skips.ShortSkip('none', module.dtype, name='short_skip')
  return Upsampled(
    main,
    skip.shortcut(x, module.features) if module.short_skip else None,
    layers.Dropout(module.dropout if drop else 0.0, module.axis_name),
  )
