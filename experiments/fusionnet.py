"""FusionNet (Quan et al. 2016), one of the systems that the papers compare.

Claim:   V_rand .97804, V_info .98893 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/fusionnet.py \
           --workdir=runs/fusionnet
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps,
         a quarter of the width, as tools/reproduce.py compares systems); smoke
         (seconds).
Expect:  78,531,137 parameters; the published 31 M do not match the published
         levels of 64 to 1024 channels. paper is not measured yet; for the
         results of `budget` see experiments/README.md.
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
  config.experiment = 'fusionnet'
  config.model = models.model_config('fusionnet')
  config.data.augment.update(rotation=0.0, shear=0.0, rot90=True)
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.9, decay=0.999, l2=0.0
  )
  # Of the tanh output, between the absolute and the squared error that the
  # code of the first author's group has.
  config.train.loss = 'smooth_l1'
  return config_lib.pick_preset(config, preset, PRESETS)
