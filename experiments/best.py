"""FC-ResNet with random grey values, a recipe chosen by our own folds.

The paper's training with random contrast, brightness and noise of each slice.
Of fifteen single changes (`tools/reproduce.py --study=recipe`), only this one
raised V_rand and V_info by multicut with eight orientations in both folds after
a thousand steps. Predict with `--tta`, which averages eight orientations.

Claim:   our goal is V_rand .98 and V_info .99 over six folds.
Command: python -m skipnet_jax.train --config=experiments/best.py \
           --workdir=runs/best
         python -m skipnet_jax.evaluate --workdir=runs/best --tta \
           --output=runs/best/scores.json
Presets: as in long_short.py, with the same durations; folds (the network of
         quick, 6,000 steps of two 256x256 crops, as in
         `tools/reproduce.py --study=segmentation`).
Expect:  folds, six folds of isbi2012, seed 0 on a CPU, jax 0.10.2, 2026-11-29:
         V_rand .940, V_info .973 by thresholds, .977 and .987 by lifted
         multicut with `--tta`. An earlier quick, on centre
         crops, three folds, 2026-11-22:
         V_rand .932, V_info .947, with `--tta` .948 and .955. The goal is not
         reached.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')


# On the network of `quick`.
FOLDS = {
  'train.batch_size': 2,
  'train.steps_per_epoch': 100,
  'train.epochs': 60,
  'optim.cooldown_epochs': 15,
  'log.sample_every': 0,
}


def get_config(preset='paper'):
  base = 'quick' if preset == 'folds' else preset
  config = config_lib.load_experiment(BASE, base)
  if preset == 'folds':
    config.update_from_flattened_dict(FOLDS)
  config.experiment = 'best'
  config.data.augment.update(contrast=0.2, brightness=0.2, noise=0.1)
  return config
