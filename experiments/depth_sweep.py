"""How deep each variant trains: 19 to 999 convolutions of simple blocks.

Claim:   short skips keep very deep networks trainable; long skips alone do not
         (section 3.4, Drozdzal et al. 2016, at depths beyond the paper's 140).
Command: python -m skipnet_jax.gradflow --config=experiments/depth_sweep.py \
           --workdir=runs/depth_sweep
Presets: small (base width 8, 64x64 centre crops, batch 1, 300 steps: half an
         hour on two CPU cores); paper (width 32, 256x256, batch 5, 500 steps: a
         GPU); smoke (3 steps at two depths).
Expect:  see docs/results.md.
"""

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import models

VARIANTS = {
  'long_short': {},
  'long_only': {'model': {'short_skips': False}},
  'short_only': {'model': {'long_skips': False}},
  'no_skips': {'model': {'short_skips': False, 'long_skips': False}},
}
# 7 r + 5 convolutions on the main path.
DEPTHS = {'repetitions': (2, 5, 11, 19, 39, 79, 142), 'steps': 300}
# A scan compiles equal blocks once, so compile time is independent of depth.
SIMPLE = {'model.blocks': 'simple', 'model.scan': True}
SMALL = {'model.base_width': 8, 'data.size': 64, 'train.batch_size': 1}
SMOKE = {'model.base_width': 4, 'data.source': 'synthetic', 'data.size': 64}
SMOKE |= {'data.slices': 6, 'data.valid': '4-5', 'train.batch_size': 4}
PRESETS = {
  'small': SIMPLE | SMALL,
  'paper': SIMPLE | {'data.size': 256, 'depths.steps': 500},
  'smoke': SIMPLE | SMOKE | {'depths.steps': 3, 'depths.repetitions': (1, 4)},
}


def get_config(preset='small'):
  config = config_lib.get_default()
  config.experiment = 'depth_sweep'
  config.model = models.model_config('fc_resnet')
  config.variants = ml_collections.ConfigDict(VARIANTS)
  config.depths = ml_collections.ConfigDict(DEPTHS)
  return config_lib.pick_preset(config, preset, PRESETS)
