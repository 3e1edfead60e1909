"""No skips at all: this network does not train (Drozdzal et al. 2016).

Claim:   with 140 convolutions and no skips, the network learns nothing.
Command: python -m skipnet_jax.train --config=experiments/no_skips.py \
           --workdir=runs/no_skips
Presets: as in long_short.py, with the same durations.
Expect:  quick on the synthetic stack, seed 0 on a CPU, jax 0.10.2,
         2026-11-29: best validation BCE .5272 (.5278 for a constant
         prediction); long_short has .1716. With the 41 convolutions of quick,
         too, it learns next to nothing.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')


def get_config(preset='paper'):
  config = config_lib.load_experiment(BASE, preset)
  config.experiment = 'no_skips'
  config.model.short_skips = config.model.long_skips = False
  return config
