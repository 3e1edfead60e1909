"""Predicts the least time of a compiled step from published figures."""

from collections.abc import Iterable
from typing import Any

from skipnet_jax.benchmarking.hlo import collectives
from skipnet_jax.benchmarking.timing import peaks

Collectives = dict[str, dict[str, int]]

# A GPU starts the next kernel no sooner, in seconds. An assumption, not a
# published figure: a graph of small kernels on an H100 takes about that.
LAUNCH_S = 2e-6


def floors(
  flops: float | None,
  bytes_accessed: float | None,
  sent: Collectives,
  devices: int,
  peak: peaks.Peak,
  launches: int | None = None,
) -> dict[str, Any]:
  """The least times that arithmetic, memory, links and launches need.

  Args:
    flops: of one device; None: unknown. They are divided by the bfloat16 peak,
      also for float32: by default a TPU multiplies float32 in one bfloat16
      pass.
    bytes_accessed: bytes that one device reads from and writes to HBM; None:
      unknown.
    sent: from `collectives.count`.
    devices: number of devices that share each collective, those of the program.
    peak: of the device.
    launches: kernels of a GPU, each LAUNCH_S after the one before; None for a
      TPU, which starts one program.

  Returns:
    compute_s, memory_s, collective_s, launch_s (None if a figure is missing),
    step_s (the largest of them) and bound (compute, memory, collective or
    launch).
  """
  link = peak.link_gb_s
  times = {
    'compute': flops and flops / (peak.bf16_tflops * 1e12),
    'memory': bytes_accessed and bytes_accessed / (peak.bandwidth_gb_s * 1e9),
    'collective': link
    and collectives.sent_bytes(sent, devices, devices) / (link * 1e9),
    'launch': launches and launches * LAUNCH_S,
  }
  known = {name: time for name, time in times.items() if time is not None}
  bound = max(known, key=known.__getitem__, default=None)
  return {
    **{f'{name}_s': time for name, time in times.items()},
    'step_s': None if bound is None else known[bound],
    'bound': bound,
  }


def one_by_one(kernels: Iterable[dict[str, Any]], peak: peaks.Peak) -> float:
  """Least seconds of a GPU's kernels, each of its bytes and at least a launch.

  Args:
    kernels: from `hlo.kernels.table`.
    peak: of the device.
  """
  rate = peak.bandwidth_gb_s * 1e9
  return sum(
    one['runs'] * max(LAUNCH_S, one['bytes'] / rate) for one in kernels
  )


def weak_scaling(
  times: dict[str, Any],
  sent: Collectives,
  batch: int,
  peak: peaks.Peak,
  compiled: int,
  most: int,
) -> list[dict[str, Any]]:
  """The same batch per device on 1, 2, 4 ... devices.

  All links of a device are assumed to be busy at once, and a collective to
  start without delay: many small ones, such as BatchNorm's, take longer.

  Args:
    times: from `floors`, for any number of devices.
    sent: from `collectives.count`; the number of devices decides how much of it
      each device sends.
    batch: per device.
    peak: of the device.
    compiled: number of devices of the program that `sent` is of.
    most: devices that such links join.

  Returns:
    For each number of devices: devices; collective_s; step_s, the least time if
    communication does not overlap computation; efficiency, the least time on
    one device over step_s; images_per_second. Empty if the bandwidth of the
    links is not published.
  """
  known = [times[f'{name}_s'] for name in ('compute', 'memory', 'launch')]
  alone = max((time for time in known if time is not None), default=None)
  if peak.link_gb_s is None or not alone:
    return []
  table = []
  for devices in (2**n for n in range(most.bit_length())):
    moved = collectives.sent_bytes(sent, devices, compiled)
    collective_s = moved / (peak.link_gb_s * 1e9)
    step_s = alone + collective_s
    table.append(
      {
        'devices': devices,
        'collective_s': collective_s,
        'step_s': step_s,
        'efficiency': alone / step_s,
        'images_per_second': devices * batch / step_s,
      }
    )
  return table
