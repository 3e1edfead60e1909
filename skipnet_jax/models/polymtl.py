"""PolyMtl (Drozdzal et al. 2018): a learned normalisation before FC-ResNet."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from skipnet_jax.models import fc_resnet
from skipnet_jax.models import network
from skipnet_jax.models import unet


class PolyMtl(network.Network):
  """A small U-Net normalises the image, and FC-ResNet segments its output.

  The loss of the segmentation trains both.

  Attributes:
    short_skips: shortcut sums around each block of FC-ResNet.
    long_skips: long skips of both networks.
    dropout: rate on every residual path of FC-ResNet.
    base_width: inner width of its down_3, and width of its outermost stages.
    blocks: kind of its blocks, as in `fc_resnet`.
    repetitions: number of its blocks, as in `fc_resnet`.
    normaliser_width: channels of the U-Net's first level.
    use_running_average: False: a prediction uses the BatchNorm statistics of
      each image alone.
  """

  short_skips: bool = True
  long_skips: bool = True
  dropout: float = 0.1
  base_width: int = 32
  blocks: str = 'bottleneck'
  repetitions: tuple[int, ...] = (3, 8, 10, 3, 10, 8, 3)
  normaliser_width: int = 16
  use_running_average: bool = True
  normalises = True
  size_multiple = fc_resnet.FCResNet.size_multiple
  minimum: ClassVar = {'normaliser_width': 1}

  def check(self) -> None:
    """Raises InputError for a field value that the network does not allow."""
    super().check()
    fc_resnet.FCResNet(**segmenter_fields(self), parent=None).check()

  @network.normalising
  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`; `normalised` is the input of FC-ResNet."""
    self.check_size(image.shape[1:3])
    normaliser = unet.UNet(**normaliser_fields(self), name='normaliser')
    image = normaliser(image, train, sample)['logits']
    segmenter = fc_resnet.FCResNet(**segmenter_fields(self), name='segmenter')
    return segmenter(image, train, sample) | {'normalised': image}


def normaliser_fields(model: PolyMtl) -> dict[str, Any]:
  """The fields of the model's `unet.UNet`."""
  return {
    'long_skips': model.long_skips,
    'dropout': 0.0,
    'base_width': model.normaliser_width,
    'dtype': model.dtype,
    'axis_name': model.axis_name,
  }


def segmenter_fields(model: PolyMtl) -> dict[str, Any]:
  """The fields of the model's `fc_resnet.FCResNet`."""
  names = {f.name for f in network.fields(PolyMtl)} - {'normaliser_width'}
  return {name: getattr(model, name) for name in (*names, 'axis_name')}
