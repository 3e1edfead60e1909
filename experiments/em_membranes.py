"""The networks that ship with the package: membranes of two tissues.

The challenge's stack (fly larva, serial-section TEM, 4 nm) and FIB-SEM sample 2
(fly medulla, 10 nm), joined at 4 nm. Random scale, blur, contrast and noise,
and local normalisation, are meant to make a network carry over to others.

Claim:   on held-out slices of either stack, a network of both is as good as one
         of that stack alone.
Command: python tools/em_membranes.py --fibsem=FOLDER \
           --output=runs/em_membranes/results
         python -m skipnet_jax.train --config=experiments/em_membranes.py \
           --describe
Presets: both (default), isbi2012 and fibsem, one stack alone: 4,000 steps of
         two 256x256 crops of each stack, the network of `quick`. The last of
         five folds is held out; the command trains all, and makes the data.
Expect:  see docs/pretrained.md.
"""

import pathlib

from skipnet_jax import config as config_lib

BASE = pathlib.Path(__file__).with_name('long_short.py')
# Pages of the joined stack.
PRESETS = {
  'both': {'data.train': '0-23,30-54', 'data.valid': '24-29,55-60'}
  # A step has two crops of each stack, as those of one stack alone.
  | {'train.batch_size': 4},
  'isbi2012': {'data.train': '0-23', 'data.valid': '24-29'},
  'fibsem': {'data.train': '30-54', 'data.valid': '55-60'},
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
  config.data.augment.update(rot90=True, scale=0.3, blur=1.0, noise=0.2)
  config.data.augment.update(contrast=0.3, brightness=0.3, low_contrast=0.05)
  config.train.update(batch_size=2, steps_per_epoch=100, epochs=40)
  config.optim.cooldown_epochs = 10
  config.log.sample_every = 0
  return config_lib.pick_preset(config, preset, PRESETS)
