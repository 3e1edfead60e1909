"""Reports of benchmarks that never ran, with known figures."""

import copy

import numpy as np

from skipnet_jax.benchmarking.reporting import schema
from skipnet_jax.benchmarking.timing import measure


def row(
  *,
  median=0.1,
  processes=(1.0, 1.0, 1.0),
  deviation=0.0,
  error=None,
  **changes,
):
  """A row of the results.

  Args:
    median: seconds.
    processes: each process's median over that of all.
    deviation: median absolute deviation within a process, over the median.
    error: the sentence of a row that failed.
    **changes: other fields.
  """
  seconds = [
    median * p * (1 + s * deviation) for p in processes for s in (-1, 0, 1, 0)
  ]
  timing = measure.Timing(2, tuple(seconds)).summary()
  batch = changes.get('batch', 8)
  rate = batch / timing['mean']
  made = {
    'call': 'train',
    'feed': 'compute',
    'mode': 'jit',
    'devices': 1,
    'hosts': 1,
    'dtype': 'bfloat16',
    'batch': batch,
    'matmul_precision': 'default',
    'processes': len(processes),
    'error': None,
    'timing': timing,
    'process_p50': [median * p for p in processes],
    'compile': {
      'trace_s': 1.5,
      'lower_s': 2.25,
      'compile_s': 30.0,
      'warm_compile_s': 0.75,
      'hlo_instructions': 12345,
    },
    'blocked': {'batches': 60, 'seconds': 0.08, 'host_share': 0.25},
    'loss': {'steps': 60, 'value': 0.5},
    'programs': ['0123456789ab'] * len(processes),
    'images_per_second': rate,
    'images_per_second_p50': batch / timing['p50'],
    'images_per_second_per_device': rate / changes.get('devices', 1),
    'model_flops': 4e12,
    'model_bytes': 1e10,
    'hlo_flops': 3.5e12,
    'hlo_bytes': 2e10,
    'tflops': 4 / timing['mean'],
    'mfu': 0.0404,
    'mfu_peak': {
      'tflops': 989.0,
      'arithmetic': 'bfloat16',
      'source': 'a data sheet',
    },
    'mfu_reason': None,
    'roofline': {
      'flops_s': 0.01,
      'bytes_s': 0.02,
      'bound': 'bytes',
      'floor_s': 0.02,
      'fraction': 0.2,
      'copy_gb_s': 4000.0,
      'matrix_tflops': 600.0,
    },
    'memory': {'predicted_bytes': 6 * 10**9, 'peak_bytes': 7 * 10**9},
    'energy': {'watts': 400.0, 'joules_per_image': 5.0, 'seconds': 6.0},
    'device_state': {
      'sm_mhz': 1755,
      'sm_mhz_highest': 1980,
      'memory_mhz': 3201,
      'throttle_reasons': ['software power cap'],
      'temperature_c': 60,
      'power_limit_w': 700.0,
      'ecc': True,
      'mig': False,
      'slow': False,
    },
  }
  if error:
    keep = (*schema.KEY, 'processes')
    blank = {name: None for name in made if name not in keep}
    made |= blank | {'error': error}
  return made | changes


def report(*rows):
  """A report with these rows."""
  return copy.deepcopy(
    {
      'schema': schema.VERSION,
      'identity': {
        'experiment': 'benchmark',
        'config_hash': '0123456789ab',
        'config': {'seed': 0},
        'git': 'dfc8d5b',
        'command': 'benchmark.py --config=experiments/benchmark.py',
        'date': '2025-11-21T13:00:00+00:00',
        'seconds': 61.5,
        'processes_compile': 'anew',
      },
      'software': {
        'python': '3.12.3',
        'jax': '0.11.2',
        'jaxlib': '0.11.2',
        'flax': '0.12.8',
        'optax': '0.2.8',
        'numpy': '2.4.6',
        'plugin': 'jax-cuda13-plugin 0.11.2',
        'driver': '580.1',
        'cuda': '13.0.96',
        'cudnn': '9.19',
        'packages': 'abcdef012345',
        'container': None,
        'environment': {},
      },
      'hardware': {
        'platform': 'gpu',
        'device_kind': 'Some GPU',
        'device_count': 1,
        'local_device_count': 1,
        'device_memory_bytes': 100 * 10**9,
        'cpu': 'Some CPU',
        'cores': 16,
        'memory_bytes': 128 * 10**9,
        'load_average': [0.5, 0.25, 0.125],
      },
      'workload': {
        'model': 'fc_resnet',
        'parameters': 11163457,
        'convolutions': 140,
        'image_size': [512, 512],
        'dataset': 'synthetic 30x512x512',
        'loss': 'bce',
        'optimizer': 'rmsprop',
        'kernels': 'xla',
      },
      'results': list(rows),
      'scaling': [],
      'peer': None,
      'quality': None,
    }
  )


def noisy(random: np.random.Generator, between: float, within: float):
  """A row of three processes whose true median is 1, by normal deviates."""
  centres = 1 + between * random.standard_normal(3)
  seconds = centres[:, None] + within * random.standard_normal((3, 20))
  return row() | {
    'timing': measure.Timing(0, tuple(seconds.ravel())).summary(),
    'process_p50': np.median(seconds, axis=1).tolist(),
  }
