"""No skips at all: the network that does not train (Drozdzal et al. 2016).

Claim:   at 140 convolutions without any skip nothing is learned.
Command: python -m skipnet_jax.train --config=experiments/no_skips.py \
           --workdir=runs/no_skips
Presets: those of long_short.py, and as long.
Expect:  quick on the synthetic stack, seed 0 on a CPU, jax 0.10.2,
         2026-11-20: best validation BCE .4644 (.5405 for a constant
         prediction); long_short has .1687. At quick's 41 convolutions it still
         learns a little.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')


def get_config(preset='paper'):
  config = config_lib.load_experiment(BASE, preset)
  config.experiment = 'no_skips'
  config.model.short_skips = config.model.long_skips = False
  return config
