"""Short skips only: row 2 of Table 3 (Drozdzal et al. 2016).

Claim:   without long skips the network trains, but to a higher loss than with
         both kinds; the paper's best validation loss is .202.
Command: python -m skipnet_jax.train --config=experiments/short_only.py \
           --workdir=runs/short_only
Presets: as in long_short.py, with the same durations.
Expect:  quick on the synthetic stack, seed 0 on a CPU, jax 0.10.2,
         2026-11-29: best validation BCE .3152 (long_only
         .2051, no_skips .5272, a constant .5278); long_short has .1716.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')


def get_config(preset='paper'):
  config = config_lib.load_experiment(BASE, preset)
  config.experiment = 'short_only'
  config.model.long_skips = False
  return config
