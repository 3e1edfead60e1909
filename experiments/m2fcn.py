"""M2FCN (Shen et al. 2017), one of the systems that the papers compare.

Claim:   V_rand .97805, V_info .98919 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/m2fcn.py \
           --workdir=runs/m2fcn
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps,
         half the width, as tools/reproduce.py compares systems); smoke
         (seconds).
Expect:  5,732,820 parameters in three stages; neither their number nor the
         widths are published. Every side output and every fusion has a loss,
         all with the same weight. paper is not measured yet; for the results of
         `budget` see experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

PRESETS = {
  'paper': {},
  'budget': config_lib.BUDGET | {'model.base_width': 16},
  'smoke': config_lib.SMOKE | {'model.base_width': 2},
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'm2fcn'
  config.model = models.model_config('m2fcn')
  config.data.augment.update(rotation=0.0, shear=0.0, rot90=True)
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.9, decay=0.999
  )
  return config_lib.pick_preset(config, preset, PRESETS)
