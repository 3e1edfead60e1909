"""The networks that ship with the package: membranes of two tissues.

Trained on the challenge's stack (Drosophila larva, serial-section TEM, 4 nm)
and on FIB-SEM sample 2 (Drosophila medulla, FIB-SEM, 10 nm, resampled to 4 nm).
Random scale, blur, contrast, noise and lost contrast, and pixels normalised by
their neighbourhood, are meant to make the network carry over to other
microscopes.

Claim:   on held-out slices of either stack a network of both is as good as one
         of that stack alone (docs/pretrained.md).
Command: python tools/em_membranes.py --fibsem=FOLDER --workdir=RUNS
         makes the data, trains all folds, scores, and writes what ships.
Presets: both (default), isbi2012 and fibsem (one stack alone): 4,000 steps of
         two 256x256 crops, the network of `quick`.
Expect:  see docs/pretrained.md.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')

# Pages of the joined stack, and those of the last of five folds.
PAGES = {
  'both': ('0-23,30-54', '24-29,55-60'),
  'isbi2012': ('0-23', '24-29'),
  'fibsem': ('30-54', '55-60'),
}


def get_config(preset='both'):
  config = config_lib.load_experiment(BASE, 'quick')
  config.experiment = 'em_membranes'
  config.data.update(
    source='stack',
    image='runs/em_membranes/image.tif',
    label='runs/em_membranes/labels.tif',
    pixel_size=4.0,
    normalise='local',
  )
  config.data.augment.update(
    rot90=True,
    scale=0.3,
    blur=1.0,
    contrast=0.3,
    brightness=0.3,
    noise=0.2,
    low_contrast=0.05,
  )
  config.train.update(batch_size=2, steps_per_epoch=100, epochs=40)
  config.optim.cooldown_epochs = 10
  config.log.sample_every = 0
  presets = {
    name: {'data.train': train, 'data.valid': valid}
    for name, (train, valid) in PAGES.items()
  }
  return config_lib.pick_preset(config, preset, presets)
