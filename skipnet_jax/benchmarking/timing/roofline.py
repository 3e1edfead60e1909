"""How fast a device copies and multiplies, and the least time that follows.

The rates are measured, not read from a data sheet: a step that takes longer
than its least time loses the rest in its program, not in the device.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from skipnet_jax.benchmarking.timing import measure

# Large enough for the full rate; all measurements take about a second.
_CPU = {'copy_mib': 256, 'matrix': 2048}
_ACCELERATOR = {'copy_mib': 2048, 'matrix': 8192}
_REPETITIONS = 10
_SECONDS = 0.5  # After this time, a slow device repeats no more.
_DRAWN = 2**20  # Random numbers, repeated.


def measure_rates(device: Any, dtype: str) -> dict[str, float]:
  """Times a pass over a large array and a product of large matrices.

  The pass negates the array, because XLA would remove a plain copy. The product
  has the precision that JAX is set to, as the network has. Both have random
  numbers: a GPU multiplies constants with less power, and so at a higher clock.
  The fastest of several calls counts.

  Args:
    device: where they run.
    dtype: of arrays and matrices, 'float32' or 'bfloat16'.

  Returns:
    copy_gb_s: 1e9 bytes per second, read and written, in a pass over the array.
    matrix_tflops: 1e12 FLOPs per second in the product.
  """
  sizes = _CPU if device.platform == 'cpu' else _ACCELERATOR
  kind = jnp.dtype(dtype)
  length = sizes['copy_mib'] * 2**20 // kind.itemsize
  side = sizes['matrix']
  key = jax.device_put(jax.random.key(0), device)
  # A CPU takes seconds to draw them all.
  array = jnp.tile(jax.random.normal(key, (_DRAWN,), kind), length // _DRAWN)
  matrix = jax.random.normal(key, (side, side), kind)

  def fastest(function, x):
    times = functools.partial(measure.time_calls, lambda: function(x))
    once = min(times(warmup=1, repetitions=1).seconds)
    fitting = max(1, min(_REPETITIONS, int(_SECONDS / once)))
    return min(times(warmup=0, repetitions=fitting).seconds)

  copy_s = fastest(jax.jit(jnp.negative), array)
  del array
  matrix_s = fastest(jax.jit(lambda x: x @ x), matrix)
  return {
    'copy_gb_s': 2 * length * kind.itemsize / copy_s / 1e9,
    'matrix_tflops': 2 * side**3 / matrix_s / 1e12,
  }


def floors(
  flops: float, min_bytes: float, seconds: float, rates: dict[str, float]
) -> dict[str, Any]:
  """The least times that arithmetic and memory need on one device.

  Args:
    flops: of one device.
    min_bytes: that one device must read and write.
    seconds: measured.
    rates: of the device, from `measure_rates`.

  Returns:
    flops_s and bytes_s (seconds), bound ('flops' or 'bytes', the larger one),
    floor_s (the larger one), fraction (floor_s / seconds; not clipped), and the
    rates.
  """
  flops_s = flops / (rates['matrix_tflops'] * 1e12)
  bytes_s = min_bytes / (rates['copy_gb_s'] * 1e9)
  floor_s = max(flops_s, bytes_s)
  return {
    'flops_s': flops_s,
    'bytes_s': bytes_s,
    'bound': 'flops' if floor_s == flops_s else 'bytes',
    'floor_s': floor_s,
    'fraction': floor_s / seconds,
    **rates,
  }
