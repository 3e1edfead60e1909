"""CUMedVision (Chen et al. 2016), one of the systems that the papers compare.

Claim:   V_rand .97682, V_info .98865 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/cumedvision.py \
           --workdir=runs/cumedvision
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps,
         half the width, as tools/reproduce.py compares systems); smoke
         (seconds).
Expect:  7,933,126 parameters; published: 8 M. The auxiliary weight is 1, .1,
         .01 and .001 in four equal parts of the training; this schedule is our
         choice. paper is not measured yet; for the results of `budget` see
         experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

PRESETS = {
  'paper': {},
  'budget': config_lib.BUDGET
  | {'model.base_width': 32, 'train.auxiliary_at': (5, 10, 15)},
  'smoke': config_lib.SMOKE
  | {
    'model.base_width': 2,
    'train.auxiliary': (1.0, 0.1),
    'train.auxiliary_at': (1,),
  },
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'cumedvision'
  config.model = models.model_config('cumedvision')
  config.data.augment.update(rotation=0.0, shear=0.0, rot90=True)
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.9, decay=0.999
  )
  config.train.auxiliary = (1.0, 0.1, 0.01, 0.001)
  config.train.auxiliary_at = (125, 250, 375)
  return config_lib.pick_preset(config, preset, PRESETS)
