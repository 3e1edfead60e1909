"""Short skips only: row 2 of Table 3 (Drozdzal et al. 2016).

Claim:   without long skips the network trains, and ends above both kinds;
         the paper's best validation loss is .202.
Command: python -m skipnet_jax.train --config=experiments/short_only.py \
           --workdir=runs/short_only
Presets: those of long_short.py, and as long.
Expect:  SHORT_ONLY_FIGURES
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')


def get_config(preset='paper'):
  config = config_lib.load_experiment(BASE, preset)
  config.experiment = 'short_only'
  config.model.long_skips = False
  return config
