"""F-CLmser-S and its ablations: Table 1 of Guo et al. 2019.

Claim:   gates on the long skips help: V_rand/V_info on the hidden test slices
         .97310/.98712 (clmser_w: sums), .97359/.98726 (cg), .97438/.98868
         (cg_pg), .97709/.98710 (cg_full_pg), .98223/.98919 (paper: cg_pg_gm).
Command: python -m skipnet_jax.train --config=experiments/f_clmser_s.py \
           --workdir=runs/f_clmser_s
Presets: paper (default; for an accelerator), and clmser_w, cg, cg_pg and
         cg_full_pg, which differ only in their gates; budget (256x256 crops,
         500 steps, as tools/reproduce.py compares systems); smoke (seconds).
Expect:  8,308,941 parameters (with other gates 8,293,704 to 8,306,223). paper
         is not measured yet; for the results of `budget` see
         experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

GATES = {
  'clmser_w': 'none',
  'cg': 'cg',
  'cg_pg': 'cg+pg',
  'cg_full_pg': 'cg+full_pg',
}
SMOKE = config_lib.SMOKE | {'model.base_width': 2, 'model.pad': 32}
PRESETS = {
  'paper': {},
  **{name: {'model.gates': gates} for name, gates in GATES.items()},
  'budget': config_lib.BUDGET | {'model.pad': 0},
  'smoke': SMOKE,
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'f_clmser_s'
  # As the authors' code, here and below: it never leaves training.
  config.model = models.model_config('f_clmser_s', use_running_average=False)
  config.data.update(crop=448, normalise='range')
  config.data.augment.update(
    rotation=0.0, shear=0.0, warp=0.0, rot90=True, elastic=300.0
  )
  # L2 of 1e-4 w added to the gradient: 2 * 5e-5 w.
  config.optim.update(
    name='adam', learning_rate=2e-4, momentum=0.5, decay=0.999, l2=5e-5
  )
  config.optim.update(schedule='step', step_at=(200, 500, 1000))
  config.train.update(loss='smooth_l1', epochs=1500)
  return config_lib.pick_preset(config, preset, PRESETS)
