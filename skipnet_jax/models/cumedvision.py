"""CUMedVision (Chen et al. 2016, Deep contextual networks)."""

import functools
import operator
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import vgg


class CUMedVision(network.Network):
  """A VGG-like path whose three lower levels are each upsampled to full size.

  Transposed convolutions of strides 2, 4 and 8, with kernels of twice that
  size, give two classes each. The prediction is the sum of the three branches,
  and each branch is an auxiliary output. There are no skip connections.

  Attributes:
    base_width: channels of the first level; the last has 8 times as many.
  """

  base_width: int = 64
  size_multiple = vgg.SIZE_MULTIPLE
  minimum: ClassVar = {'base_width': 1}

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`; `auxiliary` has the branches.

    A branch is the difference of two channels: its sigmoid is their softmax.
    """
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    levels = vgg.Trunk(self.base_width, dtype, name='trunk')(image)
    branches = {}
    for level, x in enumerate(levels[1:], start=1):
      stride = 2**level
      x = layers.ConvTranspose(
        2, 2 * stride, stride, dtype=dtype, name=f'branch_{level}_up'
      )(x)
      x = layers.at_least_float32(x)
      branches[f'branch_{level}'] = x[..., 1:] - x[..., :1]
    logits = functools.reduce(operator.add, branches.values())
    return {'logits': logits, 'auxiliary': branches}
