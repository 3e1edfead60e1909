"""Runs a benchmark: measures the rows of a config and makes the report."""

from collections.abc import Callable, Sequence
import functools
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
from skipnet_jax.benchmarking.timing import nvml
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.benchmarking.timing import roofline

Say = Callable[[str], None]
Report = dict[str, Any]
Raw = list[tuple[int, int, int, float]]


def run(
  config: ml_collections.ConfigDict,
  say: Say,
  keep: Callable[[Report, Raw], None] = lambda report, raw: None,
) -> tuple[Report, Raw] | None:
  """Measures every row of an experiment, in new processes.

  If the config names the processes of several hosts, this process measures with
  them instead of starting others.

  Args:
    config: a whole config with `benchmark`, see `plan.get_default`.
    say: receives lines on progress and results.
    keep: receives what was measured before an error or an interruption in a new
      process, as it is returned.

  Returns:
    The report and the raw times, as `report.write` takes them; None in all
    but the first of several hosts' processes.

  Raises:
    InputError: a config, data set or plan that cannot be used.
    RunError: a failure other than running out of memory.
  """
  start = time.perf_counter()
  bare, section = plan.split(config)
  whole = json.loads(config.to_json())
  if bare.parallel.coordinator:
    journal = journal_lib.Journal(None, config=whole)
    # The process index is known only once all processes have joined.
    rows_lib.measure_all(
      journal, lambda text: say(text) if jax.process_index() == 0 else None
    )
    if jax.process_index():
      return None
    journals = [journal]
  else:
    journals = children.measure(
      whole,
      section.processes,
      say,
      functools.partial(plan.compile_again, section),
      lambda journals: keep(*_report(config, journals, start)),
    )
  return _report(config, journals, start)


def _report(
  config: ml_collections.ConfigDict,
  journals: Sequence[journal_lib.Journal],
  start: float,
) -> tuple[Report, Raw]:
  _, section = plan.split(config)
  rows, raw = merge(journals)
  about = journals[0].about
  report = {
    'schema': schema.VERSION,
    'identity': {
      'experiment': config.experiment,
      'config_hash': config_identity.hash_of(config),
      'config': journals[0].config,
      'git': environment.git_state(),
      'command': environment.command(),
      'date': environment.now(),
      'seconds': time.perf_counter() - start,
      'processes_compile': plan.COMPILE[
        plan.compile_again(section, about['hardware']['platform'])
      ],
    },
    **{name: about[name] for name in ('software', 'hardware', 'workload')},
    'results': rows,
    'scaling': scaling.table(section, rows),
    'peer': None,
    'quality': None,
  }
  return report, raw


def merge(
  journals: Sequence[journal_lib.Journal],
) -> tuple[list[dict[str, Any]], Raw]:
  """The report's rows, and the raw times of each process."""
  rows: list[dict[str, Any]] = []
  raw: Raw = []
  for name in journals[0].rows:
    measured = [journal.rows[name] for journal in journals]
    raw += [
      (len(rows), process, repetition, seconds)
      for process, one in enumerate(measured)
      for repetition, seconds in enumerate(one.get('seconds', ()))
    ]
    rows.append(_row(measured, journals))
  return rows, raw


def _row(
  measured: Sequence[dict[str, Any]], journals: Sequence[journal_lib.Journal]
) -> dict[str, Any]:
  """One row of the report, from what each process measured."""
  about, first = journals[0].about, measured[0]
  cell = first['cell']
  error = next((one['error'] for one in measured if one['error']), None)
  row = {
    **cell,
    'hosts': about['hosts'],
    'processes': len(measured),
    'error': error,
    **dict.fromkeys(schema.FIGURES),
  }
  if error is not None:
    return row
  batch, devices = cell['batch'], cell['devices']
  seconds = tuple(s for one in measured for s in one['seconds'])
  timing = measure.Timing(first['warmup'], seconds).summary()
  mean, compilation = timing['mean'], dict(first['compile'])
  del compilation['hlo_hash']
  hlo = {name: compilation.pop(name) for name in ('hlo_flops', 'hlo_bytes')}
  predicted = compilation.pop('predicted_bytes')
  tflops = first['flops'] / mean / 1e12
  # NVIDIA's libraries then use no TF32, whatever they are asked for.
  variables = about['software']['environment']
  no_tf32 = (
    about['hardware']['platform'] == 'gpu'
    and variables.get('NVIDIA_TF32_OVERRIDE') == '0'
  )
  blocked = [one['blocked'] for one in measured]
  batches = sum(one['batches'] for one in blocked)
  seconds_blocked = sum(one['seconds'] for one in blocked)
  peak_bytes = [one['peak_bytes'] for one in measured if one['peak_bytes']]
  rates = [journal.about['rates'][cell['dtype']] for journal in journals]
  row |= {
    'timing': timing,
    'process_p50': [float(np.median(one['seconds'])) for one in measured],
    'compile': compilation,
    'programs': [one['compile']['hlo_hash'] for one in measured],
    'blocked': {
      'batches': batches,
      'seconds': seconds_blocked / batches,
      'host_share': sum(one['host_seconds'] for one in blocked)
      / seconds_blocked,
    },
    'loss': first['loss'],
    'images_per_second': batch / mean,
    'images_per_second_p50': batch / timing['p50'],
    'images_per_second_per_device': batch / mean / devices,
    'model_flops': first['flops'],
    'model_bytes': first['min_bytes'],
    **{k: v and v * first['executions_per_batch'] for k, v in hlo.items()},
    'tflops': tflops,
    **utilisation(
      tflops / devices,
      about['hardware']['device_kind'],
      cell['dtype'],
      'highest' if no_tf32 else cell['matmul_precision'],
    ),
    'memory': {
      'predicted_bytes': predicted,
      'peak_bytes': max(peak_bytes, default=None),
    },
    'roofline': roofline.floors(
      first['flops'] / devices,
      first['min_bytes'] / devices,
      mean,
      {name: max(r[name] for r in rates) for name in rates[0]},
    ),
  }
  joules = [one['joules'] for one in measured]
  # With several hosts, each process reads only its own devices.
  if None not in joules and about['hosts'] == 1:
    row['energy'] = {
      'watts': sum(joules) / seconds_blocked,
      'joules_per_image': sum(joules) / (batches * batch),
      'seconds': seconds_blocked,
    }
  states = [one['state'] for one in measured]
  if None not in states:
    row['device_state'] = nvml.combine(states)
  return row


def utilisation(
  tflops: float, kind: str, dtype: str, matmul_precision: str
) -> dict[str, Any]:
  """Model FLOPs utilisation: the rate over the published peak, not clipped.

  Args:
    tflops: 1e12 model FLOPs per second on one device.
    kind: of the device, as JAX names it.
    dtype: of the computation.
    matmul_precision: of products of float32.

  Returns:
    mfu and mfu_peak, or mfu_reason; the others are None.
  """
  found = {'mfu': None, 'mfu_peak': None, 'mfu_reason': None}
  peak = peaks.PEAKS.get(kind)
  if peak is None:
    reason = f'no published peak is known of the device kind {kind!r}.'
    return found | {'mfu_reason': reason}
  arithmetic, best = peaks.product_rate(kind, dtype, matmul_precision)
  if best is None:
    reason = f'no {arithmetic} peak is known of {kind}.'
    return found | {'mfu_reason': reason}
  published = {
    'tflops': best,
    'arithmetic': arithmetic,
    'source': peak.source,
  }
  return found | {'mfu': tflops / best, 'mfu_peak': published}
