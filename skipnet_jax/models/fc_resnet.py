"""FC-ResNet with long and short skips (Drozdzal et al. 2016, Table 1)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.models import blocks
from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips

# The seven main stages in forward order; a stage's inner width is the base
# width times two to the power given here.
MAIN_STAGES = {
  'down_3': 0,
  'down_4': 1,
  'down_5': 2,
  'across': 3,
  'up_1': 2,
  'up_2': 1,
  'up_3': 0,
}


# To trace more blocks takes hours.
MOST_REPETITIONS = 1000


def unroll(variables: dict[str, Any]) -> dict[str, Any]:
  """Converts an `FCResNet`'s variables to those of the network without scans.

  Variables without scanned stages stay as they are.
  """

  def stage(tree):
    stacked = tree.get('blocks')
    if stacked is None:
      return tree
    rest = {name: leaf for name, leaf in tree.items() if name != 'blocks'}
    length = jax.tree.leaves(stacked)[0].shape[0]
    return rest | {
      f'block_{i + 2}': jax.tree.map(lambda x: x[i], stacked)
      for i in range(length)
    }

  return {
    collection: {name: stage(tree) for name, tree in stages.items()}
    for collection, stages in variables.items()
  }


class Stage(nn.Module):
  """A sequence of equal blocks; the first may downsample, the last upsample.

  With `scan`, the blocks between the first and the last are one scan, `blocks`,
  whose variables have a leading axis over the blocks: see `unroll`.

  Attributes:
    kind: a key of `blocks.BLOCKS`.
    repetitions: number of blocks.
    down: whether the first block halves the resolution.
    up: whether the last block doubles it.
    block: attributes of every block.
  """

  kind: str
  features: int
  repetitions: int
  down: bool
  up: bool
  scan: bool
  block: dict

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, drop: bool) -> jax.Array:
    """Maps `[b, y, x, c]` to `[b, y', x', features]`."""
    make, _ = blocks.BLOCKS[self.kind]
    # A single block cannot both downsample and upsample.
    repetitions = max(self.repetitions, self.down + self.up)

    def block(i, name=''):
      resample = 'none'
      if self.down and i == 1:
        resample = 'down'
      elif self.up and i == repetitions:
        resample = 'up'
      name = name or f'block_{i}'
      return make(self.features, resample, **self.block, name=name)

    def body(module, x, _):
      return module(x, train, drop), None

    order = range(1, repetitions + 1)
    x = block(1)(x, train, drop)
    if self.scan and repetitions > 3:
      x, _ = nn.scan(
        body,
        variable_axes={'params': 0, 'batch_stats': 0},
        split_rngs={'params': True, 'dropout': True},
        length=repetitions - 2,
      )(block(2, 'blocks'), x, None)
      order = order[-2:]
    for i in order[1:]:
      x = block(i)(x, train, drop)
    return x


class FCResNet(network.Network):
  """The FC-ResNet of Table 1, of 140 convolutions, and its variants.

  Attributes:
    short_skips: shortcut sums around each block.
    long_skips: sums from the contracting to the expanding path.
    batch_norm: BatchNorm before each ReLU.
    dropout: rate on every residual path.
    base_width: inner width of down_3, and width of the outermost stages.
    blocks: kind of block in the seven main stages, 'simple', 'basic' or
      'bottleneck', or seven kinds separated by commas.
    repetitions: blocks in down_3, down_4, down_5, across, up_1, up_2, up_3.
      `across` has at least two, one to downsample and one to upsample.
    long_skip_projection: 'decoder' projects the expanding side to the
      contracting side's width; 'both' projects each side that is wider than the
      stage's inner width to that.
    slices: number of neighbouring slices in an image, as channels; odd.
    scan: whether to compile the equal blocks of a stage once, as a scan over
      their stacked parameters; useful for hundreds of layers.
    use_running_average: False: a prediction uses the BatchNorm statistics of
      each image alone.
  """

  short_skips: bool = True
  long_skips: bool = True
  batch_norm: bool = True
  dropout: float = 0.1
  base_width: int = 32
  blocks: str = 'bottleneck'
  repetitions: tuple[int, ...] = (3, 8, 10, 3, 10, 8, 3)
  long_skip_projection: str = 'decoder'
  slices: int = 1
  scan: bool = False
  use_running_average: bool = True
  # Five downsamplings: in down_2 to down_5 and in `across`.
  size_multiple = 32
  minimum: ClassVar = {'base_width': 1}
  choices: ClassVar = {'long_skip_projection': ('decoder', 'both')}

  def check(self) -> None:
    """Raises InputError for a field value that the network does not allow."""
    super().check()
    count = len(MAIN_STAGES)
    for kind in self.kinds():
      if kind not in blocks.BLOCKS:
        raise errors.InputError(
          f'model.blocks names the unknown block kind {kind!r}: '
          f'{config_lib.nearest(kind, list(blocks.BLOCKS))}'
        )
    if len(self.kinds()) != count:
      raise errors.InputError(
        f'model.blocks names {len(self.kinds())} kinds; give one, or one for '
        f'each of the {count} stages {", ".join(MAIN_STAGES)}.'
      )
    if len(self.repetitions) != count or not all(
      isinstance(number, int) and 1 <= number <= MOST_REPETITIONS
      for number in self.repetitions
    ):
      raise errors.InputError(
        f'model.repetitions is {config_checks.short(self.repetitions)}; give '
        f'{count} numbers of at least 1 and at most {MOST_REPETITIONS}, '
        f'for {", ".join(MAIN_STAGES)}.'
      )

  def kinds(self) -> list[str]:
    """Block kind of each main stage."""
    kinds = [kind.strip() for kind in self.blocks.split(',')]
    return kinds * len(MAIN_STAGES) if len(kinds) == 1 else kinds

  @network.normalising
  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> network.Outputs:
    """See `Network`."""
    self.check_size(image.shape[1:3])
    dtype = jnp.dtype(self.dtype)
    block = dict(
      short_skip=self.short_skips,
      batch_norm=self.batch_norm,
      dropout=self.dropout,
      dtype=dtype,
      axis_name=self.axis_name,
    )
    base = self.base_width
    kinds = dict(zip(MAIN_STAGES, self.kinds(), strict=True))
    repetitions = dict(zip(MAIN_STAGES, self.repetitions, strict=True))

    def stage(name, x, down=False, up=False):
      kind, count = kinds.get(name, 'simple'), repetitions.get(name, 1)
      width = base * 2 ** MAIN_STAGES.get(name, 0) * blocks.BLOCKS[kind][1]
      make = Stage(kind, width, count, down, up, self.scan, block, name=name)
      return make(x, train, train or sample)

    def join(name, x, encoder, power=0):
      if not self.long_skips:
        return x
      return skips.LongSkip(
        self.long_skip_projection,
        base * 2**power,
        dtype,
        name=f'long_skip_{name}',
      )(x, encoder)

    down_1 = layers.Conv(base, dtype=dtype, name='down_1')(image)
    down_2 = stage('down_2', down_1, down=True)
    down_3 = stage('down_3', down_2, down=True)
    down_4 = stage('down_4', down_3, down=True)
    down_5 = stage('down_5', down_4, down=True)
    x = stage('across', down_5, down=True, up=True)
    x = stage('up_1', join('up_1', x, down_5, 2), up=True)
    x = stage('up_2', join('up_2', x, down_4, 1), up=True)
    x = stage('up_3', join('up_3', x, down_3), up=True)
    # The upsampling at the end of up_4 is part of the convolution up_5.
    x = stage('up_4', join('up_4', x, down_2))
    x = layers.Conv(base, upsampled=True, dtype=dtype, name='up_5')(x)
    x = join('up_5', x, down_1)
    return {'logits': layers.at_least_float32(self._head(x, train))}

  def _head(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps the last features to logits `[b, y, x, 1]`."""
    dtype = jnp.dtype(self.dtype)
    if self.batch_norm:
      x = layers.batch_norm('norm', train, dtype, self.axis_name)(x)
    return layers.Conv(1, 1, dtype=dtype, name='classifier')(nn.relu(x))
