"""PolyMtl (Drozdzal et al. 2018), one of the systems that the papers compare.

A small U-Net learns to normalise the image, and FC-ResNet segments its output.
samples/ show the normalised image beside the slice.

Claim:   V_rand .98058, V_info .98816 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/polymtl.py \
           --workdir=runs/polymtl
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps,
         as tools/reproduce.py compares systems); smoke (seconds).
Expect:  13,392,579 parameters, 11,451,745 of them in FC-ResNet; published:
         13 M. paper is not measured yet; for the results of `budget` see
         experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

PRESETS = {
  'paper': {},
  'budget': config_lib.BUDGET,
  'smoke': config_lib.SMOKE
  | {
    'model.base_width': 4,
    'model.normaliser_width': 2,
    'model.repetitions': (1, 1, 1, 2, 1, 1, 1),
  },
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'polymtl'
  config.model = models.model_config('polymtl')
  config.train.loss = 'dice'
  return config_lib.pick_preset(config, preset, PRESETS)
