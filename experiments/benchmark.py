"""How fast the paper's network trains, evaluates and predicts.

Claim:   the time of a training step of the 140-convolution FC-ResNet agrees
         with its FLOPs and bytes, on one device and on several.
Command: python -m skipnet_jax.benchmark --config=experiments/benchmark.py \
           --output=bench.json
Presets: full (long_short.py at whole slices, the largest batch that fits: an
         accelerator); cpu (the same at batch 1 in float32, on one device);
         smoke (a small network: two minutes on two CPU cores).
Expect:  see docs/results.md.
"""

import pathlib

from skipnet_jax import config as config_lib
from skipnet_jax.benchmarking import plan

BASE = pathlib.Path(__file__).with_name('long_short.py')
# --aot and --peer use train.batch_size.
CPU = {
  'train.batch_size': 1,
  'benchmark.batches': (1,),
  'benchmark.dtypes': ('float32',),
  'benchmark.modes': ('jit',),
  'benchmark.warmup': 1,
  'benchmark.repetitions': 5,
}
SMOKE = {
  'model.blocks': 'simple',
  # It shortens the compilation.
  'model.dropout': 0.0,
  'optim.name': 'sgd',
  'benchmark.batches': (8,),
  'benchmark.dtypes': ('float32',),
  'benchmark.devices': (1, 0),
  'benchmark.scaling': ('weak',),
  'benchmark.warmup': 1,
  'benchmark.repetitions': 5,
  'benchmark.processes': 3,
}
PRESETS = {'full': {'train.batch_size': 8}, 'cpu': CPU, 'smoke': SMOKE}


def get_config(preset='full'):
  base = 'smoke' if preset == 'smoke' else 'paper'
  config = config_lib.load_experiment(BASE, base)
  config.experiment = 'benchmark'
  config.benchmark = plan.get_default()
  return config_lib.pick_preset(config, preset, PRESETS)
