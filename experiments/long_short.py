"""Long and short skips together: row 1 of Table 3 (Drozdzal et al. 2016).

Claim:   with both kinds of skip the 140-convolution FC-ResNet trains best;
         the paper's best validation loss is .162 (it may include the L2 term).
Command: python -m skipnet_jax.train --config=experiments/long_short.py \
           --workdir=runs/long_short
Presets: paper (default; 500 epochs, for an accelerator: on two shared CPU cores
         an epoch took 70 s); quick (a smaller network of the same shape, crops
         of 256x256: under 3 minutes on two CPU cores); small (the paper's depth
         at half its width, the same crops); centre (small on centre crops, as
         in docs/results.md); budget (256x256 crops, 500 steps, as
         tools/reproduce.py compares systems); smoke (seconds).
Expect:  seed 0 on a CPU, jax 0.10.2. paper, the first 74 of its epochs on
         isbi2012: best validation BCE .1955 (.4990 for a constant prediction),
         V_rand .939, V_info .969; .972 and .980 with `--tta`. quick: .2269
         (.4990) on isbi2012, .1716 (.5278) on the synthetic stack.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

QUICK = {
  'model.base_width': 8,
  'model.repetitions': (1, 2, 2, 2, 2, 2, 1),
  'data.crop': 256,
  'train.batch_size': 1,
  'train.epochs': 40,
}
SMALL = config_lib.BUDGET | {'model.base_width': 16, 'train.epochs': 100}
SMOKE = config_lib.SMOKE | {
  'model.base_width': 4,
  'model.repetitions': (1, 1, 1, 2, 1, 1, 1),
}
PRESETS = {
  'paper': {},
  'quick': QUICK,
  'small': SMALL,
  'centre': SMALL | {'data.crop': 0, 'data.size': 256},
  'budget': config_lib.BUDGET,
  'smoke': SMOKE,
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'long_short'
  config.model = models.model_config('fc_resnet')
  return config_lib.pick_preset(config, preset, PRESETS)
