"""How fast this device copies and multiplies, and the floors that gives.

Measured, not read from a data sheet: what remains between a floor and a time is
the program's, not the machine's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from skipnet_jax.benchmarking.timing import measure

# Sides: large enough for the full rate, a second or so in all.
_CPU = {'copy_mib': 256, 'matrix': 2048}
_ACCELERATOR = {'copy_mib': 2048, 'matrix': 8192}
_REPETITIONS = 10


@dataclasses.dataclass(frozen=True)
class Rates:
  """The best that one device was seen to do.

  Attributes:
    copy_gb_s: 1e9 bytes a second, read and written, of an array that is passed
      over once.
    matrix_tflops: 1e12 FLOPs a second of a product of large square matrices.
  """

  copy_gb_s: float
  matrix_tflops: float


def measure_rates(device: Any, dtype: str) -> Rates:
  """Times a pass over a large array and a product of large matrices.

  The array is in the dtype; its numbers' signs are changed, for XLA would leave
  out a plain copy. The product has JAX's default precision, as the network has.
  Of several runs, the fastest counts.

  Args:
    device: where.
    dtype: 'float32' or 'bfloat16'.
  """
  sizes = _CPU if device.platform == 'cpu' else _ACCELERATOR
  kind = jnp.dtype(dtype)
  length = sizes['copy_mib'] * 2**20 // kind.itemsize
  side = sizes['matrix']
  array = jax.device_put(jnp.ones((length,), kind), device)
  matrix = jax.device_put(jnp.ones((side, side), kind), device)

  def fastest(function, x):
    timing = measure.time_calls(
      lambda: function(x), warmup=2, repetitions=_REPETITIONS
    )
    return min(timing.seconds)

  copy_s = fastest(jax.jit(jnp.negative), array)
  del array
  matrix_s = fastest(jax.jit(lambda x: x @ x), matrix)
  return Rates(
    copy_gb_s=2 * length * kind.itemsize / copy_s / 1e9,
    matrix_tflops=2 * side**3 / matrix_s / 1e12,
  )


def floors(
  flops: float, moved: float | None, seconds: float, rates: Rates
) -> dict[str, Any]:
  """The times that arithmetic and memory alone must take on one device.

  Args:
    flops: of one device.
    moved: bytes that one device reads and writes; None: unknown.
    seconds: measured.
    rates: of the device.

  Returns:
    flops_s and bytes_s (seconds), bound ('flops' or 'bytes': the larger),
    floor_s (the larger), fraction (floor over measured; not clipped), and the
    rates.
  """
  flops_s = flops / (rates.matrix_tflops * 1e12)
  bytes_s = None if moved is None else moved / (rates.copy_gb_s * 1e9)
  floor_s = max(flops_s, bytes_s or 0.0)
  return {
    'flops_s': flops_s,
    'bytes_s': bytes_s,
    'bound': 'flops' if floor_s == flops_s else 'bytes',
    'floor_s': floor_s,
    'fraction': floor_s / seconds,
    **dataclasses.asdict(rates),
  }
