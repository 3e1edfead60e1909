"""The systems, one row each: what the tests of all of them must know of one."""

import dataclasses
from typing import Any

from skipnet_jax.models import clmser

BOTH, LONG = ('long', 'short'), ('long',)
_BARE = {'long_skips': False, 'short_skips': False}


@dataclasses.dataclass(frozen=True)
class System:
  """A row.

  Attributes:
    small: fields of a network compiled in seconds.
    skips: which kinds it has, and has a switch for.
    counts: parameters of each preset whose network is of full width.
    described: the end of what `--describe` says of the first of them, where it
      is more than the count.
    switches: fields with which its PyTorch twin is compared by shapes.
    agreement: fields and loss with which it is compared by numbers.
  """

  small: dict[str, Any]
  skips: tuple[str, ...]
  counts: dict[str, int]
  described: str = ''
  switches: tuple[dict[str, Any], ...] = ({},)
  agreement: tuple[tuple[dict[str, Any], str], ...] = (({}, 'bce'),)

  def sentence(self) -> str:
    """What `--describe` says of the paper preset's parameters."""
    return self.described or f'{self.counts["paper"]:,}'


SYSTEMS = {
  'fc_resnet': System(
    {'base_width': 2, 'blocks': 'simple', 'repetitions': (1,) * 7},
    BOTH,
    {'paper': 11_451_745},
    switches=({}, {'slices': 3}),
    agreement=(),  # Compared at length on its own.
  ),
  'f_clmser_s': System(
    {'base_width': 2, 'pad': 0},
    BOTH,
    {
      'paper': 8_308_941,
      'clmser_w': 8_293_704,
      'cg': 8_306_178,
      'cg_pg': 8_306_205,
      'cg_full_pg': 8_306_223,
      'budget': 8_308_941,
    },
    switches=(
      *({'gates': gates} for gates in clmser.VARIANTS),
      {'deconv_kernel': 3, 'short_skips': False},
      {'long_skips': False},
    ),
    agreement=(
      ({'pad': 32, 'gamma': 2}, 'smooth_l1'),
      (
        {'gates': 'cg+full_pg', 'deconv_kernel': 3, 'short_skips': False},
        'bce',
      ),
      ({'long_skips': False}, 'smooth_l1'),
    ),
  ),
  'unet': System(
    {'base_width': 2, 'padding': 'SAME'},
    LONG,
    {
      'paper': 31_030_658,
      'same': 31_030_658,
      # PAPERS: 34.5 M, and 5 of the 9 weights of a transposed kernel more.
      'gpu_benchmark': 31_030_658 + 5 * (1024 + 256 + 64 + 16) * 512,
    },
    switches=(
      {},
      {'up_kernel': 3, 'padding': 'VALID'},
      {'long_skips': False},
    ),
    agreement=(
      ({'dropout': 0.3}, 'bce'),
      ({'padding': 'VALID', 'up_kernel': 3}, 'bce'),
      ({'long_skips': False}, 'smooth_l1'),
    ),
  ),
  'fusionnet': System(
    {'base_width': 2},
    BOTH,
    {'paper': 78_531_137},
    switches=({}, _BARE),
    agreement=(({}, 'bce'), (_BARE, 'bce')),
  ),
  'polymtl': System(
    {
      'base_width': 2,
      'blocks': 'simple',
      'repetitions': (1,) * 7,
      'normaliser_width': 2,
    },
    BOTH,
    {'paper': 13_392_579, 'budget': 13_392_579},
    switches=({'normaliser_width': 2},),
    agreement=(({'dropout': 0.3}, 'dice'),),
  ),
  'cumedvision': System({'base_width': 2}, (), {'paper': 7_933_126}),
  'm2fcn': System(
    {'base_width': 2, 'stages': 2},
    (),
    {'paper': 5_732_820},
    agreement=(({}, 'bce_dice'),),
  ),
  'fcn_lstm': System(
    {'base_width': 2, 'hidden': 2},
    LONG,
    # Two layers of LSTMs more than in 16,761,761.
    {'paper': 16_761_761 + 2 * 2 * (25 * (128 + 64) + 1) * 4 * 64},
    switches=({'hidden': 3}, {'long_skips': False, 'lstm_layers': 1}),
  ),
  'addn': System(
    {'base_width': 2, 'discriminator_width': 4},
    LONG,
    {'paper': 8_994_058},
    # 1,550,913 of them the discriminator's.
    described='1,550,913 parameters more, 8,994,058',
    switches=({}, {'long_skips': False}),
    agreement=(({}, 'dice'),),
  ),
  'sfcnn': System(
    {'base_width': 1, 'kernel_size': 3},
    LONG,
    {'paper': 2_810_001},
    switches=({}, {'long_skips': False, 'kernel_size': 3}),
    agreement=(
      ({}, 'bce'),
      ({'long_skips': False, 'kernel_size': 5}, 'bce'),
    ),
  ),
}
# The experiment of each system alone, by the system's name.
EXPERIMENTS = {name: name for name in SYSTEMS} | {'fc_resnet': 'long_short'}
