"""The least time a compiled step can take, by what vendors publish.

Predictions: nothing here was measured.
"""

from typing import Any

from skipnet_jax.benchmarking.hlo import collectives
from skipnet_jax.benchmarking.timing import peaks

Collectives = dict[str, dict[str, int]]
# A pod of v5e or v6e.
MOST_DEVICES = 256


def floors(
  flops: float | None,
  moved: float | None,
  sends: Collectives,
  devices: int,
  peak: peaks.Peak,
) -> dict[str, Any]:
  """The times that arithmetic, memory and links alone must take.

  Args:
    flops: of one device, or None where they are not known. Held against the
      bfloat16 peak, also for float32: by default a TPU multiplies float32 in
      one pass of bfloat16.
    moved: bytes that one device reads and writes, or None. By XLA's count they
      include what stays in on-chip memory: then memory_s may exceed the truth.
    sends: from `collectives.count`.
    devices: that share each collective.
    peak: the device's.

  Returns:
    compute_s, memory_s, collective_s (None where a figure is missing), step_s
    (the largest of them) and bound (compute, memory or collective).
  """
  link = peak.link_gb_s
  sent = collectives.sent_bytes(sends, devices)
  times = {
    'compute': None if flops is None else flops / (peak.bf16_tflops * 1e12),
    'memory': None if moved is None else moved / (peak.bandwidth_gb_s * 1e9),
    'collective': None if link is None else sent / (link * 1e9),
  }
  known = {name: time for name, time in times.items() if time is not None}
  bound = max(known, key=known.__getitem__, default=None)
  return {
    **{f'{name}_s': time for name, time in times.items()},
    'step_s': None if bound is None else known[bound],
    'bound': bound,
  }


def weak_scaling(
  times: dict[str, Any], sends: Collectives, batch: int, peak: peaks.Peak
) -> list[dict[str, Any]]:
  """The same batch per device on 1, 2, 4 ... 256 devices.

  Every device's links are taken to be busy at once, and a collective to start
  without delay: many small ones, such as BatchNorm's, take longer than that.

  Args:
    times: from `floors`, on any number of devices.
    sends: from `collectives.count`; what a device sends of them follows from
      the number of devices.
    batch: per device.
    peak: the device's.

  Returns:
    For each number of devices: devices; collective_s; step_s, the floor if
    nothing is sent while computing; efficiency, one device's floor over that;
    images_per_second of that step. Empty without a published bandwidth of the
    links.
  """
  known = [times[f'{name}_s'] for name in ('compute', 'memory')]
  alone = max((time for time in known if time is not None), default=None)
  if peak.link_gb_s is None or not alone:
    return []
  table = []
  devices = 1
  while devices <= MOST_DEVICES:
    sent = collectives.sent_bytes(sends, devices)
    collective = sent / (peak.link_gb_s * 1e9)
    table.append(
      {
        'devices': devices,
        'collective_s': collective,
        'step_s': alone + collective,
        'efficiency': alone / (alone + collective),
        'images_per_second': devices * batch / (alone + collective),
      }
    )
    devices *= 2
  return table
