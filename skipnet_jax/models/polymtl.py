"""PolyMtl (Drozdzal et al. 2018): a learned normalisation before FC-ResNet."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from skipnet_jax.models import fc_resnet
from skipnet_jax.models import network
from skipnet_jax.models import unet


class PolyMtl(network.Network):
  """A small U-Net makes the image that FC-ResNet then segments.

  Both are trained together, by the loss of the segmentation alone.

  Attributes:
    short_skips: of FC-ResNet.
    long_skips: of both.
    dropout: of FC-ResNet.
    base_width: of FC-ResNet, see `fc_resnet.FCResNet`.
    blocks: of FC-ResNet.
    repetitions: of FC-ResNet.
    normaliser_width: channels of the small U-Net's first level.
  """

  short_skips: bool = True
  long_skips: bool = True
  dropout: float = 0.1
  base_width: int = 32
  blocks: str = 'bottleneck'
  repetitions: tuple[int, ...] = (3, 8, 10, 3, 10, 8, 3)
  normaliser_width: int = 16
  # Its outputs have an image of their own, which samples show.
  normalises = True
  size_multiple = fc_resnet.FCResNet.size_multiple
  least: ClassVar = {'normaliser_width': 1}

  def check(self) -> None:
    """Raises InputError for a setting that no network can be built from."""
    super().check()
    fc_resnet.FCResNet(**segmenter_fields(self), parent=None).check()

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`; `normalised` is what FC-ResNet is given."""
    self.check_size(image.shape[1:3])
    normaliser = unet.UNet(**normaliser_fields(self), name='normaliser')
    # One channel: the difference of the U-Net's two.
    image = normaliser(image, train, sample)['logits']
    segmenter = fc_resnet.FCResNet(**segmenter_fields(self), name='segmenter')
    return segmenter(image, train, sample) | {'normalised': image}


def normaliser_fields(model: PolyMtl) -> dict[str, Any]:
  """Of its `unet.UNet`."""
  return {
    'long_skips': model.long_skips,
    'dropout': 0.0,
    'base_width': model.normaliser_width,
    'dtype': model.dtype,
    'axis_name': model.axis_name,
  }


def segmenter_fields(model: PolyMtl) -> dict[str, Any]:
  """Of its `fc_resnet.FCResNet`."""
  return {
    name: getattr(model, name)
    for name in (
      'short_skips',
      'long_skips',
      'dropout',
      'base_width',
      'blocks',
      'repetitions',
      'dtype',
      'axis_name',
    )
  }
