"""F-CLmser-S: gated long skips (Guo et al. 2019), and its ablations."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax import errors
from skipnet_jax.models import gates as gates_lib
from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import norms
from skipnet_jax.models import post_activation
from skipnet_jax.models import skips

# The variants of the paper's Table 1: 'cg' are channel gates, 'pg' pixel gates,
# 'full_pg' pixel gates at full resolution too, 'gm' confidence masks there.
VARIANTS = ('none', 'cg', 'cg+pg', 'cg+full_pg', 'cg+pg+gm')


def _scale_init(key, shape, dtype=jnp.float32):
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class F_CLmser_S(network.Network):
  """A U-shaped network whose long skips are sums, passed through gates.

  encoder_1 and encoder_2 have full resolution; down_1 to down_4 each halve it,
  and the bridge has 1/32; up_4 to up_1 double it. Long skips start at
  encoder_1, encoder_2 and down_1 to down_3.

  Attributes:
    gates: 'none', 'cg', 'cg+pg', 'cg+full_pg' or 'cg+pg+gm': gates of channels
      (cg), of pixels (pg; full_pg: at full resolution too), and masks of
      confidence (gm).
    gamma: exponent of the confidence masks, 1 to 4 in the paper.
    long_skips: False: no sums, and so no gates.
    short_skips: sums of the residual blocks.
    base_width: channels of encoder_1.
    deconv_kernel: side of the transposed convolutions' kernels: 2 as in the
      authors' code, 3 as in the paper's text.
    use_running_average: False: a prediction uses the BatchNorm statistics of
      each padded image alone, as the authors' code, which never leaves
      training.
    pad: pixels of reflection padding on each side, which the prediction is
      cropped by. 64 in the paper, in training and at test time.
  """

  gates: str = 'cg+pg+gm'
  gamma: int = 3
  long_skips: bool = True
  short_skips: bool = True
  base_width: int = 12
  deconv_kernel: int = 2
  use_running_average: bool = True
  pad: int = 64
  # Five downsamplings: four stages and the bridge.
  size_multiple = 32
  minimum: ClassVar = {'gamma': 1, 'base_width': 2, 'pad': 0}
  maximum: ClassVar = {'gamma': 100, 'pad': 1024}
  choices: ClassVar = {'gates': VARIANTS, 'deconv_kernel': (2, 3)}

  def check(self) -> None:
    """Raises InputError for a field value that the network does not allow."""
    super().check()
    if self.pad % 32:
      raise errors.InputError(
        f'model.pad is {self.pad}; it must be a multiple of 32: '
        f'{round(self.pad / 32) * 32} is the nearest.'
      )

  @network.normalising
  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`.

    The paper's tanh gets half of these logits, so that (tanh + 1) / 2 is their
    sigmoid.
    """
    size = image.shape[1:3]
    self.check_size(size)
    dtype, d = jnp.dtype(self.dtype), self.base_width
    kernel = dict(
      use_bias=False, kernel_init=gates_lib.KERNEL_INIT, dtype=dtype
    )
    settings = dict(
      **kernel,
      scale_init=_scale_init,
      make_norm=norms.UnbiasedBatchNorm,
      axis_name=self.axis_name,
    )
    gates = self.gates.split('+') if self.long_skips else []
    channel_gate, pixel_gate = gates_lib.ChannelGate, gates_lib.PixelGate

    def norm(name, x, features):
      return post_activation.ConvNorm(features, **settings, name=name)(x, train)

    def stage(name, x, features):
      """A convolution and a residual block, `name_conv` and `name`."""
      return post_activation.ResidualBlock(
        2, self.short_skips, True, settings, name=name
      )(norm(f'{name}_conv', x, features), train)

    def conv(name, x, features):
      return layers.Conv(features, **kernel, name=name)(x)

    def double(name, x, features):
      make = layers.ConvTranspose(
        features, self.deconv_kernel, **kernel, name=name
      )
      return nn.leaky_relu(make(x), 0.01)

    def gate(make, name, x, *kinds):
      return make(dtype, name=name)(x) if set(kinds) & set(gates) else x

    def join(name, x, skip):
      make = skips.LongSkip(dtype=dtype, name=f'long_skip_{name}')
      return make(x, skip) if self.long_skips else x

    def mask(name, prediction, x):
      found = gates_lib.ConfidenceMask(
        self.gamma, dtype, name=f'confidence_mask_{name}'
      )(prediction)
      return x * layers.spread(found, x)

    x = layers.reflect_pad(image, ((self.pad, self.pad),) * 2)
    encoder_1 = norm('encoder_1', x, d)
    encoder_2 = norm('encoder_2', encoder_1, 2 * d)
    x, down = encoder_2, []
    for i in (1, 2, 3, 4):
      x = stage(f'down_{i}', layers.max_pool(x), 2 ** (i + 1) * d)
      down.append(x)
    width = x.shape[-1]
    x = nn.relu(conv('bridge_conv', layers.max_pool(x), width))
    x = double('bridge_up', x, width)

    x = stage('up_4', x, width // 2)
    x = double('up_4_up', x, width // 2)
    for i in (3, 2, 1):
      skip = gate(channel_gate, f'channel_gate_{i}', down[i - 1], 'cg')
      skip = gate(pixel_gate, f'pixel_gate_{i}', skip, 'pg', 'full_pg')
      x = join(f'down_{i}', x, skip)
      x = stage(f'up_{i}', x, 2**i * d)
      if i > 1:
        x = double(f'up_{i}_up', x, 2**i * d)

    full = double('up_1_up', x, 2 * d)
    if 'gm' in gates:
      encoder_2 = mask('2', double('confidence_up', x, 2 * d), encoder_2)
    encoder_2 = gate(pixel_gate, 'pixel_gate_encoder_2', encoder_2, 'full_pg')
    x = join('encoder_2', full, encoder_2)
    if 'gm' in gates:
      encoder_1 = mask('1', x, encoder_1)
    encoder_1 = gate(pixel_gate, 'pixel_gate_encoder_1', encoder_1, 'full_pg')
    x = norm('last_conv', x, d)
    x = join('encoder_1', x, encoder_1)
    x = conv('classifier', x, 1)
    logits = layers.at_least_float32(layers.centre_crop(x, size))
    return {'logits': 2 * logits}
