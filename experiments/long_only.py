"""Long skips only: row 3 of Table 3 (Drozdzal et al. 2016).

Claim:   without short skips the centre of the network gets only small updates;
         the paper's best validation loss is .188.
Command: python -m skipnet_jax.train --config=experiments/long_only.py \
           --workdir=runs/long_only
Presets: as in long_short.py, with the same durations.
Expect:  quick on the synthetic stack, seed 0 on a CPU, jax 0.10.2,
         2026-11-29: best validation BCE .2051 (short_only
         .3152, no_skips .5272, a constant .5278); long_short has .1716.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')


def get_config(preset='paper'):
  config = config_lib.load_experiment(BASE, preset)
  config.experiment = 'long_only'
  config.model.short_skips = False
  return config
