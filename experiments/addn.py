"""ADDN (2018), one of the systems that the papers compare.

A generator minimises the Dice loss and an adversarial loss; a discriminator
learns to distinguish predictions from labels. Each has its own learning rate.

Claim:   V_rand .98317, V_info .99088 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/addn.py \
           --workdir=runs/addn
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps,
         half the generator's width, as tools/reproduce.py compares systems);
         smoke (seconds).
Expect:  8,994,058 parameters, 7,443,145 of them in the generator; published:
         8.9 M. paper is not measured yet; for the results of `budget` see
         experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

PRESETS = {
  'paper': {},
  'budget': config_lib.BUDGET | {'model.base_width': 18},
  'smoke': config_lib.SMOKE
  | {'model.base_width': 2, 'model.discriminator_width': 4},
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'addn'
  config.model = models.model_config('addn')
  config.data.augment.update(rotation=0.0, shear=0.0, rot90=True)
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.5, decay=0.999, l2=0.0
  )
  config.train.loss = 'dice'
  return config_lib.pick_preset(config, preset, PRESETS)
