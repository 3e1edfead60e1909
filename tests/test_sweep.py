"""Reports made of processes whose times are known."""

import dataclasses

import pytest

from skipnet_jax.benchmarking import journal as journal_lib
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import sweep
from skipnet_jax.benchmarking.timing import peaks

CELL = plan.Cell('train', 'compute', 'sharded', 2, 'float32', 8)
COMPILE = {
  'trace_s': 1.0,
  'lower_s': 2.0,
  'compile_s': 3.0,
  'warm_compile_s': 0.5,
  'hlo_instructions': 77,
  'hlo_flops': 5e9,
  'hlo_bytes': 4e9,
  'hlo_hash': '0123456789ab',
  'predicted_bytes': 1234,
}


def measured(cell, seconds, **changes):
  return {
    'cell': dataclasses.asdict(cell),
    'error': None,
    'warmup': 1,
    'seconds': seconds,
    'compile': COMPILE,
    'executions_per_batch': 1,
    'flops': 8_000_000_000,
    'min_bytes': 8_000_000_000,
    'peak_bytes': None,
    'blocked': {'batches': 4, 'seconds': 6.0, 'host_seconds': 1.5},
    'loss': None,
    'joules': None,
    'state': None,
  } | changes


def journal(
  *rows, kind='cpu', platform='cpu', environment=None, copy=10.0, hosts=1
):
  return journal_lib.Journal(
    None,
    rows={str(plan.Cell(**row['cell'])): row for row in rows},
    about={
      'hosts': hosts,
      'hardware': {'device_kind': kind, 'platform': platform},
      'software': {'environment': environment or {}},
      'rates': {'float32': {'copy_gb_s': copy, 'matrix_tflops': 0.1}},
    },
  )


def test_a_row_is_of_the_times_of_all_processes():
  (row,), raw = sweep.merge(
    [
      journal(
        measured(
          CELL,
          [0.5, 1.0, 1.5],
          peak_bytes=100,
          loss={'steps': 9, 'value': 0.5},
        )
      ),
      journal(measured(CELL, [2.0, 2.0, 5.0], peak_bytes=300), copy=20.0),
    ]
  )
  assert row['processes'] == 2
  assert row['process_p50'] == [1.0, 2.0]
  assert row['timing']['n'] == 6
  assert row['timing']['mean'] == 2.0
  # Batch over mean time, never a mean of rates.
  assert row['images_per_second'] == 4.0
  assert row['images_per_second_per_device'] == 2.0
  assert row['tflops'] == pytest.approx(0.004)
  assert row['compile'] == {
    k: v
    for k, v in COMPILE.items()
    if k not in ('hlo_flops', 'hlo_bytes', 'hlo_hash', 'predicted_bytes')
  }
  assert row['memory'] == {'predicted_bytes': 1234, 'peak_bytes': 300}
  # One device: 4e9 FLOPs at 0.1 TFLOP/s, 4e9 bytes at the faster 20 GB/s.
  assert row['roofline'] == {
    'flops_s': pytest.approx(0.04),
    'bytes_s': pytest.approx(0.2),
    'bound': 'bytes',
    'floor_s': pytest.approx(0.2),
    'fraction': pytest.approx(0.1),
    'copy_gb_s': 20.0,
    'matrix_tflops': 0.1,
  }
  assert row['energy'] is None
  assert row['loss'] == {'steps': 9, 'value': 0.5}
  assert raw == [
    (0, process, i, seconds)
    for process, times in enumerate(([0.5, 1.0, 1.5], [2.0, 2.0, 5.0]))
    for i, seconds in enumerate(times)
  ]


def test_the_programs_of_all_processes_are_named():
  other = COMPILE | {'hlo_hash': 'ba9876543210'}
  (row,), _ = sweep.merge(
    [
      journal(measured(CELL, [1.0])),
      journal(measured(CELL, [1.0], compile=other)),
    ]
  )
  assert row['programs'] == ['0123456789ab', 'ba9876543210']


def test_executions_of_a_program_multiply_what_xla_counts():
  (row,), _ = sweep.merge(
    [journal(measured(CELL, [1.0], executions_per_batch=9))]
  )
  assert row['hlo_flops'] == 45e9
  assert row['hlo_bytes'] == 36e9


def test_an_unknown_device_has_no_utilisation_and_says_why():
  (row,), _ = sweep.merge([journal(measured(CELL, [1.0]), kind='abacus')])
  assert row['mfu'] is row['mfu_peak'] is None
  assert "device kind 'abacus'" in row['mfu_reason']


def test_utilisation_is_of_the_published_peak():
  found = sweep.utilisation(98.95, 'NVIDIA H200', 'bfloat16', 'default')
  assert found['mfu'] == pytest.approx(0.1)
  assert found['mfu_peak']['tflops'] == 989.5
  assert 'H200' in found['mfu_peak']['source']
  # Not clipped: above 1 something is wrong, and is to be seen.
  found = sweep.utilisation(2000, 'NVIDIA H200', 'bfloat16', 'highest')
  assert found['mfu'] > 2


@pytest.mark.parametrize(
  ('kind', 'precision', 'arithmetic', 'tflops'),
  [
    # JAX's default of float32 is TF32 there, not plain float32.
    ('NVIDIA H200', 'default', 'tf32', 494.5),
    ('NVIDIA H200', 'high', 'tf32', 494.5),
    ('NVIDIA H200', 'highest', 'float32', 67),
    ('TPU v4', 'default', 'bfloat16', 275),
    ('TPU v4', 'high', 'bfloat16 in 3 passes', 275 / 3),
    ('TPU v4', 'highest', 'bfloat16 in 6 passes', 275 / 6),
  ],
)
def test_float32_is_held_against_the_arithmetic_that_is_used(
  kind, precision, arithmetic, tflops
):
  found = sweep.utilisation(tflops, kind, 'float32', precision)
  assert found['mfu'] == pytest.approx(1)
  assert found['mfu_peak']['arithmetic'] == arithmetic


def test_tf32_that_is_switched_off_is_not_the_arithmetic():
  for value, arithmetic in (('0', 'float32'), ('1', 'tf32')):
    (row,), _ = sweep.merge(
      [
        journal(
          measured(CELL, [1.0]),
          kind='NVIDIA H200',
          platform='gpu',
          environment={'NVIDIA_TF32_OVERRIDE': value},
        )
      ]
    )
    assert row['mfu_peak']['arithmetic'] == arithmetic


def test_an_arithmetic_without_a_published_peak_gives_no_utilisation(
  monkeypatch,
):
  peak = peaks.Peak(100, 10, 1000, 40, None, 'made up')
  monkeypatch.setitem(peaks.PEAKS, 'Some GPU', peak)
  none = sweep.utilisation(1, 'Some GPU', 'float32', 'default')
  assert none['mfu'] is None
  assert none['mfu_reason'] == 'no tf32 peak is known of Some GPU.'


def test_the_counter_gives_joules_of_an_image():
  (row,), _ = sweep.merge(
    [
      journal(measured(CELL, [2.0], joules=600.0)),
      journal(measured(CELL, [4.0], joules=1800.0)),
    ]
  )
  # 2,400 J in 12 s, for 8 batches of 8 images.
  assert row['energy'] == {
    'watts': 200.0,
    'joules_per_image': 37.5,
    'seconds': 12.0,
  }
  (row,), _ = sweep.merge([journal(measured(CELL, [2.0], joules=9.0), hosts=2)])
  assert row['energy'] is None


def test_the_worst_state_of_the_processes_is_the_rows():
  state = dict.fromkeys(
    ('memory_mhz', 'temperature_c', 'power_limit_w', 'ecc', 'mig')
  )
  state |= {'sm_mhz_highest': 2000, 'slow': False}
  cool = state | {'sm_mhz': 1900, 'throttle_reasons': []}
  hot = state | {'sm_mhz': 1500, 'throttle_reasons': ['hardware slowdown']}
  (row,), _ = sweep.merge(
    [journal(measured(CELL, [2.0], state=one)) for one in (cool, hot, cool)]
  )
  assert row['device_state'] == hot | {'slow': True}


def test_blocked_calls_and_the_median_have_rates_of_their_own():
  (row,), _ = sweep.merge([journal(measured(CELL, [1.0, 1.0, 4.0]))])
  # The host needed 1.5 of 6 s for 4 batches.
  assert row['blocked'] == {'batches': 4, 'seconds': 1.5, 'host_share': 0.25}
  assert row['images_per_second'] == 4.0
  assert row['images_per_second_p50'] == 8.0


def test_a_row_that_failed_in_any_process_has_no_figures():
  failed = {'cell': dataclasses.asdict(CELL), 'error': 'Batch 8 does not fit.'}
  other = dataclasses.replace(CELL, batch=4)
  rows, raw = sweep.merge(
    [
      journal(measured(CELL, [1.0]), measured(other, [1.0])),
      journal(failed, measured(other, [1.0])),
    ]
  )
  assert [row['error'] for row in rows] == ['Batch 8 does not fit.', None]
  assert rows[0]['timing'] is rows[0]['roofline'] is None
  assert {line[0] for line in raw} == {0, 1}
