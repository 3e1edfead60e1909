"""U-Net (Ronneberger et al. 2015), one of the systems that the papers compare.

Claim:   V_rand .97276, V_info .98662 on the challenge's hidden test slices.
Command: python -m skipnet_jax.train --config=experiments/unet.py \
           --workdir=runs/unet
Presets: paper (default; unpadded convolutions, weighted borders; for an
         accelerator); same (padded convolutions); gpu_benchmark (3x3 transposed
         convolutions, 388 pixels of 572, loss and optimizer of NVIDIA's
         DeepLearningExamples: the U-Net that public GPU benchmarks time);
         budget (256x256 crops, 500 steps, a quarter of the width, as
         tools/reproduce.py compares systems); smoke (seconds).
Expect:  31,030,658 parameters (gpu_benchmark 34,512,258). paper is not measured
         yet; for the results of `budget` see experiments/README.md.
"""

from skipnet_jax import config as config_lib
from skipnet_jax import models

ADAM = {'optim.name': 'adam', 'optim.momentum': 0.9, 'optim.decay': 0.999}
BUDGET = config_lib.BUDGET | ADAM
BUDGET |= {'model.padding': 'SAME', 'model.base_width': 16}
BUDGET |= {'optim.learning_rate': 2e-4}
# Its Dice loss is of both classes and squares the probabilities; ours is of the
# membrane. L2: 0.0005 times half the sum of squares.
GPU_BENCHMARK = ADAM | {'optim.learning_rate': 1e-4, 'optim.l2': 2.5e-4}
GPU_BENCHMARK |= {'model.up_kernel': 3, 'data.crop': 388}
GPU_BENCHMARK |= {'train.loss': 'bce_dice', 'data.border_weight': 0.0}
PRESETS = {
  'paper': {},
  'same': {'model.padding': 'SAME'},
  'gpu_benchmark': GPU_BENCHMARK,
  'budget': BUDGET,
  'smoke': config_lib.SMOKE | {'model.base_width': 2},
}


def get_config(preset='paper'):
  config = config_lib.get_default()
  config.experiment = 'unet'
  config.model = models.model_config('unet', padding='VALID')
  config.data.augment.update(rotation=0.0, shear=0.0, rot90=True)
  config.data.border_weight = 10.0
  # The paper gives the momentum, but not the learning rate.
  config.optim.update(name='sgd', learning_rate=1e-3, momentum=0.99, l2=0.0)
  config.train.batch_size = 1
  return config_lib.pick_preset(config, preset, PRESETS)
