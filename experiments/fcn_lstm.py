"""FCN+LSTM (Chen et al. 2016), one of the systems that the papers compare.

Each example is a slice with its two neighbours; the ends of the stack are
reflected.

Claim:   V_rand .97537, V_info .98743 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/fcn_lstm.py \
           --workdir=runs/fcn_lstm
Presets: paper (default; for an accelerator); budget (256x256 crops, 500 steps,
         a quarter of the U-Nets' width, an eighth of the LSTMs', as
         tools/reproduce.py compares systems); smoke (seconds).
Expect:  21,677,985 parameters; no number is published. paper is not measured
         yet; for the results of `budget` see experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

PRESETS = {
  'paper': {},
  'budget': config_lib.BUDGET | {'model.base_width': 8, 'model.hidden': 8},
  'smoke': config_lib.SMOKE | {'model.base_width': 2, 'model.hidden': 2},
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'fcn_lstm'
  config.model = models.model_config('fcn_lstm')
  config.data.augment.update(rotation=0.0, shear=0.0, rot90=True)
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.9, decay=0.999, l2=0.0
  )
  config.train.batch_size = 1
  return config_lib.pick_preset(config, preset, PRESETS)
