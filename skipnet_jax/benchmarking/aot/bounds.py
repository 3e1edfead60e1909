"""Predicts the least time of a compiled step from published figures."""

from typing import Any

from skipnet_jax.benchmarking.hlo import collectives
from skipnet_jax.benchmarking.timing import peaks

Collectives = dict[str, dict[str, int]]


def floors(
  flops: float | None,
  bytes_accessed: float | None,
  sent: Collectives,
  devices: int,
  peak: peaks.Peak,
) -> dict[str, Any]:
  """The least times that arithmetic, memory and links need.

  Args:
    flops: of one device; None: unknown. They are divided by the bfloat16 peak,
      also for float32: by default a TPU multiplies float32 in one bfloat16
      pass.
    bytes_accessed: bytes that one device reads and writes; None: unknown. XLA
      includes those that stay in on-chip memory, so memory_s may be too large.
    sent: from `collectives.count`.
    devices: number of devices that share each collective.
    peak: of the device.

  Returns:
    compute_s, memory_s, collective_s (None if a figure is missing), step_s (the
    largest of them) and bound (compute, memory or collective).
  """
  link = peak.link_gb_s
  times = {
    'compute': flops and flops / (peak.bf16_tflops * 1e12),
    'memory': bytes_accessed and bytes_accessed / (peak.bandwidth_gb_s * 1e9),
    'collective': link and collectives.sent_bytes(sent, devices) / (link * 1e9),
  }
  known = {name: time for name, time in times.items() if time is not None}
  bound = max(known, key=known.__getitem__, default=None)
  return {
    **{f'{name}_s': time for name, time in times.items()},
    'step_s': None if bound is None else known[bound],
    'bound': bound,
  }


def weak_scaling(
  times: dict[str, Any], sent: Collectives, batch: int, peak: peaks.Peak
) -> list[dict[str, Any]]:
  """The same batch per device on 1, 2, 4 ... 256 devices.

  All links of a device are assumed to be busy at once, and a collective to
  start without delay: many small ones, such as BatchNorm's, take longer.

  Args:
    times: from `floors`, for any number of devices.
    sent: from `collectives.count`; the number of devices decides how much of it
      each device sends.
    batch: per device.
    peak: of the device.

  Returns:
    For each number of devices: devices; collective_s; step_s, the least time if
    communication does not overlap computation; efficiency, the least time on
    one device over step_s; images_per_second. Empty if the bandwidth of the
    links is not published.
  """
  known = [times[f'{name}_s'] for name in ('compute', 'memory')]
  alone = max((time for time in known if time is not None), default=None)
  if peak.link_gb_s is None or not alone:
    return []
  table = []
  # 256 chips are a pod of v5e or v6e.
  for devices in (1, 2, 4, 8, 16, 32, 64, 128, 256):
    collective_s = collectives.sent_bytes(sent, devices) / (
      peak.link_gb_s * 1e9
    )
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
