"""SFCNN (Weiler et al. 2018), one of the systems that the papers compare.

It has steerable filters at 16 orientations: rotating the image by 90 degrees
rotates the prediction exactly. By 22.5 degrees it does so roughly: the turned
prediction of a random network differs by 46 %.

Claim:   V_rand .98680, V_info .99144 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/sfcnn.py \
           --workdir=runs/sfcnn
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps
         at a learning rate of 1e-2, as 2e-4 is too low for so few weights; two
         channels of 3x3 pixels at each orientation, as tools/reproduce.py
         compares systems); smoke (seconds).
Expect:  2,810,001 parameters; no number is published. paper is not measured
         yet; for the results of `budget` see experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

PRESETS = {
  'paper': {},
  'budget': config_lib.BUDGET
  | {
    'model.base_width': 2,
    'model.kernel_size': 3,
    'optim.learning_rate': 1e-2,
  },
  'smoke': config_lib.SMOKE | {'model.base_width': 1, 'model.kernel_size': 3},
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'sfcnn'
  config.model = models.model_config('sfcnn')
  config.data.augment.update(rotation=0.0, shear=0.0)
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.9, decay=0.999
  )
  config.train.batch_size = 1
  return config_lib.pick_preset(config, preset, PRESETS)
