"""A benchmark from its config to its report."""

from collections.abc import Callable, Sequence
import json
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from skipnet_jax import config_identity
from skipnet_jax import environment
from skipnet_jax.benchmarking import children
from skipnet_jax.benchmarking import journal as journal_lib
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import rows as rows_lib
from skipnet_jax.benchmarking import scaling
from skipnet_jax.benchmarking.reporting import schema
from skipnet_jax.benchmarking.timing import measure
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.benchmarking.timing import roofline

Say = Callable[[str], None]
Report = dict[str, Any]
Raw = list[tuple[int, int, int, float]]


def run(
  config: ml_collections.ConfigDict, say: Say
) -> tuple[Report, Raw] | None:
  """Measures every row of an experiment.

  In fresh processes; where the config names several hosts' processes, which
  are fresh themselves, in this one together with them.

  Args:
    config: a whole config with `benchmark`, see `plan.get_default`.
    say: told what is being measured, and what came out.

  Returns:
    The report and the raw times, as `report.write` takes them; None in all
    but the first of several hosts' processes.

  Raises:
    InputError: a config, data set or plan that cannot be used.
    RunError: what failed, for another reason than memory.
  """
  start = time.perf_counter()
  bare, section = plan.split(config)
  whole = json.loads(config.to_json())
  if bare.parallel.coordinator:
    journal = journal_lib.Journal(None, config=whole)
    # Which process this is, is known after all have joined.
    rows_lib.measure_all(
      journal, lambda text: say(text) if jax.process_index() == 0 else None
    )
    if jax.process_index():
      return None
    journals = [journal]
  else:
    journals = children.measure(whole, section.processes, say)
  rows, raw = merge(journals)
  about = journals[0].about
  report = {
    'schema': 1,
    'identity': {
      'experiment': config.experiment,
      'config_hash': config_identity.hash_of(config),
      'config': whole,
      'git': environment.git_state(),
      'command': environment.command(),
      'date': environment.now(),
      'seconds': time.perf_counter() - start,
    },
    **{name: about[name] for name in ('software', 'hardware', 'workload')},
    'results': rows,
    'scaling': scaling.table(section, rows),
    'peer': None,
  }
  return report, raw


def merge(
  journals: Sequence[journal_lib.Journal],
) -> tuple[list[dict[str, Any]], Raw]:
  """The report's rows of all processes, and the raw times of each."""
  rows: list[dict[str, Any]] = []
  raw: Raw = []
  for name in journals[0].rows:
    # A row that failed in one process is not measured in the next ones.
    found = [j.rows[name] for j in journals]
    raw += [
      (len(rows), process, repetition, seconds)
      for process, one in enumerate(found)
      for repetition, seconds in enumerate(one.get('seconds', ()))
    ]
    rows.append(_row(found, journals))
  return rows, raw


def _row(
  found: Sequence[dict[str, Any]], journals: Sequence[journal_lib.Journal]
) -> dict[str, Any]:
  """One row of the report, from what each process measured."""
  about, cell = journals[0].about, found[0]['cell']
  error = next((one['error'] for one in found if one['error']), None)
  row = {
    **cell,
    'hosts': about['hosts'],
    'processes': len(found),
    'error': error,
    **dict.fromkeys(schema.FIGURES),
  }
  if error is not None:
    return row
  first, batch, devices = found[0], cell['batch'], cell['devices']
  every = tuple(s for one in found for s in one['seconds'])
  timing = measure.Timing(first['warmup'], every).summary()
  mean, described = timing['mean'], dict(first['compile'])
  hlo = {
    name: described[name] and described[name] * first['runs']
    for name in ('hlo_flops', 'hlo_bytes')
  }
  predicted = described.pop('predicted_bytes')
  tflops = first['flops'] / mean / 1e12
  peak_bytes = [one['peak_bytes'] for one in found if one['peak_bytes']]
  row |= {
    'timing': timing,
    'process_p50': [float(np.median(one['seconds'])) for one in found],
    'compile': {k: v for k, v in described.items() if k not in hlo},
    'images_per_second': batch / mean,
    'images_per_second_per_device': batch / mean / devices,
    'model_flops': first['flops'],
    'model_bytes': first['moved'],
    **hlo,
    'tflops': tflops,
    **utilisation(
      tflops / devices, about['hardware']['device_kind'], cell['dtype']
    ),
    'memory': {
      'predicted_bytes': predicted,
      'peak_bytes': max(peak_bytes, default=None),
    },
  }
  rates = _fastest([j.about['rates'][cell['dtype']] for j in journals])
  row['roofline'] = roofline.floors(
    first['flops'] / devices, first['moved'] / devices, mean, rates
  )
  watts = [one['watts'] for one in found]
  # One process reads the watts of its own devices.
  if None not in watts and about['hosts'] == 1:
    power = float(np.mean(watts))
    row['energy'] = {
      'watts': power,
      'joules_per_image': power * mean / batch,
    }
  return row


def _fastest(rates: Sequence[dict[str, float]]) -> roofline.Rates:
  return roofline.Rates(**{k: max(r[k] for r in rates) for k in rates[0]})


def utilisation(tflops: float, kind: str, dtype: str) -> dict[str, Any]:
  """Model FLOPs utilisation of a device: reached over published; not clipped.

  Args:
    tflops: reached on one device.
    kind: of the device, as JAX names it.
    dtype: of compute.

  Returns:
    mfu and mfu_peak, or null both with mfu_reason.
  """
  peak = peaks.find(kind)
  if peak is None:
    reason = f'no published peak is known of the device kind {kind!r}.'
  else:
    best = peak.bf16_tflops if dtype == 'bfloat16' else peak.float32_tflops
    if best is not None:
      return {
        'mfu': tflops / best,
        'mfu_peak': {'tflops': best, 'source': peak.source},
        'mfu_reason': None,
      }
    reason = f'no {dtype} peak is published of {kind}.'
  return {'mfu': None, 'mfu_peak': None, 'mfu_reason': reason}
