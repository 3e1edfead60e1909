"""How skips carry the updates: Figure 4 and Table 3 (Drozdzal et al. 2016).

Claim:   Figure 4, simple blocks, r repetitions in each main stage: long and
         short skips update all layers evenly; long skips alone starve the
         centre of a deep network (r=9), not of a shallow one (r=3); without
         BatchNorm (r=7) the updates fade towards the centre.
Command: python -m skipnet_jax.gradflow --config=experiments/gradient_flow.py \
           --workdir=runs/gradient_flow
Presets: small (256x256 centre crops, base width 8: within an hour on two CPU
         cores); paper (whole slices, width 32, 500 epochs: a GPU); table_3 (the
         paper's whole network with both kinds of skip or one); smoke.
Expect:  see docs/results.md.
"""

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import models

LONG, SHORT = {'short_skips': False}, {'long_skips': False}
FIGURE_4 = {
  'a_long_short_r9': {'model': {'repetitions': (9,) * 7}},
  'b_long_r9': {'model': {'repetitions': (9,) * 7, **LONG}},
  'c_long_r3': {'model': {'repetitions': (3,) * 7, **LONG}},
  'd_long_r7_no_norm': {
    'model': {'repetitions': (7,) * 7, 'batch_norm': False, **LONG},
    'optim': {'learning_rate': 1e-4},
  },
}
TABLE_3 = {'long_short': {}, 'short': {'model': SHORT}, 'long': {'model': LONG}}
SIMPLE = {'model.blocks': 'simple'}
SMALL = {'model.base_width': 8, 'data.size': 256, 'train.batch_size': 1}
SMOKE = {'model.base_width': 4, 'data.source': 'synthetic', 'data.size': 64}
SMOKE |= {'data.slices': 6, 'data.valid': '4-5', 'train.batch_size': 4}
PRESETS = {
  'small': SIMPLE | SMALL | {'train.epochs': 150, 'log.sample_every': 0},
  'paper': SIMPLE,
  'table_3': {},
  'smoke': SIMPLE | SMOKE | {'train.epochs': 2, 'log.sample_every': 0},
}


def get_config(preset='small'):
  config = config_lib.get_default()
  config.experiment = 'gradient_flow'
  config.model = models.model_config('fc_resnet')
  variants = TABLE_3 if preset == 'table_3' else FIGURE_4
  config.log.critical_sharpness = preset != 'smoke'
  config.variants = ml_collections.ConfigDict(variants)
  return config_lib.pick_preset(config, preset, PRESETS)
